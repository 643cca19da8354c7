"""The A2K module: all-to-key attention with its 1x1 convolutions, shared by both StyA2K networks.

The parameter names are those of the official files (q, k, v for distributed attention; q2, k2, v2 for
progressive; fusion1, fusion2; sim_alpha, sim_beta), so their weights load without conversion. `encode`
computes what depends on the style, once; `forward` applies it to N content frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.all_to_key import (
    Arithmetic,
    KeyRegions,
    all_to_all_attention,
    distribute,
    distributed_attention,
    progressive_attention,
    regions_of,
)
from ...kernels.moments import moments

Moments = tuple[Tensor, Tensor]

MODES = ("all-to-key", "distributed only", "progressive only", "no region matching")
KINDS = (*MODES, "all-to-all", "adain", "one head")  # what a network can be trained as: Tables 2 and 3


@dataclass(frozen=True)
class StyleCode:
    """What one A2K module stores of a style."""

    mean: Tensor
    std: Tensor
    keys: tuple[Tensor, Tensor] | None = None
    regions: KeyRegions | None = None
    points: tuple[Tensor, Tensor] | None = None  # all-to-all


def rescale(x: Tensor, own: Moments, wanted: Moments) -> Tensor:
    """x with other moments (AdaIN), in one pass."""
    scale = wanted[1] / own[1]
    return torch.addcmul(wanted[0] - own[0] * scale, x, scale)


class A2K(nn.Module):
    """Eq. 14. `adapt` gives the content term the style's moments (ours); the paper adds it unchanged.
    `inner` is the width of the progressive part, which costs most: the paper's is that of the map."""

    def __init__(
        self, channels: int, how: Arithmetic, *, kind: str = "all-to-key", adapt: bool = False, inner: int = 0
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"attention {kind!r} is not known: one of {', '.join(KINDS)}")
        self.how, self.kind, self.adapt = how, kind, adapt
        for name in ("q", "k", "v", "fusion1"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))
        inner = inner or channels
        for name in ("q2", "k2", "v2"):
            setattr(self, name, nn.Conv2d(channels, inner, 1))
        self.fusion2 = nn.Conv2d(inner, channels, 1)
        self.sim_alpha = nn.Parameter(torch.ones(1))
        self.sim_beta = nn.Parameter(torch.zeros(1))

    def silence(self) -> None:
        """Set the output weights to zero, so that attention adds nothing at the start of a training."""
        with torch.no_grad():
            for fusion in (self.fusion1, self.fusion2):
                fusion.weight.zero_()
                fusion.bias.zero_()

    @property
    def mode(self) -> str:
        """The default attention mode: the trained one if it is one of MODES, else all-to-key."""
        return self.kind if self.kind in MODES else "all-to-key"

    def encode(self, style: Tensor) -> StyleCode:
        """A style's features, once for all frames."""
        mean, std = moments(style)
        if self.kind == "adain":
            return StyleCode(mean, std)
        norm = (style - mean) / std
        k, v = self.k(norm), self.v(style)
        if self.kind == "all-to-all":
            return StyleCode(mean, std, points=(k, v))
        keys = distribute(k, v, self.how, self.sim_alpha, self.sim_beta)
        return StyleCode(mean, std, keys, regions_of(self.k2(norm), self.v2(style), self.how))

    def forward(
        self, content: Tensor, code: StyleCode, mode: str | None = None, stats: Moments | None = None
    ) -> Tensor:
        """Transfer N content maps. For a tile, `stats` are the moments of the whole frame's maps."""
        own = stats or moments(content)
        norm = (content - own[0]) / own[1]
        adapts = self.adapt or self.kind == "adain"
        adapted = rescale(content, own, (code.mean, code.std)) if adapts else content
        if self.kind == "adain":
            return adapted
        if self.kind == "all-to-all":
            return adapted + self.fusion1(all_to_all_attention(self.q(norm), *code.points, self.how))
        mode, out = mode or self.mode, adapted
        if mode != "progressive only":
            out = out + self.fusion1(distributed_attention(self.q(norm), *code.keys, self.how))
        if mode != "distributed only":
            match = mode != "no region matching"
            out = out + self.fusion2(
                progressive_attention(self.q2(norm), code.regions, self.how, match=match)
            )
        return out
