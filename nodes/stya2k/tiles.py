"""Positions of tiles, and statistics summed over them.

Tiles start on the grid of the attention's regions and include a border as wide as the receptive field. So
the inside of a tile equals that part of the whole frame's result, given the whole frame's statistics, which
are summed over the insides of all tiles.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.moments import EPS


def cell(pixels: int, cells: int) -> int:
    """Pixels per side of a map's cell. Maps are rounded up to whole cells."""
    return 1 << math.ceil(math.log2(max(1.0, pixels / cells)))


@dataclass(frozen=True)
class Box:
    """A tile (y, x, h, w) and the box with its border (top, left, bottom, right)."""

    y: int
    x: int
    h: int
    w: int
    top: int
    left: int
    bottom: int
    right: int

    def outer(self, planes: Tensor) -> Tensor:
        return planes[..., self.top : self.bottom, self.left : self.right].contiguous(
            memory_format=torch.channels_last
        )

    def inner(self, m: Tensor, size: tuple[int, int]) -> Tensor:
        """The tile's own part of a map of the outer box."""
        step = cell(size[0], m.shape[-2])
        y, x = (self.y - self.top) // step, (self.x - self.left) // step
        return m[..., y : y + -(-self.h // step), x : x + -(-self.w // step)]


def boxes(size: tuple[int, int], tile: int, reach: int, align: int) -> Iterator[Box]:
    """The tiles of a frame."""
    reach = -(-reach // align) * align
    for y in range(0, size[0], tile):
        for x in range(0, size[1], tile):
            h, w = min(tile, size[0] - y), min(tile, size[1] - x)
            ends = min(size[0], y + h + reach), min(size[1], x + w + reach)
            yield Box(y, x, h, w, max(0, y - reach), max(0, x - reach), *ends)


class Sums:
    """Counts, sums and sums of squares of a frame's maps, accumulated over its tiles."""

    def __init__(self) -> None:
        self._levels: list[list[Tensor]] = []

    def add(self, maps: Iterable[Tensor], size: tuple[int, int], box: Box) -> None:
        """Add the maps of a tile and its border, `size` pixels. Only its inside counts."""
        for level, m in enumerate(maps):
            flat = box.inner(m, size).double().flatten(2)
            count = torch.tensor(flat.shape[-1], device=flat.device)
            found = [count, flat.sum(-1), flat.square().sum(-1)]
            if level == len(self._levels):
                self._levels.append(found)
            else:
                self._levels[level] = [a + b for a, b in zip(self._levels[level], found, strict=True)]

    def stats(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """The result of `measure` for the whole frame's maps."""
        return [_moments(*level, dtype) for level in self._levels]


def _moments(count: Tensor, total: Tensor, square: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, rest = total / count, (count - 1).clamp_min(1)
    var = (square - count * mean.square()).clamp_min(0) / rest
    return mean[..., None, None].to(dtype), (var + EPS).sqrt()[..., None, None].to(dtype)
