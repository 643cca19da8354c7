"""AttnStyle's network (section 3.2): a light U-Net with cross-attention from decoder to encoder.

Three halvings, 16 to 128 channels, 1.1 million parameters. At the two coarsest decoder levels the decoder's
features are the queries, and the encoder's features of the same level are the keys and values:

    F_styl = norm(decoder),   A(F_cont) = W_o softmax(W_q F_styl (W_k F_cont)^T / sqrt(d)) W_v F_cont

and the decoder continues with decoder + A(F_cont). The alignment loss compares the pairs (F_styl, A). The
paper only says "intermediate layers"; these choices are ours:

- Features are normalized over channels before they become F_styl and F_cont. Otherwise the loss
  ||F_styl - A||^2 would be smallest when both are zero.
- Keys and values are averaged to at most 32x32 positions, so that memory and time grow linearly with the
  number of pixels.
- The output is x + sigmoid(logit(x) + h) - sigmoid(logit(x)), where h is the last layer, which starts at
  zero. So an untrained network returns its input bit for bit, and colours leave 0..1 by at most 2%, which
  the final clamp removes.
- Group normalization over the whole frame is used once per block, in parallel to a path without
  normalization, so that brightness and contrast reach the output.

Any size is possible: odd sides are rounded up by the encoder, and the decoder resizes to its skip maps.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu, interpolate, pad

from ...kernels.attention import attend

WIDTHS = (16, 32, 64, 128)
HEADS = 4
MEMORY_SIDE = 32
RIM = 0.02  # how close to black and white the logit goes

FeaturePair = tuple[Tensor, Tensor]
"""Stylized features F_styl and the aligned content features A(F_cont), both [N, C, h, w]."""


def conv3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 without padding: `UNetBlock` repeats the edge pixels, so that a map of one pixel works."""
    return nn.Conv2d(channels_in, channels_out, 3, stride)


class UNetBlock(nn.Module):
    """Two 3x3 convolutions around one normalization, plus a 1x1 path."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.first = conv3(channels_in, channels_out)
        self.norm = nn.GroupNorm(channels_out // 8, channels_out)
        self.second = conv3(channels_out, channels_out)
        self.beside = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = gelu(self.norm(self.first(_edges(x))))
        return gelu(self.second(_edges(h))) + self.beside(x)


def _edges(x: Tensor) -> Tensor:
    return pad(x, (1, 1, 1, 1), mode="replicate")


class CrossAttention(nn.Module):
    """Attention from decoder features to content features; gives new features and the pair for the loss."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_styl = nn.GroupNorm(channels // 8, channels, affine=False)
        self.norm_cont = nn.GroupNorm(channels // 8, channels, affine=False)
        self.query, self.key, self.value, self.out = (
            nn.Conv2d(channels, channels, 1, bias=False) for _ in range(4)
        )

    def forward(self, styl: Tensor, cont: Tensor) -> tuple[Tensor, FeaturePair]:
        h, w = styl.shape[-2:]
        f_styl = self.norm_styl(styl)
        f_cont = adaptive_avg_pool2d(self.norm_cont(cont), (min(h, MEMORY_SIDE), min(w, MEMORY_SIDE)))
        q, k, v = (_heads(f(x)) for f, x in ((self.query, f_styl), (self.key, f_cont), (self.value, f_cont)))
        found = attend(q, k, v).transpose(-1, -2).flatten(1, 2).unflatten(-1, (h, w))
        aligned = self.out(found)
        return styl + aligned, (f_styl, aligned)


def _heads(x: Tensor) -> Tensor:
    """[N, C, h, w] to [N, heads, positions, C / heads]."""
    return x.flatten(2).unflatten(1, (HEADS, -1)).transpose(-1, -2)


class AttnStyleNet(nn.Module):
    """Pictures [N, 3, H, W] in 0..1 to stylized pictures of the same size."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        if len(widths) < 3 or any(w % 8 for w in widths):
            raise ValueError(f"the widths {widths} are not three or more multiples of 8")
        self.widths = tuple(widths)
        deeper = list(pairwise(widths))
        self.enter = UNetBlock(3, widths[0])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2) for a, b in deeper)
        self.encode = nn.ModuleList(UNetBlock(b, b) for _, b in deeper)
        self.bottom = UNetBlock(widths[-1], widths[-1])
        self.look_bottom = CrossAttention(widths[-1])
        self.up = nn.ModuleList(UNetBlock(a + b, a) for a, b in reversed(deeper))
        self.look = CrossAttention(widths[-2])
        self.leave = nn.Conv2d(widths[0], 3, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_features(x)[0]

    def with_features(self, x: Tensor) -> tuple[Tensor, list[FeaturePair]]:
        """The stylized pictures and the pairs for the alignment loss, coarsest first."""
        skips = [self.enter(x * 2 - 1)]
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(encode(gelu(down(_edges(skips[-1])))))
        h, pair = self.look_bottom(self.bottom(skips[-1]), skips[-1])
        pairs = [pair]
        for level, up in enumerate(self.up):
            skip = skips[-2 - level]
            h = interpolate(h, skip.shape[-2:], mode="bilinear", align_corners=False)
            h = up(torch.cat([h, skip], dim=1))
            if level == 0:
                h, pair = self.look(h, skip)
                pairs.append(pair)
        return recolor(x, self.leave(h)), pairs


def recolor(x: Tensor, h: Tensor) -> Tensor:
    """Move colours along the logistic curve by h; h = 0 returns x bit for bit."""
    logit = x.clamp(RIM, 1 - RIM).logit()
    return (x + (torch.sigmoid(logit + h) - torch.sigmoid(logit))).clamp(0, 1)
