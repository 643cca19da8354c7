"""`stya2k-small`: our compact all-to-key network, for a CPU.

Nearly all work is at 1/4, 1/8 and 1/16 of the picture's size, each with an A2K module, as in the paper.
Departures from the paper's network improve quality at little cost: the content term of eq. 14 gets the
style's moments (AdaIN), so that the content's colours do not appear in the result; progressive attention is
narrower than its map, and its regions overlap and are blended, so that no block edge shows; maps are
softened before they are halved, so that strokes move with the picture; and a thin full-size path refines
the content in the style's palette (kernels/palette.py), so that fine detail needs no deep features.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.all_to_key import Arithmetic
from ...kernels.moments import moments
from ...kernels.palette import PaletteReference, describe, look_up, palette_table, sample
from .attention import A2K, Moments, StyleCode, rescale
from .mixing import FeatureBlend

HALVINGS = ("soft", "plain")  # what a network's maps are halved by: `Soften` before, or as they are


@dataclass(frozen=True)
class SmallContent:
    """N encoded frames: the picture and its features at 1/2, 1/4, 1/8 and 1/16."""

    size: tuple[int, int]
    image: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class SmallStyleCode:
    """A style encoded for `SmallStyA2K`."""

    palette: PaletteReference
    half: tuple[Tensor, Tensor]
    codes: tuple[StyleCode, ...]


def _conv(cin: int, cout: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(
        cin, cout, size, stride, (size - 1) // 2, padding_mode="zeros" if size == 1 else "replicate"
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv


def _seen(conv: nn.Conv2d, picture: Tensor) -> Tensor:
    """conv((picture - 1/2) * 4), with the scaling folded into the weights."""
    return conv._conv_forward(picture, conv.weight * 4, conv.bias - 2 * conv.weight.sum((1, 2, 3)))


def _active(x: Tensor) -> Tensor:
    """Leaky ReLU, in place. With plain ReLUs the channels at full size soon became 0 for all inputs."""
    return functional.leaky_relu(x, 0.2, inplace=True)


class Soften(nn.Module):
    """A 3 x 3 binomial blur of each channel, before a map is halved. Without it fine detail is aliased:
    strokes stay fixed to the smaller map's grid and flicker when the picture moves by less than one cell.
    Constant areas stay constant, also at the borders. A map has at least 2 x 2 points."""

    def __init__(self):
        super().__init__()
        side = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("binomial", (side[:, None] * side)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = functional.conv2d(x, self.binomial.expand(channels, 1, 3, 3), padding=1, groups=channels)
        for line in (x[..., :1, :], x[..., -1:, :], x[..., :1], x[..., -1:]):
            line *= 4 / 3  # a quarter of the binomial lay outside
        return x


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Twice as large, cut to another map's size."""
    h, w = like.shape[-2:]
    return functional.interpolate(x, scale_factor=2, mode="bilinear")[..., :h, :w]


class ResidualBlock(nn.Module):
    """A residual pair of 3x3 convolutions; it starts close to the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = _conv(channels, channels), _conv(channels, channels)
        with torch.no_grad():
            self.b.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(_active(self.a(x))).add_(x)


class SmallStyA2K(FeatureBlend, nn.Module):
    """Encoder to 1/16, A2K at 1/16, 1/8 and 1/4, decoder with a detail path; widths at 1/1, 1/2 ... 1/16."""

    align = 96  # tiles start at multiples of this: the region grid of 1/16
    reach = 384  # pixels beyond a tile that may change it
    bytes_per_pixel = 700  # peak of one frame in float32

    def __init__(
        self,
        widths: tuple[int, ...] = (12, 24, 48, 96, 96),
        kind: str = "all-to-key",
        halving: str = HALVINGS[0],
    ):
        super().__init__()
        if halving not in HALVINGS:
            raise ValueError(f"halving {halving!r} is not known: {' or '.join(HALVINGS)}")
        self.halving, self.soften = halving, Soften() if halving == "soft" else nn.Identity()
        full, half, quarter, eighth, last = widths
        how = Arithmetic(size=8, extra=0, scaled=True, overlap=True)
        self.widths, self.kind = tuple(widths), kind
        self.down2 = _conv(3, half, 4, 2)
        self.down4, self.encode4 = _conv(half, quarter, 3, 2), ResidualBlock(quarter)
        self.down8, self.encode8 = _conv(quarter, eighth, 3, 2), ResidualBlock(eighth)
        self.down16, self.encode16 = _conv(eighth, last, 3, 2), ResidualBlock(last)
        self.a2k4, self.a2k8, self.a2k16 = (
            A2K(
                width,
                replace(how, heads=1 if kind == "one head" else heads),
                kind=kind,
                adapt=True,
                inner=2 * width // 3 // heads * heads,
            )
            for width, heads in ((quarter, 2), (eighth, 4), (last, 4))
        )
        self.decode16, self.up16 = ResidualBlock(last), _conv(last, eighth, 1)
        self.decode8, self.up8 = (
            nn.Sequential(ResidualBlock(eighth), ResidualBlock(eighth)),
            _conv(eighth, quarter, 1),
        )
        self.decode4, self.up4 = (
            nn.Sequential(ResidualBlock(quarter), ResidualBlock(quarter)),
            _conv(quarter, half, 1),
        )
        self.skip2, self.decode2 = _conv(half, half, 1), _conv(half, half)
        self.up2 = _conv(half, full, 1)
        self.detail, self.color = _conv(3, full), _conv(full, 3)
        with torch.no_grad():
            self.color.weight.mul_(0.1)

    @property
    def attention(self) -> tuple[A2K, ...]:
        return self.a2k4, self.a2k8, self.a2k16

    @property
    def arithmetic(self) -> tuple[Arithmetic, ...]:
        """How the weights' regions are cut, per scale."""
        return tuple(module.how for module in self.attention)

    def encode(self, images: Tensor) -> SmallContent:
        """N frames [N, 3, H, W] in 0..1. The sizes of maps are rounded up, padding is removed again."""
        h, w = images.shape[-2:]
        x = images
        if h % 16 or w % 16:
            x = functional.pad(images, (0, -w % 16, 0, -h % 16), mode="replicate")
        e2 = _active(_seen(self.down2, self.soften(x)))
        e4 = self.encode4(_active(self.down4(self.soften(e2))))
        e8 = self.encode8(_active(self.down8(self.soften(e4))))
        e16 = self.encode16(_active(self.down16(self.soften(e8))))
        maps = ((e2, 2), (e4, 4), (e8, 8), (e16, 16))
        return SmallContent((h, w), images, tuple(m[..., : -(-h // s), : -(-w // s)] for m, s in maps))

    def encode_style(self, images: Tensor) -> SmallStyleCode:
        """A style picture, encoded once."""
        first, *maps = self.encode(images).maps
        codes = (module.encode(m) for module, m in zip(self.attention, maps, strict=True))
        return SmallStyleCode(describe(sample(images)), moments(first), tuple(codes))

    def measure(self, content: SmallContent) -> list[Tensor | Moments]:
        """The content's statistics that `transfer` uses; of a whole frame, where tiles are stylized."""
        return [*self.measure_images(content.image), *(moments(m) for m in content.maps)]

    def measure_images(self, images: Tensor) -> list[Tensor | Moments]:
        """Those of them that are taken from the pictures themselves."""
        return [sample(images)]

    def paint(
        self, images: Tensor, palette: Tensor | PaletteReference, stats: list[Tensor | Moments] | None = None
    ) -> Tensor:
        """Pictures in a style's palette, the input of the full-size path. No weights are used."""
        own = stats[0] if stats else sample(images)
        return look_up(images, palette_table(own, palette))

    def transfer(
        self,
        content: SmallContent,
        code: SmallStyleCode,
        mode: str | None = None,
        stats: list[Tensor | Moments] | None = None,
        base: Tensor | None = None,
    ) -> list[Tensor]:
        """The features of the content in the style: picture (`paint`, unless given), 1/2, 1/4, 1/8, 1/16."""
        own = stats[1:] if stats else [moments(m) for m in content.maps]
        if base is None:
            base = self.paint(content.image, code.palette, stats)
        first, *maps = content.maps
        return [
            base,
            rescale(first, own[0], code.half),
            *(a(m, c, mode, s) for a, m, c, s in zip(self.attention, maps, code.codes, own[1:], strict=True)),
        ]

    def plain(self, content: SmallContent) -> list[Tensor]:
        """The content's own features: what strength 0 decodes."""
        return [content.image, *content.maps]

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Features to pictures of `size`, not clamped."""
        base, z2, z4, z8, z16 = features
        x = self.decode8(_double(self.up16(self.decode16(z16)), z8).add_(z8))
        x = self.decode4(_double(self.up8(x), z4).add_(z4))
        x = _double(self.up4(_active(x)), z2)
        x = _active(self.decode2(_active(x.add_(self.skip2(z2)))))
        x = _active(_double(self.up2(x), base).add_(_seen(self.detail, base)))
        return self.color(x).add_(base)

    def forward(
        self, images: Tensor, code: SmallStyleCode, mode: str | None = None, base: Tensor | None = None
    ) -> Tensor:
        content = self.encode(images)
        return self.decode(self.transfer(content, code, mode, base=base), content.size)
