"""The StyA2K network of the paper: VGG-19 to ReLU5_1, A2K at 3_1, 4_1 and 5_1, a mirrored decoder.

Any picture size: VGG's pools round up, the decoder's doubled maps are cropped to the encoder's sizes, and
attention pads and masks (kernels/all_to_key.py), so the output has exactly the input's size. For the square
sizes of the official code the arithmetic is the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.all_to_key import Arithmetic
from ...kernels.moments import moments
from ..common.perceptual import VGG, reflect
from .attention import A2K, Moments, StyleCode
from .mixing import FeatureBlend

LAYERS = ("relu3_1", "relu4_1", "relu5_1")
OFFICIAL = (Arithmetic(size=8), Arithmetic(size=8), Arithmetic(size=4))
PAPER = (Arithmetic(count=8, extra=0), Arithmetic(count=8, extra=0), Arithmetic(count=4, extra=0))

# Convolutions of the decoder after the first: official index, channels in and out, doubling after it.
DECODER = (
    (1, 512, 256, False),
    (4, 256, 256, False),
    (7, 256, 256, False),
    (10, 256, 128, True),
    (14, 128, 128, False),
    (17, 128, 64, True),
    (21, 64, 64, False),
    (24, 64, 3, False),
)


@dataclass(frozen=True)
class PaperContent:
    """N encoded frames: their size and features at ReLU3_1, 4_1, 5_1."""

    size: tuple[int, int]
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class PaperStyleCode:
    """A style encoded for `StyA2K`."""

    codes: tuple[StyleCode, ...]


def _double(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1]]


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


class StyA2K(FeatureBlend, nn.Module):
    """Eqs. 1-3, with the 3_1 skip of AdaAttN."""

    align = 64  # pixels: tiles start at multiples of this (regions of 4 cells at 1/16)
    reach = 192
    bytes_per_pixel = 2600

    def __init__(
        self,
        encoder: VGG | None = None,
        *,
        how: tuple[Arithmetic, ...] = OFFICIAL,
        kind: str = "all-to-key",
    ):
        super().__init__()
        self.encoder = (encoder or VGG(normalised=True)).freeze()
        self.how, self.kind = how, kind
        self.a2k3, self.a2k4, self.a2k5 = (
            A2K(width, h, kind=kind) for width, h in zip((256, 512, 512), how, strict=True)
        )
        self.merge = nn.Conv2d(512, 512, 3)
        self.first = nn.Conv2d(512, 256, 3)
        self.decoder = nn.ModuleList(nn.Conv2d(cin, cout, 3) for _, cin, cout, _ in DECODER)

    @property
    def arithmetic(self) -> tuple[Arithmetic, ...]:
        """How each scale is divided into regions."""
        return self.how

    def encode(self, images: Tensor) -> PaperContent:
        """N frames [N, 3, H, W] in 0..1."""
        found = self.encoder(images, LAYERS)
        return PaperContent(tuple(images.shape[-2:]), tuple(found[layer] for layer in LAYERS))

    def encode_style(self, images: Tensor) -> PaperStyleCode:
        """A style picture, encoded once."""
        maps = self.encode(images).maps
        a2k = (self.a2k3, self.a2k4, self.a2k5)
        return PaperStyleCode(tuple(m.encode(x) for m, x in zip(a2k, maps, strict=True)))

    def measure(self, content: PaperContent) -> list[Moments]:
        """The content's statistics that `transfer` uses. For tiles they come from the whole frame."""
        return [moments(m) for m in content.maps]

    def measure_images(self, images: Tensor) -> list[Moments]:
        """Those statistics that are measured on the pictures, not on features."""
        return []

    def transfer(
        self,
        content: PaperContent,
        code: PaperStyleCode,
        mode: str | None = None,
        stats: list[Moments] | None = None,
    ) -> list[Tensor]:
        """Eq. 2 at the three scales."""
        a2k = (self.a2k3, self.a2k4, self.a2k5)
        stats = stats or [None] * 3
        return [m(x, c, mode, s) for m, x, c, s in zip(a2k, content.maps, code.codes, stats, strict=True)]

    def plain(self, content: PaperContent) -> list[Tensor]:
        """The content's own features, which strength 0 decodes."""
        return list(content.maps)

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Eq. 3, not clamped."""
        z3, z4, z5 = features
        sizes = [size, _halved(size)]
        x = self.merge(reflect(z4 + _double(z5, z4.shape[-2:])))
        x = _double(functional.relu(self.first(reflect(x)), inplace=True), z3.shape[-2:])
        x = torch.cat([x, z3], 1)
        for conv, (_, _, cout, doubles) in zip(self.decoder, DECODER, strict=True):
            x = conv(reflect(x))
            if cout != 3:
                x = functional.relu(x, inplace=True)
            if doubles:
                x = _double(x, sizes.pop())
        return x

    def forward(self, images: Tensor, code: PaperStyleCode, mode: str | None = None) -> Tensor:
        content = self.encode(images)
        return self.decode(self.transfer(content, code, mode), content.size)
