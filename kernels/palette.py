"""Colour clouds matched beyond their moments: a picture's palette onto another's, as a small 3D table.

`moments.match_colors` gives a picture the reference's mean and covariance; palettes have more shape than
that (a drawing is paper and ink, not a Gaussian). After that linear map the clouds are matched along one
basis after another, each axis by the monotone curve between the two distributions: Pitie, Kokaram and
Dahyot's iterative distribution transfer with three fixed bases. Departures: curves have few knots and
never rise by more than `BEND`, so that neither noise nor a codec's blocks in a flat sky become a palette
(a bend of 4 and a finer table match a sixth better and show them); and the composed map is tabulated over the
colour cube, coarsely, which smooths it, and looked up trilinearly, so that a large picture costs one
lookup per pixel, whatever the bases and knots.

Shapes: x [N, 3, H, W] in 0..1; samples [N, 3, M] (`sample`; sizes may differ between pictures, a
reference may be one for all, and may be described once for many: `describe`); tables [N, 3, D, D, D],
indexed by blue, green, red. Nothing here has gradients.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .moments import color_map

KNOTS = 24
SIDE = 9  # points of the table along each axis
GAIN, BEND = 3.0, 1.5  # how far the linear map and each curve may spread colours
POINTS = 64  # pixels a side that stand for a picture
STRIPS = 8  # of a picture: torch looks up a batch's items side by side, not an item's rows


class Reference(NamedTuple):
    """What a table needs of the picture whose palette it gives: moments, and quantiles in each basis."""

    mean: Tensor
    cov: Tensor
    quantiles: tuple[Tensor, ...]


@cache
def _bases(device: torch.device) -> tuple[Tensor, ...]:
    """Three orthogonal bases, far from each other: the colour axes, and two turned against them. Made once
    per device: a step that is recorded as a CUDA graph may not bring anything there."""
    third, half, sixth = 3**-0.5, 0.5**0.5, 6**-0.5
    opponent = torch.tensor([[third, third, third], [half, -half, 0], [sixth, sixth, -2 * sixth]])
    turned = torch.tensor([[2.0, 2, -1], [-1, 2, 2], [2, -1, 2]]) / 3
    return tuple(basis.to(device) for basis in (torch.eye(3), opponent, turned))


@torch.no_grad()
def sample(x: Tensor, points: int = POINTS) -> Tensor:
    """Pixels on a grid that stand for each picture: [N, 3, M], single precision."""
    step = [max(1, side // points) for side in x.shape[-2:]]
    return x[..., :: step[0], :: step[1]].flatten(2).float()


def _moments(s: Tensor) -> tuple[Tensor, Tensor]:
    mean = s.mean(-1)
    centred = s - mean[..., None]
    return mean, centred @ centred.transpose(1, 2) / max(s.shape[-1] - 1, 1)


def _sorted(s: Tensor) -> Tensor:
    """Each row in order; numpy does it five times faster than torch on a CPU."""
    if s.device.type != "cpu":
        return s.sort(-1).values
    ordered = s.clone(memory_format=torch.contiguous_format)
    ordered.numpy().sort(-1)
    return ordered


def _quantiles(s: Tensor) -> Tensor:
    """KNOTS quantiles of each row, the outermost ones just inside the extremes."""
    ordered, last = _sorted(s), s.shape[-1] - 1
    at = torch.linspace(0.005, 0.995, KNOTS, device=s.device) * last
    low = at.floor().long()
    return ordered[..., low].lerp(ordered[..., (low + 1).clamp(max=last)], at - low)


def _curve(x: Tensor, y: Tensor) -> Tensor:
    """y over the knots x, anchored in the middle, rising by at most BEND times what x rises."""
    rise = torch.minimum(y.diff(dim=-1), BEND * x.diff(dim=-1))
    path = torch.cat([torch.zeros_like(y[..., :1]), rise.cumsum(-1)], -1)
    middle = KNOTS // 2
    return path - path[..., middle : middle + 1] + y[..., middle : middle + 1]


def _follow(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The curve (x, y) [N, 3, K] at v [N, 3, P]; beyond its ends it goes on at slope 1."""
    inner = v.clamp(x[..., :1], x[..., -1:])
    at = torch.searchsorted(x.contiguous(), inner.contiguous()).clamp(1, KNOTS - 1)
    x0, x1, y0, y1 = (t.gather(-1, i) for t in (x, y) for i in (at - 1, at))
    return y0 + (y1 - y0) * ((inner - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1) + (v - inner)


@torch.no_grad()
def describe(reference: Tensor) -> Reference:
    """A sample [N, 3, M] as a reference."""
    with torch.autocast(reference.device.type, enabled=False):
        turned = (basis @ reference for basis in _bases(reference.device))
        return Reference(*_moments(reference), tuple(map(_quantiles, turned)))


@torch.no_grad()
def palette_table(content: Tensor, reference: Tensor | Reference) -> Tensor:
    """The map from one sample's palette to another's, tabulated: [N, 3, SIDE, SIDE, SIDE]."""
    if isinstance(reference, Tensor):
        reference = describe(reference)
    with torch.autocast(content.device.type, enabled=False):  # bfloat16 would leave 8 bits of a colour
        return _table(content, reference)


def _table(content: Tensor, reference: Reference) -> Tensor:
    axis = torch.linspace(0, 1, SIDE, device=content.device)
    blue, green, red = torch.meshgrid(axis, axis, axis, indexing="ij")
    cube = torch.stack([red, green, blue]).flatten(1).expand(len(content), -1, -1)
    matrix, offset = color_map(_moments(content), reference[:2], GAIN)
    here, cube = (matrix @ t + offset[..., None] for t in (content, cube))
    for basis, y in zip(_bases(here.device), reference.quantiles, strict=True):
        turned = basis @ here
        x = _quantiles(turned)
        y = _curve(x, y.expand_as(x))
        here, cube = (basis.T @ _follow(t, x, y) for t in (turned, basis @ cube))
    return cube.reshape(len(content), 3, SIDE, SIDE, SIDE)


@torch.no_grad()
def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Every pixel's colour through the table, between its points trilinearly."""
    n, _, h, w = x.shape
    strips = math.gcd(h, STRIPS)
    places = x.float().clamp(0, 1).mul_(2).sub_(1).permute(0, 2, 3, 1)
    made = functional.grid_sample(
        table.expand(n, -1, -1, -1, -1).repeat_interleave(strips, 0),
        places.reshape(n * strips, 1, h // strips, w, 3),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return made.view(n, strips, 3, h // strips, w).transpose(1, 2).reshape(x.shape).to(x.dtype)


def match_palette(x: Tensor, reference: Tensor) -> Tensor:
    """x in the reference's palette; not clamped to 0..1."""
    return look_up(x, palette_table(sample(x), sample(reference)))
