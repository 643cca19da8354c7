"""Three style pictures painted by code: an oil painting, a woodblock print, a stained-glass window.

They are the default styles of the workflows, so they have what style transfer uses: strokes, lines, a
strong palette, structure at several scales. Drawn on a square of 512 units, cropped to the wanted size.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .painting import Array, Color, Painting, ellipse, mix, noise, points, polygon, ramp, smoothstep

UNITS = 512.0


def paint(name: str, size: tuple[int, int] = (512, 512)) -> Array:
    """The style picture `name` as [H, W, 3]."""
    if name not in PAINTERS:
        raise ValueError(f"there is no style picture {name!r}: choose one of {', '.join(PAINTERS)}")
    scale = max(size) / UNITS
    painting = Painting(0, 0, size[0] / scale, size[1] / scale, scale)
    PAINTERS[name](painting, np.random.default_rng(11))
    return painting.rgba[..., :3].clip(0, 1)


# -- swirls: an oil painting ----------------------------------------------------------------------

STARS = (
    (70, 150, 17),
    (168, 62, 22),
    (262, 40, 13),
    (318, 120, 15),
    (352, 38, 16),
    (214, 130, 11),
    (470, 190, 15),
    (120, 236, 12),
)
MOON = (436, 84, 40)
VORTICES = ((238, 176, 92, 1.0), (352, 222, 62, -1.0))


def _night(x: Array, y: Array, rng: np.random.Generator, scale: float) -> tuple[Array, Array]:
    """The colours of the strokes, and their direction [H, W]."""
    grain = noise(rng, (y.size, x.size), 60 * scale, 4)
    u, v = 1.0 + 0.25 * grain, 0.35 * np.sin(x / 60 + 0.02 * y) + 0 * y
    tone = 0.42 + 0.16 * np.sin(y / 15 + 3.2 * np.sin(x / 95) + 0.8 * grain) + 0.08 * grain
    for cx, cy, r, turn in VORTICES:
        dx, dy = x - cx, (y - cy) * 1.35
        away = np.hypot(dx, dy)
        pull = np.exp(-((away / r) ** 2))
        u, v = (
            u * (1 - pull) - turn * dy / (away + 1) * pull * 2,
            v * (1 - pull) + turn * dx / (away + 1) * pull * 2,
        )
        arms = 0.5 + 0.5 * np.sin(away / 6.5 - turn * 2 * np.arctan2(dy, dx))
        tone = tone * (1 - pull) + pull * (0.30 + 0.55 * arms)
    sky = ramp(
        tone,
        (0.05, (0.04, 0.07, 0.27)),
        (0.35, (0.08, 0.22, 0.56)),
        (0.6, (0.24, 0.48, 0.74)),
        (0.8, (0.55, 0.74, 0.78)),
        (1, (0.92, 0.93, 0.76)),
    )
    for cx, cy, r in (*STARS, MOON):
        dx, dy = x - cx, y - cy
        away = np.hypot(dx, dy)
        near = np.exp(-((away / (1.9 * r)) ** 2))
        u, v = u * (1 - near) - dy / (away + 1) * near * 2, v * (1 - near) + dx / (away + 1) * near * 2
        rings = 0.5 + 0.5 * np.cos(away / r * 5.2)
        glow = ramp(
            away / r,
            (0, (1.0, 0.97, 0.72)),
            (0.5, (0.99, 0.83, 0.28)),
            (1.1, (0.93, 0.70, 0.22)),
            (2.2, (0.52, 0.68, 0.56)),
        )
        sky = mix(sky, glow * (0.86 + 0.14 * rings[..., None]), np.clip(1.25 * near, 0, 1))
    color, flow = sky, np.arctan2(v, u)
    for top, swell, dark, bright in (
        (352.0, 24.0, (0.07, 0.16, 0.36), (0.24, 0.45, 0.62)),
        (396.0, 18.0, (0.08, 0.24, 0.26), (0.42, 0.60, 0.36)),
        (446.0, 12.0, (0.22, 0.22, 0.10), (0.88, 0.68, 0.20)),
    ):
        ridge = top - swell * np.sin(x / 68 + top) - 0.6 * swell * np.sin(x / 31 + 2 * top)
        bands = 0.5 + 0.5 * np.sin((y - ridge) / 4.2 + grain)
        below = smoothstep(-1.5, 1.5, y - ridge)
        color = mix(
            color, mix(dark, bright, bands * (0.4 + 0.6 * np.exp(-np.maximum(y - ridge, 0) / 40))), below
        )
        slope = np.arctan(np.gradient(ridge[0], axis=0) * scale)[None] + 0 * y
        flow = np.where(below > 0.5, slope, flow)
    sway = x - 74 - 9 * np.sin(y / 34)
    flame = np.abs(sway) - 34 * np.clip((y - 120) / 330, 0, 1) ** 0.8 * (1 + 0.18 * np.sin(y / 11 + x / 9))
    tongue = 0.5 + 0.5 * np.sin(sway / 4 + np.sin(y / 17) * 2)
    inside = smoothstep(1.5, -1.5, flame)
    color = mix(color, mix((0.03, 0.07, 0.07), (0.25, 0.30, 0.12), tongue * tongue), inside)
    return color.clip(0, 1), np.where(
        inside > 0.5, np.pi / 2 + 0.5 * np.cos(y / 34) + 0.25 * np.sign(sway), flow
    )


def swirls(painting: Painting, rng: np.random.Generator) -> None:
    """Thick strokes along the swirls, large to small, then light from the left on their relief."""
    scale = painting.scale
    color, flow = _night(painting.x, painting.y, rng, scale)
    painting.paint(color * 0.8 + 0.2 * np.float32((0.20, 0.13, 0.08)))
    relief = np.zeros(painting.shape, np.float32)
    high, wide = painting.shape
    bristles = np.stack(
        [np.interp(np.linspace(0, 9, 64), np.arange(10), rng.uniform(0.35, 1, 10)) for _ in range(64)]
    )
    area = (wide * high) / scale**2 / UNITS**2
    for length, breadth, count in ((17.0, 4.6, 2400), (11.5, 3.1, 3400), (6.5, 1.9, 2400)):
        for _ in range(int(count * area)):
            i, j = rng.integers(high), rng.integers(wide)
            x, y = painting.x[0, j], painting.y[i, 0]
            angle = flow[i, j] + 0.12 * rng.standard_normal()
            c, s = np.cos(angle), np.sin(angle)
            box = painting.box(x, y, abs(c) * length + breadth, abs(s) * length + breadth)
            px, py = painting.x[:, box[1]] - x, painting.y[box[0]] - y
            along, across = c * px + s * py, c * py - s * px
            across = across + rng.normal(0, 0.006) * along**2
            inside = np.clip(
                0.5
                - (np.maximum(np.abs(along) - length + breadth, 0) ** 2 / breadth + np.abs(across) - breadth)
                * scale,
                0,
                1,
            )
            hair = bristles[rng.integers(64)][np.clip((across / breadth * 31.5 + 31.5), 0, 63).astype(int)]
            dry = np.clip(1.35 - 0.45 * (along / length + 1) * (1.3 - hair), 0, 1)
            tint = color[i, j] * rng.uniform(0.86, 1.16) + rng.normal(0, 0.022, 3)
            cover = inside * dry
            painting.paint(np.clip(tint * (0.88 + 0.16 * hair[..., None]), 0, 1), cover, box)
            relief[box] += cover * (0.55 * hair * breadth - relief[box]) * 0.8
    light = np.gradient(relief, axis=1) + np.gradient(relief, axis=0)
    weave = np.sin(painting.x * 2.2) * np.sin(painting.y * 2.2)
    painting.shade(np.clip(1 + 0.16 * light * min(scale, 1.5) + 0.018 * weave, 0.6, 1.45))


# -- waves: a woodblock print ---------------------------------------------------------------------

INK: Color = (0.07, 0.10, 0.20)
PAPER: Color = (0.94, 0.88, 0.75)


def _curve(points: list[tuple[float, float]], steps: int = 6) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through points."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return [tuple(q) for q in np.concatenate([*parts, p[-1:]])]


def _foam(painting: Painting, rng: np.random.Generator, line: list[tuple[float, float]], size: float) -> None:
    """Foam along a line: all ink circles first, then white ones, so that only the outer rim has ink."""
    rims = []
    for (ax, ay), (bx, by) in pairwise(line):
        for f in np.arange(0, 1, 0.9 * size / max(np.hypot(bx - ax, by - ay), 0.9 * size)):
            r = size * rng.uniform(0.55, 1.25)
            rims.append(
                (
                    ax + f * (bx - ax) + rng.normal(0, 0.5 * size),
                    ay + f * (by - ay) + rng.normal(0, 0.5 * size),
                    r,
                )
            )
    for x, y, r in rims:
        painting.dab(x, y, (r + 1.5, r + 1.5), 0, INK)
    for x, y, r in rims:
        painting.dab(x, y, (r, r), 0, (0.97, 0.95, 0.88))
    for x, y, r in rims[::3]:
        painting.dab(x + 0.2 * r, y + 0.3 * r, (0.55 * r, 0.45 * r), 0, (0.68, 0.80, 0.86))
        painting.dab(x - 0.05 * r, y + 0.05 * r, (0.55 * r, 0.45 * r), 0, (0.97, 0.95, 0.88))


def _body(
    painting: Painting, shape: list[tuple[float, float]], dark: Color, bright: Color, pitch: float
) -> None:
    """A wave: blue stripes along its outline, and an ink edge."""
    depth = -polygon(painting.x, painting.y, shape)
    wobble = 1.6 * np.sin(painting.x / 23) + 1.2 * np.sin(painting.y / 19)
    stripe = (depth + wobble) / pitch
    band = smoothstep(0.30, 0.36, np.abs(stripe % 1 - 0.5) * (0.72 + 0.28 * np.sin(stripe * 0.7)))
    base = mix(bright, dark, smoothstep(0, 95, depth))
    color = mix(base, mix(PAPER, base, smoothstep(40, 150, depth) * 0.65), band)
    painting.fill(color, -depth)
    painting.fill(INK, np.abs(depth) - 1.3)


def waves(painting: Painting, rng: np.random.Generator) -> None:
    """A large wave, a far mountain and a red sun; ink lines, flat colors, wood grain."""
    x, y, scale = painting.x, painting.y, painting.scale
    grain = noise(rng, painting.shape, (3 * scale, 170 * scale), 3)
    painting.paint(
        ramp(
            (y + 6 * np.sin(x / 80)) / UNITS,
            (0, (0.20, 0.33, 0.50)),
            (0.16, (0.62, 0.68, 0.66)),
            (0.34, PAPER),
            (0.75, (0.93, 0.80, 0.62)),
        )
    )
    sun = ellipse(x, y, (384, 118), (46, 46))
    painting.fill(mix((0.80, 0.20, 0.13), (0.90, 0.42, 0.26), smoothstep(80, 165, y + 0 * x)), sun)
    for cx, cy, wide in ((300, 84, 120), (450, 150, 110), (430, 62, 80), (250, 170, 90)):
        for k in range(3):
            cloud = ellipse(x, y, (cx + 24 * k * (-1) ** k, cy + 9 * k), (wide - 22 * k, 4.5))
            painting.fill((0.96, 0.92, 0.82), cloud)
            painting.fill((0.45, 0.50, 0.56), np.abs(cloud) - 0.5)
    mountain = [
        (250, 352),
        *_curve(points("292 322, 330 282, 352 254, 362 251, 374 254, 396 284, 440 326")),
        (490, 352),
    ]
    cone = polygon(x, y, mountain)
    cap = y - 281 - 7 * np.abs(np.sin(x / 5.5)) * np.sign(np.sin(x / 11))
    painting.fill(mix((0.30, 0.42, 0.56), (0.56, 0.64, 0.66), smoothstep(270, 345, y + 0 * x)), cone)
    painting.fill((0.97, 0.95, 0.90), np.maximum(cone, cap))
    painting.fill(INK, np.abs(cone) - 1.0)
    far = _curve(points("-260 350, -20 352, 60 338, 150 352, 236 336, 322 350, 410 334, 540 350, 760 340"))
    _body(painting, [*far, (760, 760), (-260, 760)], (0.16, 0.30, 0.48), (0.50, 0.66, 0.74), 13)
    _foam(painting, rng, far, 3.2)
    great = _curve(points("-260 560, -30 300, 20 200, 84 118, 160 82, 226 92, 262 128, 268 160"))
    lip = "268 160, 240 142, 206 140, 182 162, 178 210, 204 280"
    under = _curve(points(f"{lip}, 262 350, 350 412, 470 440, 560 436, 760 430"))
    _body(painting, [*great, *under, (760, 760), (-260, 760)], (0.06, 0.16, 0.36), (0.23, 0.45, 0.66), 17)
    _foam(painting, rng, great[12:], 7.0)
    _foam(painting, rng, under[:21], 6.0)
    for px, py in under[3:21:2]:  # foam hangs down from the crest
        for reach in range(3):
            painting.dab(
                px + 7 * reach + rng.normal(0, 2),
                py + 7 + 6 * reach,
                (4.6 - 1.1 * reach, 4.6 - 1.1 * reach),
                0,
                INK,
            )
            painting.dab(
                px + 7 * reach,
                py + 7 + 6 * reach,
                (3.4 - 1.0 * reach, 3.4 - 1.0 * reach),
                0,
                (0.97, 0.95, 0.88),
            )
    left = "-260 450, -30 470, 50 436, 120 424, 176 446, 230 470"
    swell = _curve(points(f"{left}, 300 474, 360 446, 410 424, 450 430, 480 452, 560 462, 760 450"))
    _body(painting, [*swell, (760, 760), (-260, 760)], (0.05, 0.13, 0.30), (0.18, 0.40, 0.60), 12)
    _foam(painting, rng, swell, 5.0)
    for _ in range(int(150 * painting.shape[0] * painting.shape[1] / (UNITS * scale) ** 2)):
        sx, sy = 205 + 90 * rng.standard_normal(), 190 + 80 * rng.standard_normal()
        r = rng.uniform(0.8, 2.3)
        painting.dab(sx, sy, (r + 0.8, r + 0.8), 0, (0.30, 0.40, 0.52))
        painting.dab(sx, sy, (r, r), 0, (0.98, 0.96, 0.90))
    fiber = noise(rng, painting.shape, 2.4 * scale, 2)
    painting.shade(1 + 0.028 * grain + 0.022 * fiber)


# -- glass: a window ------------------------------------------------------------------------------


def _cells(
    u: Array, v: Array, pitch: float, rng: np.random.Generator, around: int = 64
) -> tuple[Array, Array, Array, Array]:
    """Voronoi cells of a jittered grid: the seed (u, v) of each point, its cell, its distance to the edge.

    `around` is the number of cells after which `v` repeats, for an angle.
    """
    table = rng.uniform(0.12, 0.88, (64, 64, 2)).astype(np.float32)
    iu, iv = np.floor(u / pitch).astype(int), np.floor(v / pitch).astype(int)
    best = [np.full(u.shape, np.inf, np.float32) for _ in range(2)]
    seeds = [np.zeros((*u.shape, 2), np.float32) for _ in range(2)]
    number = np.zeros(u.shape, int)
    for di in range(-2, 3):
        for dj in range(-2, 3):
            a, b = (iu + di) % 64, (iv + dj) % around
            spot = (np.stack([iu + di, iv + dj], -1) + table[a, b]) * pitch
            away = ((spot[..., 0] - u) ** 2 + (spot[..., 1] - v) ** 2).astype(np.float32)
            first, second = away < best[0], (away >= best[0]) & (away < best[1])
            best[1], seeds[1] = (
                np.where(first, best[0], best[1]),
                np.where(first[..., None], seeds[0], seeds[1]),
            )
            best[0], seeds[0] = np.where(first, away, best[0]), np.where(first[..., None], spot, seeds[0])
            best[1], seeds[1] = np.where(second, away, best[1]), np.where(second[..., None], spot, seeds[1])
            number = np.where(first, a * 64 + b, number)
    apart = np.sqrt(((seeds[0] - seeds[1]) ** 2).sum(-1))
    return seeds[0][..., 0], seeds[0][..., 1], number, (best[1] - best[0]) / (2 * np.maximum(apart, 1e-3))


def glass(painting: Painting, rng: np.random.Generator) -> None:
    """A sun over hills and a river: strong colors, lead lines, uneven panes."""
    x, y = np.broadcast_arrays(painting.x, painting.y)
    cx, cy = 300.0, 190.0
    hill = 330 - 36 * np.sin(x / 82 + 0.6) - 12 * np.sin(x / 37)
    field = 404 - 26 * np.sin(x / 70 + 2.4)
    course = 250 + 86 * np.sin((y - 330) / 48) + 0.35 * (y - 330)
    banks = np.maximum(np.abs(x - course) - (10 + 0.26 * np.maximum(y - 330, 0)), hill + 10 - y)
    away, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
    region = np.select([away < 58, (banks < 0), y > field, y > hill], [0, 3, 4, 2], 1)
    lead = np.min(
        [
            np.abs(away - 58),
            np.abs(banks) + 99 * (y < hill),
            np.abs(y - field) + 99 * (banks < 0),
            np.abs(y - hill),
        ],
        0,
    )
    lead = np.where((away < 58) & (np.abs(away - 58) > 3), 99, lead)
    polar = _cells(np.log(away + 18) * 96, angle * (768 / (2 * np.pi)) % 768, 24, rng, 32)
    flat = _cells(x + 14 * np.sin(y / 40), y * 1.45 + 18 * np.sin(x / 60), 25, rng)
    seed_u, _, number, edge = (np.where(region < 2, p, f) for p, f in zip(polar, flat, strict=True))
    edge = np.where(region < 2, edge * (away + 18) / 96, edge * 0.85)
    pick = np.random.default_rng(5).random((4096, 2)).astype(np.float32)[number]
    palettes: tuple[tuple[Color, ...], ...] = (
        ((1.0, 0.86, 0.30), (1.0, 0.70, 0.16), (0.98, 0.93, 0.60)),
        ((0.07, 0.20, 0.62), (0.13, 0.42, 0.80), (0.42, 0.18, 0.55), (0.93, 0.40, 0.16), (0.78, 0.12, 0.18)),
        ((0.05, 0.40, 0.27), (0.12, 0.55, 0.30), (0.03, 0.27, 0.26), (0.45, 0.64, 0.18)),
        ((0.10, 0.62, 0.72), (0.45, 0.82, 0.84), (0.06, 0.42, 0.66)),
        ((0.74, 0.15, 0.22), (0.93, 0.62, 0.14), (0.52, 0.64, 0.12), (0.58, 0.16, 0.42)),
    )
    color = np.zeros((*x.shape, 3), np.float32)
    for kind, palette in enumerate(palettes):
        which = (pick[..., 0] * len(palette)).astype(int)
        if kind == 1:  # rays: warm near the sun, blue far from it
            warm = np.clip(1.45 - (np.exp(seed_u / 96) - 18) / 135 + 0.5 * (pick[..., 0] - 0.5), 0, 1)
            which = np.where(warm > 0.55, 3 + (pick[..., 1] > 0.55), (pick[..., 0] * 3).astype(int))
        color = np.where((region == kind)[..., None], np.asarray(palette, np.float32)[which], color)
    uneven = painting.noise(rng, (26, 16), 4, 0.6)
    streak = painting.noise(rng, (5, 46), 3)
    lit = (
        (0.80 + 0.34 * pick[..., 1])
        * (1 + 0.10 * uneven + 0.05 * streak)
        * (0.80 + 0.26 * smoothstep(0, 9, edge))
    )
    lit *= 0.90 + 0.35 * np.exp(-away / 150)
    painting.paint(np.clip(color * lit[..., None] + 0.05 * smoothstep(1.2, 2.4, uneven)[..., None], 0, 1))
    came = np.minimum(
        np.minimum(edge - 1.4, lead - 2.3), np.minimum.reduce([x, y, x.max() - x, y.max() - y]) - 7
    )
    rounded = np.clip(-came / 2.2, 0, 1)
    painting.fill(mix((0.03, 0.03, 0.04), (0.25, 0.25, 0.28), smoothstep(0.45, 1, rounded) * 0.7), came)
    painting.paint((0.02, 0.02, 0.03), 0.35 * np.exp(-np.maximum(came, 0) / 2.2))


PAINTERS: dict[str, Callable[[Painting, np.random.Generator], None]] = {
    "swirls": swirls,
    "waves": waves,
    "glass": glass,
}
NAMES = tuple(PAINTERS)
