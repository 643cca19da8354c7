"""A panning camera in front of painted layers, and the exact motion of every pixel.

A near layer moves more than a far one; lake and meadow move row by row, as planes in perspective. Boat
and balloon also have a motion of their own. The map of every layer is known, therefore also the flow
between two frames and the occlusion: a point is occluded when another layer is in front of its new
position, or when that is outside the frame.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import scenery
from .painting import Array, Painting

ORDER = ("sky", "mountains", "balloon", "woods", "lake", "boat", "meadow", "house", "tree")  # back to front
Pose = tuple[float, float, float]  # position (x, y) of a layer's origin, and its rotation


@dataclass
class Layer:
    """A painting that moves with the camera by `near` (a number, or one per row), or by `pose`."""

    painting: Painting
    near: float | Array = 1.0
    pose: Callable[[float], Pose] | None = None


@lru_cache(2)  # the two scenes of the last sample
def _paint(
    size: tuple[int, int], light: scenery.Light, seed: int, stage: tuple[float, float]
) -> tuple[tuple[str, Painting, float | Array], ...]:
    """The painted layers, back to front: name, painting, nearness."""
    scale, wide = 2 * size[1] / 288, size[0] / size[1] * 288
    random = dict(zip(ORDER, np.random.default_rng(seed).spawn(len(ORDER)), strict=True))
    far, slope = 2.1, 0.024  # nearness of the horizon, and how it grows towards the camera

    def strip(name: str, near: float) -> Painting:
        margin = 24.5 * near + 4
        return getattr(scenery, name)(random[name], -margin, wide + 2 * margin, scale, light)

    def plane(name: str) -> tuple[str, Painting, Array]:
        painting = strip(name, far + slope * 140)
        return name, painting, far + slope * np.maximum(painting.y[:, 0] - scenery.HORIZON, 0)

    house = scenery.house(random["house"], wide / 2 + stage[0], 228, scale, light)
    tree = scenery.tree(random["tree"], wide / 2 + stage[1], 276, 240, scale, light)
    return (
        ("sky", strip("sky", 1.6), 1.6),
        ("mountains", strip("mountains", 1.8), 1.8),
        ("balloon", scenery.balloon(random["balloon"], scale, light), 0.0),
        ("woods", strip("woods", far), far),
        plane("lake"),
        ("boat", scenery.boat(random["boat"], scale, light), 0.0),
        plane("meadow"),
        ("house", house, far + slope * (228 - scenery.HORIZON)),
        ("tree", tree, 5.2),
    )


class Camera:
    """A camera that pans in front of painted layers."""

    def __init__(
        self,
        size: tuple[int, int],
        light: scenery.Light,
        seed: int,
        pan: Callable[[float], float],
        stage: tuple[float, float] = (112, -156),
    ):
        """`pan(t)` is the camera's position at frame t; `stage` has the positions of house and tree."""
        self.size, self.pan = size, pan
        self.unit = size[1] / 288
        self._labels = lru_cache(2)(self._labels_at)  # each frame is used by its two neighbours
        own = {"balloon": self._balloon, "boat": self._boat}
        self.layers = [
            Layer(painting, near, own.get(name)) for name, painting, near in _paint(size, light, seed, stage)
        ]

    def _balloon(self, t: float) -> Pose:
        s = np.sin(np.pi * (t - 24) / 96)
        return 275 - 50 * s - 0.9 * self.pan(t), 74 - 14 * s + 2.5 * np.sin(t / 9), 0.09 * np.sin(t / 11)

    def _boat(self, t: float) -> Pose:
        s = np.sin(np.pi * (t - 24) / 96)
        return 215 + 150 * s - 1.0 * self.pan(t), 190 + 0.7 * np.sin(t / 5), 0.045 * np.sin(t / 6.5)

    # -- positions ----------------------------------------------------------------------------------

    def _tilt(self, t: float) -> float:
        """A small vertical motion of the camera that follows the pan."""
        return 2.5 * np.sin(self.pan(t) / 8)

    def _to_layer(self, layer: Layer, x: Array, y: Array, t: float) -> tuple[Array, Array]:
        """Units in the frame to units on the painting."""
        y = y - self._tilt(t)
        if layer.pose:
            px, py, angle = layer.pose(t)
            c, s = np.cos(angle), np.sin(angle)
            return c * (x - px) + s * (y - py), c * (y - py) - s * (x - px)
        return x + self._near(layer, y) * self.pan(t), y

    def _to_frame(self, layer: Layer, u: Array, v: Array, t: float) -> tuple[Array, Array]:
        """Units on the painting to units in the frame."""
        if layer.pose:
            px, py, angle = layer.pose(t)
            c, s = np.cos(angle), np.sin(angle)
            return c * u - s * v + px, c * v + s * u + py + self._tilt(t)
        return u - self._near(layer, v) * self.pan(t), v + self._tilt(t)

    @staticmethod
    def _near(layer: Layer, v: Array) -> Array | float:
        return layer.near if np.isscalar(layer.near) else np.interp(v, layer.painting.y[:, 0], layer.near)

    def _texel(self, painting: Painting, u: Array, v: Array) -> tuple[Array, Array]:
        """Pixel positions on a painting; 0 is the centre of the first pixel."""
        return (u - painting.left) * painting.scale - 0.5, (v - painting.top) * painting.scale - 0.5

    # -- rendering ----------------------------------------------------------------------------------

    def frame(self, t: float) -> Array:
        """The picture [H, W, 3] at frame t, with 2 x 2 samples per pixel."""
        width, height = self.size
        out = np.zeros((height, width, 3), np.float32)
        for layer in self.layers:
            rows, columns, rgba = self._sprite(layer, t) if layer.pose else self._strip(layer, t)
            out[rows, columns] *= 1 - rgba[..., 3:]
            out[rows, columns] += rgba[..., :3]
        return out.clip(0, 1)

    def mask(self, t: float, names: Collection[str]) -> Array:
        """Where the named layers are seen at frame t [H, W, 3]: white."""
        out = np.zeros((*self.size[::-1], 3), np.float32)
        for name, layer in zip(ORDER, self.layers, strict=True):
            rows, columns, rgba = self._sprite(layer, t) if layer.pose else self._strip(layer, t)
            out[rows, columns] *= 1 - rgba[..., 3:]
            if name in names:
                out[rows, columns] += rgba[..., 3:]
        return out.clip(0, 1)

    def _strip(self, layer: Layer, t: float) -> tuple[slice, slice, Array]:
        """A layer without rotation: three weighted rows, then three weighted columns, per pixel."""
        painting, (width, height) = layer.painting, self.size
        top = (
            -(painting.top + self._tilt(t)) * painting.scale
        )  # the painting row of the frame's first half-row
        first = max(int(np.ceil(-top / 2)), 0)
        last = min(int(np.floor((painting.shape[0] - 3 - top) / 2)) + 1, height)
        rows = _thirds(painting.rgba, 2 * first + top, max(last - first, 0))
        if np.isscalar(layer.near):
            left = (layer.near * self.pan(t) - painting.left) * painting.scale
            start, stop = (
                max(int(np.ceil(-left / 2)), 0),
                min(int((painting.shape[1] - 3 - left) // 2) + 1, width),
            )
            strip = _thirds(rows.swapaxes(0, 1), 2 * start + left, max(stop - start, 0)).swapaxes(0, 1)
            return slice(first, last), slice(start, stop), strip
        middle = (np.arange(first, last) + 0.5) / self.unit - self._tilt(t)
        left = (self._near(layer, middle) * self.pan(t) - painting.left) * painting.scale
        base = np.floor(left).astype(int)
        f = (left - base).astype(np.float32)[:, None, None]
        line = np.arange(len(base))[:, None]
        at = base[:, None] + 2 * np.arange(width)[None]
        strip = 0.5 * ((1 - f) * rows[line, at] + rows[line, at + 1] + f * rows[line, at + 2])
        return slice(first, last), slice(0, width), strip

    def _sprite(self, layer: Layer, t: float) -> tuple[slice, slice, Array]:
        """A layer with rotation: a bilinear lookup for each half-pixel of its bounding box."""
        painting = layer.painting
        corners = self._to_frame(layer, painting.x[0, [0, 0, -1, -1]], painting.y[[0, -1, 0, -1], 0], t)
        columns, rows = (
            slice(
                int(np.clip(c.min() * self.unit - 1, 0, most)), int(np.clip(c.max() * self.unit + 2, 0, most))
            )
            for c, most in zip(corners, self.size, strict=True)
        )
        y = (np.arange(2 * rows.start, 2 * rows.stop) + 0.5)[:, None] / painting.scale
        x = (np.arange(2 * columns.start, 2 * columns.stop) + 0.5)[None] / painting.scale
        j, i = self._texel(painting, *self._to_layer(layer, x, y, t))
        i0, j0 = np.floor(i).astype(int), np.floor(j).astype(int)
        fi, fj = (i - i0)[..., None].astype(np.float32), (j - j0)[..., None].astype(np.float32)
        padded = np.pad(painting.rgba, ((1, 1), (1, 1), (0, 0)))
        i0, j0 = i0.clip(-1, painting.shape[0] - 1) + 1, j0.clip(-1, painting.shape[1] - 1) + 1
        top = padded[i0, j0] * (1 - fj) + padded[i0, j0 + 1] * fj
        low = padded[i0 + 1, j0] * (1 - fj) + padded[i0 + 1, j0 + 1] * fj
        full = top * (1 - fi) + low * fi
        return rows, columns, full.reshape(len(y) // 2, 2, x.size // 2, 2, 4).mean((1, 3))

    def seen(self, x: Array, y: Array, t: float) -> Array:
        """The number of the frontmost layer at points of the frame (flat arrays, in units)."""
        which = np.zeros(x.shape, np.int8)
        open_ = np.arange(x.size)
        for number in range(len(self.layers) - 1, 0, -1):
            layer = self.layers[number]
            j, i = self._texel(layer.painting, *self._to_layer(layer, x[open_], y[open_], t))
            i, j = np.rint(i).astype(int), np.rint(j).astype(int)
            high, wide = layer.painting.shape
            hit = (i >= 0) & (i < high) & (j >= 0) & (j < wide)
            hit[hit] = layer.painting.rgba[i[hit], j[hit], 3] > 0.5
            which[open_[hit]] = number
            open_ = open_[~hit]
        return which

    def motion(self, t: float, to: float) -> tuple[Array, Array]:
        """Flow [H, W, 2] in pixels from frame `t` to frame `to`, and the occluded pixels."""
        width, height = self.size
        x = np.tile((np.arange(width) + 0.5) / self.unit, height)
        y = np.repeat((np.arange(height) + 0.5) / self.unit, width)
        which = self._labels(t)
        x2, y2 = np.empty_like(x), np.empty_like(y)
        for number, layer in enumerate(self.layers):
            at = np.flatnonzero(which == number)
            x2[at], y2[at] = self._to_frame(layer, *self._to_layer(layer, x[at], y[at], t), to)
        edge = 0.5 / self.unit
        outside = (
            (x2 < edge) | (x2 > width / self.unit - edge) | (y2 < edge) | (y2 > height / self.unit - edge)
        )
        hidden = outside | (self.seen(x2, y2, to) != which)
        flow = (
            np.stack([x2 - x, y2 - y], -1).round(9).astype(np.float32) * self.unit
        )  # exactly 0 without motion
        return flow.reshape(height, width, 2), hidden.reshape(height, width)

    def _labels_at(self, t: float) -> Array:
        width, height = self.size
        x = np.tile((np.arange(width) + 0.5) / self.unit, height)
        y = np.repeat((np.arange(height) + 0.5) / self.unit, width)
        return self.seen(x, y, t)


def _thirds(texture: Array, start: float, count: int) -> Array:
    """The mean of two half-pixel samples between neighbouring texels, at every second texel of axis 0."""
    base = int(np.floor(start))
    f = np.float32(start - base)
    a, b, c = (texture[base + k : base + k + 2 * count : 2][:count] for k in range(3))
    return (0.5 - 0.5 * f) * a + 0.5 * b + (0.5 * f) * c
