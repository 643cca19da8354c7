"""Drawing tools of the sample: smooth noise, shapes by signed distance, a premultiplied RGBA painting.

All lengths are in *units*: a frame of the sample is 288 units high, so the scene can be drawn at any size.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Color = tuple[float, float, float]


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array | Color, b: Array | Color, t: Array | float) -> Array:
    """From color `a` to color `b` by `t` [...]; the result has a last axis of colors."""
    t = np.asarray(t, np.float32)[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def ramp(x: Array, *stops: tuple[float, Color]) -> Array:
    """A gradient through (position, color) stops."""
    at = [position for position, _ in stops]
    return np.stack([np.interp(x, at, [color[c] for _, color in stops]) for c in range(3)], -1).astype(
        np.float32
    )


def _spline(count: int, cell: float, offset: float) -> tuple[NDArray[np.intp], Array]:
    """Cubic B-spline interpolation: the four grid points of each of `count` pixels, and their weights."""
    at = (np.arange(count) + 0.5) / cell + offset
    base = np.floor(at).astype(np.intp)
    f = (at - base).astype(np.float32)
    weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3]) / 6
    return base + np.arange(4)[:, None], weights


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    cell: float | tuple[float, float],
    octaves: int = 4,
    gain: float = 0.5,
) -> Array:
    """Fractal noise [H, W], mean 0 and deviation 1; `cell` is the largest feature in pixels."""
    high, wide = cell if isinstance(cell, tuple) else (cell, cell)
    out = np.zeros(shape, np.float32)
    for octave in range(octaves):
        tall, broad = max(high / 2**octave, 1.0), max(wide / 2**octave, 1.0)
        rows, row_weights = _spline(shape[0], tall, rng.random())
        columns, column_weights = _spline(shape[1], broad, rng.random())
        grid = rng.standard_normal((rows.max() + 1, columns.max() + 1), dtype=np.float32)
        lines = sum(row_weights[k][:, None] * grid[rows[k]] for k in range(4))
        out += gain**octave * sum(column_weights[k] * lines[:, columns[k]] for k in range(4))
    return (out - out.mean()) / max(float(out.std()), 1e-6)


def ellipse(x: Array, y: Array, center: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Distance to an ellipse, negative inside (exact on a circle, close near the edge elsewhere)."""
    u, v = (x - center[0]) / radii[0], (y - center[1]) / radii[1]
    k = np.hypot(u, v)
    slope = np.hypot(u / radii[0], v / radii[1]) / np.maximum(k, 1e-6)
    return ((k - 1) / np.maximum(slope, 1e-6)).astype(np.float32)


def polygon(x: Array, y: Array, points: list[tuple[float, float]]) -> Array:
    """Distance to a polygon, negative inside."""
    distance = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
    inside = np.zeros(distance.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        t = np.clip((px * ex + py * ey) / max(ex * ex + ey * ey, 1e-9), 0, 1)
        distance = np.minimum(distance, np.hypot(px - t * ex, py - t * ey))
        if ey:
            inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
    return np.where(inside, -distance, distance).astype(np.float32)


def points(text: str) -> list[tuple[float, float]]:
    """The points of "x y, x y, ..."."""
    return [tuple(map(float, pair.split())) for pair in text.split(",")]


class Painting:
    """A premultiplied RGBA picture whose corner is at (`left`, `top`) in units."""

    def __init__(self, left: float, top: float, width: float, height: float, scale: float):
        self.left, self.top, self.scale = left, top, scale
        self.rgba = np.zeros((max(round(height * scale), 1), max(round(width * scale), 1), 4), np.float32)
        # Unit coordinates of the pixel centers, [1, W] and [H, 1].
        self.x = (left + (np.arange(self.shape[1], dtype=np.float32) + 0.5) / scale)[None]
        self.y = (top + (np.arange(self.shape[0], dtype=np.float32) + 0.5) / scale)[:, None]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rgba.shape[:2]

    def noise(
        self, rng: np.random.Generator, cell: float | tuple[float, float], octaves: int = 4, gain: float = 0.5
    ) -> Array:
        """Fractal noise over the painting; `cell` in units."""
        high, wide = cell if isinstance(cell, tuple) else (cell, cell)
        return noise(rng, self.shape, (high * self.scale, wide * self.scale), octaves, gain)

    def paint(
        self, color: Array | Color, cover: Array | float = 1.0, box: tuple[slice, slice] | None = None
    ) -> None:
        """Blend a color over the painting; `cover` is its opacity."""
        target = self.rgba[box] if box else self.rgba
        color, a = np.asarray(color, np.float32), np.asarray(cover, np.float32)
        if a.ndim:
            a = a[..., None]
        target *= 1 - a
        if color.ndim == 1:
            target += a * np.append(color, np.float32(1))
        else:
            target[..., :3] += a * color
            target[..., 3:] += a

    def fill(self, color: Array | Color, distance: Array) -> None:
        """Fill a shape, given by its signed distance, with a smooth edge one pixel wide."""
        self.paint(color, np.clip(0.5 - distance * self.scale, 0, 1))

    def shade(self, light: Array | float) -> None:
        """Multiply the colors, not the opacity."""
        light = np.broadcast_to(np.asarray(light, np.float32), self.shape)[..., None]
        self.rgba[..., :3] = np.minimum(self.rgba[..., :3] * light, self.rgba[..., 3:])

    def box(self, x: float, y: float, reach: float, down: float | None = None) -> tuple[slice, slice]:
        """The pixels within `reach` (and `down`) of a point."""
        i, j = (y - self.top) * self.scale, (x - self.left) * self.scale
        wide, high = reach * self.scale + 1, (reach if down is None else down) * self.scale + 1
        return (
            slice(max(int(i - high), 0), max(int(i + high) + 1, 0)),
            slice(max(int(j - wide), 0), max(int(j + wide) + 1, 0)),
        )

    def ball(self, x: float, y: float, radius: float, dark: Color, bright: Color) -> None:
        """A sphere lit from the upper left."""
        box = self.box(x, y, radius)
        px, py = (self.x[:, box[1]] - x) / radius, (self.y[box[0]] - y) / radius
        if not px.size or not py.size:
            return
        light = smoothstep(-0.9, 1.0, -(0.55 * px + 0.8 * py)) * (1 - 0.35 * (px * px + py * py))
        edge = np.clip(0.5 - (np.hypot(px, py) - 1) * radius * self.scale, 0, 1)
        self.paint(mix(dark, bright, np.clip(light, 0, 1)), edge, box)

    def dab(self, x: float, y: float, radii: tuple[float, float], angle: float, color: Color) -> None:
        """One elliptic brush stroke."""
        box = self.box(x, y, max(radii))
        px, py = self.x[:, box[1]] - x, self.y[box[0]] - y
        if not px.size or not py.size:
            return
        c, s = np.cos(angle), np.sin(angle)
        distance = ellipse(c * px + s * py, c * py - s * px, (0, 0), radii)
        self.paint(color, np.clip(0.5 - distance * self.scale, 0, 1), box)
