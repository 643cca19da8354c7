"""Palette transfer: the colour distribution of one picture mapped to another's, as a small 3D table.

`moments.color_map` transfers mean and covariance. Palettes are not Gaussian (a drawing has paper and
ink), so after that linear map the distributions are matched along one basis after another, each axis by
the monotone curve between the two distributions. This is the iterative distribution transfer of Pitie,
Kokaram and Dahyot with three fixed bases. Departures: (1) curves have few knots and a slope of at most
`BEND`, so that noise and compression blocks in a flat sky are not amplified into new colours (a slope of 4
and a finer table match 17% better, but show them). (2) The composed map is stored in a coarse table over
the colour cube, which smooths it, and is interpolated trilinearly: one lookup per pixel.

Shapes: x [N, 3, H, W] in 0..1; samples [N, 3, M] (`sample`; M may differ between pictures, and one
reference may serve all: `describe`); tables [N, 3, D, D, D], indexed by blue, green, red. No gradients.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .moments import color_map, color_moments

KNOTS = 24
SIDE = 9  # points of the table along each axis
GAIN, BEND = 3.0, 1.5  # largest factor of the linear map, largest slope of a curve
POINTS = 64  # samples per side of a picture
STRIPS = 8  # per picture: torch runs the items of a batch in parallel, but not the rows of an item


class PaletteReference(NamedTuple):
    """What a table needs of the reference picture: moments, and quantiles in each basis."""

    mean: Tensor
    cov: Tensor
    quantiles: tuple[Tensor, ...]


@cache
def _bases(device: torch.device) -> tuple[Tensor, ...]:
    """Three orthogonal bases. Cached per device, because a CUDA graph cannot copy from the CPU."""
    third, half, sixth = 3**-0.5, 0.5**0.5, 6**-0.5
    opponent = torch.tensor([[third, third, third], [half, -half, 0], [sixth, sixth, -2 * sixth]])
    turned = torch.tensor([[2.0, 2, -1], [-1, 2, 2], [2, -1, 2]]) / 3
    return tuple(basis.to(device) for basis in (torch.eye(3), opponent, turned))


@torch.no_grad()
def sample(x: Tensor, points: int = POINTS) -> Tensor:
    """The pixels of each picture on a coarse grid: [N, 3, M], float32."""
    step = [max(1, side // points) for side in x.shape[-2:]]
    return x[..., :: step[0], :: step[1]].flatten(2).float()


def _sorted(s: Tensor) -> Tensor:
    """Each row sorted; numpy does it five times faster than torch on a CPU."""
    if s.device.type != "cpu":
        return s.sort(-1).values
    ordered = s.clone(memory_format=torch.contiguous_format)
    ordered.numpy().sort(-1)
    return ordered


def _quantiles(s: Tensor) -> Tensor:
    """KNOTS quantiles of each row, from just above its minimum to just below its maximum."""
    ordered, last = _sorted(s), s.shape[-1] - 1
    at = torch.linspace(0.005, 0.995, KNOTS, device=s.device) * last
    low = at.floor().long()
    return ordered[..., low].lerp(ordered[..., (low + 1).clamp(max=last)], at - low)


def _curve(x: Tensor, y: Tensor) -> Tensor:
    """y over the knots x, with slopes limited to BEND, fixed at the middle knot."""
    rise = torch.minimum(y.diff(dim=-1), BEND * x.diff(dim=-1))
    path = torch.cat([torch.zeros_like(y[..., :1]), rise.cumsum(-1)], -1)
    middle = KNOTS // 2
    return path - path[..., middle : middle + 1] + y[..., middle : middle + 1]


def _follow(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The curve (x, y) [N, 3, K] at v [N, 3, P]; beyond its ends the slope is 1."""
    inner = v.clamp(x[..., :1], x[..., -1:])
    at = torch.searchsorted(x.contiguous(), inner.contiguous()).clamp(1, KNOTS - 1)
    x0, x1, y0, y1 = (t.gather(-1, i) for t in (x, y) for i in (at - 1, at))
    return y0 + (y1 - y0) * ((inner - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1) + (v - inner)


@torch.no_grad()
def describe(reference: Tensor) -> PaletteReference:
    """A sample [N, 3, M] as a reference."""
    with torch.autocast(reference.device.type, enabled=False):
        turned = (basis @ reference for basis in _bases(reference.device))
        return PaletteReference(*color_moments(reference), tuple(map(_quantiles, turned)))


@torch.no_grad()
def palette_table(content: Tensor, reference: Tensor | PaletteReference) -> Tensor:
    """The table that maps the palette of one sample to that of another: [N, 3, SIDE, SIDE, SIDE]."""
    if isinstance(reference, Tensor):
        reference = describe(reference)
    with torch.autocast(content.device.type, enabled=False):  # bfloat16 has 8 bits, too few for colours
        return _table(content, reference)


def _table(content: Tensor, reference: PaletteReference) -> Tensor:
    axis = torch.linspace(0, 1, SIDE, device=content.device)
    blue, green, red = torch.meshgrid(axis, axis, axis, indexing="ij")
    cube = torch.stack([red, green, blue]).flatten(1).expand(len(content), -1, -1)
    matrix, offset = color_map(color_moments(content), reference[:2], GAIN)
    here, cube = (matrix @ t + offset[..., None] for t in (content, cube))
    for basis, y in zip(_bases(here.device), reference.quantiles, strict=True):
        turned = basis @ here
        x = _quantiles(turned)
        y = _curve(x, y.expand_as(x))
        here, cube = (basis.T @ _follow(t, x, y) for t in (turned, basis @ cube))
    return cube.reshape(len(content), 3, SIDE, SIDE, SIDE)


@torch.no_grad()
def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Every pixel's colour through the table, with trilinear interpolation."""
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
