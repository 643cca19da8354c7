"""`stya2k-small`: our compact all-to-key network, for a CPU.

Nearly all work is at 1/4 and 1/8 of the picture's size, each with an A2K module. Three departures from
the paper's network buy quality for few operations: the content term of eq. 14 gets the style's moments
(AdaIN), so that the content's palette cannot leak through; progressive regions overlap by half and are
blended, so that no block edge shows; and a thin full-size path refines the content in the style's
palette (kernels/palette.py), so that fine detail needs no deep features.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.all_to_key import Arithmetic
from ...kernels.moments import moments
from ...kernels.palette import look_up, palette_table, sample
from .attention import A2K, Code, Moments


@dataclass(frozen=True)
class Content:
    """N encoded frames: the picture and its features at 1/2, 1/4 and 1/8."""

    size: tuple[int, int]
    image: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class StyleCode:
    """A style encoded for `SmallStyA2K`."""

    palette: Tensor
    half: tuple[Tensor, Tensor]
    codes: tuple[Code, Code]


def _conv(cin: int, cout: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(
        cin, cout, size, stride, (size - 1) // 2, padding_mode="zeros" if size == 1 else "replicate"
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv


def _active(x: Tensor) -> Tensor:
    """Leaky: with plain ReLUs the dozen channels at full size died in the first steps, unnoticed."""
    return functional.leaky_relu(x, 0.2)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Twice as large, cut to another map's size."""
    h, w = like.shape[-2:]
    return functional.interpolate(x, scale_factor=2, mode="bilinear")[..., :h, :w]


class Block(nn.Module):
    """A residual pair of 3x3 convolutions; it starts close to the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = _conv(channels, channels), _conv(channels, channels)
        with torch.no_grad():
            self.b.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(_active(self.a(x)))


class SmallStyA2K(nn.Module):
    """Encoder to 1/8, A2K at 1/8 and 1/4, decoder with a detail path; widths at 1/1, 1/2, 1/4, 1/8."""

    align = 64  # tiles start at multiples of this: the region grid of 1/8
    reach = 192  # pixels beyond a tile that may change it
    bytes_per_pixel = 700  # peak of one frame in float32

    def __init__(self, widths: tuple[int, ...] = (12, 24, 48, 96), kind: str = "all-to-key"):
        super().__init__()
        full, half, quarter, eighth = widths
        how = Arithmetic(size=8, extra=0, scaled=True, overlap=True)
        heads = (1, 1) if kind == "one head" else (2, 4)
        self.widths, self.kind = tuple(widths), kind
        self.down2 = _conv(3, half, 4, 2)
        self.down4, self.encode4 = _conv(half, quarter, 3, 2), Block(quarter)
        self.down8, self.encode8 = _conv(quarter, eighth, 3, 2), Block(eighth)
        self.a2k4 = A2K(quarter, replace(how, heads=heads[0]), kind=kind, adapt=True)
        self.a2k8 = A2K(eighth, replace(how, heads=heads[1]), kind=kind, adapt=True)
        self.decode8 = nn.Sequential(Block(eighth), Block(eighth))
        self.up8 = _conv(eighth, quarter, 1)
        self.decode4 = nn.Sequential(Block(quarter), Block(quarter))
        self.up4 = _conv(quarter, half, 1)
        self.skip2, self.decode2 = _conv(half, half, 1), _conv(half, half)
        self.up2 = _conv(half, full, 1)
        self.detail, self.color = _conv(3, full), _conv(full, 3)
        with torch.no_grad():
            self.color.weight.mul_(0.1)

    @property
    def arithmetic(self) -> tuple[Arithmetic, ...]:
        """How the weights' regions are cut, per scale."""
        return self.a2k4.how, self.a2k8.how

    def encode(self, images: Tensor) -> Content:
        """N frames [N, 3, H, W] in 0..1; maps of sizes rounded up, what padding made cut off again."""
        h, w = images.shape[-2:]
        x = functional.pad(images, (0, -w % 8, 0, -h % 8), mode="replicate") if h % 8 or w % 8 else images
        e2 = _active(self.down2((x - 0.5) * 4))
        e4 = self.encode4(_active(self.down4(e2)))
        e8 = self.encode8(_active(self.down8(e4)))
        maps = (e2, e4, e8)
        steps = (2, 4, 8)
        own = (m[..., : -(-h // s), : -(-w // s)] for m, s in zip(maps, steps, strict=True))
        return Content((h, w), images, tuple(own))

    def encode_style(self, images: Tensor) -> StyleCode:
        """A style picture, encoded once."""
        maps = self.encode(images).maps
        return StyleCode(
            sample(images), moments(maps[0]), (self.a2k4.encode(maps[1]), self.a2k8.encode(maps[2]))
        )

    def measure(self, content: Content) -> list[Tensor | Moments]:
        """The content's statistics that `transfer` uses; of a whole frame, where tiles are stylized."""
        return [*self.measure_images(content.image), *(moments(m) for m in content.maps)]

    def measure_images(self, images: Tensor) -> list[Tensor | Moments]:
        """Those of them that are taken from the pictures themselves."""
        return [sample(images)]

    def transfer(
        self,
        content: Content,
        code: StyleCode,
        mode: str | None = None,
        stats: list[Tensor | Moments] | None = None,
    ) -> list[Tensor]:
        """The features of the content in the style: picture, 1/2, 1/4, 1/8."""
        palette, at2, at4, at8 = stats or self.measure(content)
        e2, e4, e8 = content.maps
        return [
            look_up(content.image, palette_table(palette, code.palette)),
            (e2 - at2[0]) / at2[1] * code.half[1] + code.half[0],
            self.a2k4(e4, code.codes[0], mode, at4),
            self.a2k8(e8, code.codes[1], mode, at8),
        ]

    def plain(self, content: Content) -> list[Tensor]:
        """The content's own features: what strength 0 decodes."""
        return [content.image, *content.maps]

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Features to pictures of `size`, not clamped."""
        base, z2, z4, z8 = features
        x = self.decode4(_double(self.up8(self.decode8(z8)), z4) + z4)
        x = _double(self.up4(_active(x)), z2)
        x = _active(self.decode2(_active(x + self.skip2(z2))))
        x = _active(_double(self.up2(x), base) + self.detail((base - 0.5) * 4))
        return base + self.color(x)

    def forward(self, images: Tensor, code: StyleCode, mode: str | None = None) -> Tensor:
        content = self.encode(images)
        return self.decode(self.transfer(content, code, mode), content.size)
