"""`stya2k-small`: our compact all-to-key network, for a CPU: attention at 1/4 and 1/8 between plain blocks.

Two encoders of one layout: the content's, which runs for every frame, and the style's, which runs once.
A2K gives the map at 1/8, and after a residual block the map at 1/4, the style's moments and what attention
finds; the style also scales and shifts the channels of every layer of the decoder. Maps are halved through
a binomial, so that detail which is too fine for the smaller map does not crawl when the picture moves. The
last layer adds the high frequencies of the content's luma, which have no colour: edges stay where they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.all_to_key import Arithmetic
from ...kernels.moments import moments
from .attention import A2K, Moments, StyleCode
from .mixing import Mix, times, total


@dataclass(frozen=True)
class ModulatedContent:
    """N encoded frames: their size, the detail of their luma, and their features at 1/2, 1/4 and 1/8."""

    size: tuple[int, int]
    detail: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class ModulatedStyle:
    """A style encoded: codes at 1/4 and 1/8, and a signal per modulated layer, from 1/8 to 1/1."""

    codes: tuple[StyleCode, ...]
    signals: tuple[Tensor, ...]


def _conv(cin: int, cout: int, size: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(cin, cout, size, 1, size // 2, padding_mode="zeros" if size == 1 else "reflect")
    nn.init.kaiming_normal_(conv.weight, a=0.2)
    nn.init.zeros_(conv.bias)
    return conv


def _active(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2, inplace=True)


class Halve(nn.Module):
    """Half the size through a binomial of 4 x 4, which keeps the grid of bilinear doubling."""

    def __init__(self):
        super().__init__()
        side = torch.tensor([0.125, 0.375, 0.375, 0.125])
        self.register_buffer("binomial", (side[:, None] * side)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv2d(x, self.binomial.expand(channels, 1, 4, 4), stride=2, groups=channels)


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Twice as large, cut to another map's size."""
    h, w = like.shape[-2:]
    return functional.interpolate(x, scale_factor=2, mode="bilinear")[..., :h, :w]


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def _whole(images: Tensor) -> Tensor:
    """Padded to whole points of the map at 1/8, at least two each way."""
    h, w = (max(16, -(-side // 8) * 8) - side for side in images.shape[-2:])
    return functional.pad(images, (0, w, 0, h), mode="replicate") if h or w else images


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


class ModulatedBlock(nn.Module):
    """A residual pair of 3x3 convolutions; a signal scales and shifts what each of them makes."""

    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = _conv(channels, channels), _conv(channels, channels)
        with torch.no_grad():
            self.b.weight.mul_(0.3)

    def forward(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        if signal is None:
            return self.b(_active(self.a(x))).add_(x)
        first, first_shift, second, second_shift = signal.chunk(4, 1)
        y = _active(_scaled(self.a(x), first, first_shift))
        return _scaled(self.b(y), second, second_shift).add_(x)


class PictureEncoder(nn.Module):
    """A picture at half size, and its features at 1/2, 1/4 and 1/8."""

    def __init__(self, half: int, quarter: int, eighth: int, deep: bool):
        super().__init__()
        self.halve = Halve()
        self.to2, self.to4, self.to8 = _conv(3, half), _conv(half, quarter), _conv(quarter, eighth)
        self.block4 = ModulatedBlock(quarter) if deep else nn.Identity()
        self.block8 = ModulatedBlock(eighth)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        small = self.halve(images)
        e2 = _active(self.to2((small - 0.5) * 4))
        e4 = self.block4(_active(self.to4(self.halve(e2))))
        return small, (e2, e4, self.block8(_active(self.to8(self.halve(e4)))))


class ModulatedStyA2K(nn.Module):
    """Widths at 1/1, 1/2, 1/4 and 1/8."""

    stages = 2
    align = 48  # tiles start at multiples of this: the region grid of 1/8
    reach = 192  # pixels beyond a tile that may change it
    bytes_per_pixel = 600  # peak of one frame in float32

    def __init__(self, widths: tuple[int, ...] = (12, 16, 64, 96), kind: str = "all-to-key"):
        super().__init__()
        full, half, quarter, eighth = widths
        self.widths, self.kind = tuple(widths), kind
        self.content = PictureEncoder(half, quarter, eighth, False)
        self.style = PictureEncoder(half, quarter, eighth, True)
        self.a2k4, self.a2k8 = (
            A2K(
                width,
                Arithmetic(
                    size=8, extra=0, scaled=True, overlap=True, heads=1 if kind == "one head" else heads
                ),
                kind=kind,
                adapt=True,
                inner=inner,
            )
            for width, heads, inner in ((quarter, 2, quarter // 2), (eighth, 4, eighth * 2 // 3))
        )
        self.block8, self.up8 = ModulatedBlock(eighth), _conv(eighth, quarter, 1)
        self.block4, self.up4 = ModulatedBlock(quarter), _conv(quarter, 2 * half, 1)
        self.skip2, self.mix2 = _conv(half, 2 * half, 1), _conv(2 * half, 2 * half)
        self.up2, self.detail, self.color = _conv(2 * half, 4 * full), _conv(1, full), _conv(full, 3)
        self.layers = (4 * eighth, 4 * quarter, 4 * half, 2 * full)
        self.signal = nn.Sequential(
            nn.Linear(2 * (half + quarter + eighth), 128), nn.LeakyReLU(0.2), nn.Linear(128, sum(self.layers))
        )
        with torch.no_grad():
            self.signal[2].weight.mul_(0.1)
            self.signal[2].bias.zero_()
            self.color.weight.mul_(0.3)
            self.detail.weight.mul_(4)

    @property
    def attention(self) -> tuple[A2K, ...]:
        return self.a2k4, self.a2k8

    @property
    def arithmetic(self) -> tuple[Arithmetic, ...]:
        """How the weights' regions are cut, per scale."""
        return tuple(module.how for module in self.attention)

    def encode(self, images: Tensor) -> ModulatedContent:
        """N frames [N, 3, H, W] in 0..1; maps of sizes rounded up."""
        size, light = tuple(images.shape[-2:]), _luma(images)
        small, maps = self.content(_whole(images))
        cut = (
            m[..., : max(2, -(-size[0] // step)), : max(2, -(-size[1] // step))]
            for m, step in zip(maps, (2, 4, 8), strict=True)
        )
        return ModulatedContent(size, light - _double(_luma(small), light), tuple(cut))

    def encode_style(self, images: Tensor) -> ModulatedStyle:
        """A style picture, encoded once."""
        maps = self.style(_whole(images))[1]
        stats = torch.cat([part for m in maps for part in moments(m)], 1)[..., 0, 0]
        signals = self.signal(stats)[..., None, None].split(self.layers, 1)
        return ModulatedStyle((self.a2k4.encode(maps[1]), self.a2k8.encode(maps[2])), signals)

    # -- one frame, one or several styles ----------------------------------------------------------

    def stage(
        self, number: int, content: ModulatedContent, mix: Mix, mode: str | None, stats: list[Moments]
    ) -> tuple[Tensor, ...]:
        """The maps whose moments the transfer `number` takes; it needs those of the transfers before."""
        return (content.maps[2],) if number == 0 else (self._middle(content, mix, mode, stats[0]),)

    def _transfer(self, x: Tensor, level: int, mix: Mix, mode: str | None, own: Moments | None) -> Tensor:
        """A map in the styles, each by its share."""
        module = self.attention[level]
        return total(times(module(x, code.codes[level], mode, own), share(x)) for code, share in mix)

    @staticmethod
    def _signal(layer: int, like: Tensor, mix: Mix) -> Tensor:
        return total(times(code.signals[layer], share(like)) for code, share in mix)

    def _full_size(self, x: Tensor, signal: Tensor, like: Tensor) -> Tensor:
        """The map at 1/2 as four points each, which the layer paints on their own; of the size of `like`."""
        x = _scaled(self.up2(x), *signal.repeat_interleave(4, 1).chunk(2, 1))
        h, w = like.shape[-2:]
        return functional.pixel_shuffle(x, 2)[..., :h, :w]

    def _middle(self, content: ModulatedContent, mix: Mix, mode: str | None, own: Moments | None) -> Tensor:
        """The map at 1/4 that is transferred second."""
        _, e4, e8 = content.maps
        x = self._transfer(e8, 1, mix, mode, own)
        x = self.block8(x, self._signal(0, e8, mix))
        return _double(self.up8(x), e4) + e4

    def render(
        self, content: ModulatedContent, mix: Mix, mode: str | None = None, stats: list[Moments] | None = None
    ) -> Tensor:
        """Pictures in the styles, not clamped. `stats` are of a whole frame, where tiles are stylized."""
        (e2, e4, _), (first, second) = content.maps, stats or (None, None)
        x = self._transfer(self._middle(content, mix, mode, first), 0, mix, mode, second)
        x = self.block4(x, self._signal(1, e4, mix))
        x = _double(self.up4(x), e2).add_(self.skip2(e2))
        x = _scaled(_active(self.mix2(_active(x))), *self._signal(2, e2, mix).chunk(2, 1))
        x = self._full_size(x, self._signal(3, e2, mix), content.detail)
        x = x + self.detail(content.detail)
        return self.color(_active(x)).add_(0.5)

    def blend(
        self,
        content: ModulatedContent,
        planes: Tensor,
        mix: Mix,
        strength: float = 1.0,
        mode: str | None = None,
        stats: list[Moments] | None = None,
    ) -> Tensor:
        """Pictures of `planes`, which `content` encodes; strength fades them into the content."""
        made = self.render(content, mix, mode, stats)
        return made if strength == 1 else planes.lerp(made, strength)

    def measure_images(self, images: Tensor) -> list[Moments]:
        """The content's statistics that are taken from the pictures themselves."""
        return []

    def forward(self, images: Tensor, code: ModulatedStyle, mode: str | None = None) -> Tensor:
        return self.render(self.encode(images), [(code, lambda x: 1.0)], mode)
