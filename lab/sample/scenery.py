"""The layers of the sample's scene: sky, mountains, woods, lake, meadow, house, tree, boat, balloon.

Each function returns a painting that the camera only moves. Light comes from the low sun on the left.
"""

from dataclasses import dataclass

import numpy as np

from .painting import Color, Painting, ellipse, mix, noise, polygon, ramp, smoothstep

HORIZON = 150.0
SUN = (150.0, 92.0)


@dataclass(frozen=True)
class Light:
    """The colours of a time of day."""

    zenith: Color = (0.20, 0.40, 0.70)
    sky: Color = (0.55, 0.72, 0.87)
    glow: Color = (1.00, 0.85, 0.63)
    cloud: Color = (1.00, 0.97, 0.92)
    cloud_shadow: Color = (0.62, 0.62, 0.74)
    sun: Color = (1.00, 0.96, 0.82)
    tint: Color = (1.00, 1.00, 1.00)


NOON = Light()
DUSK = Light(
    zenith=(0.16, 0.14, 0.34),
    sky=(0.50, 0.32, 0.52),
    glow=(1.00, 0.55, 0.33),
    cloud=(1.00, 0.62, 0.48),
    cloud_shadow=(0.33, 0.25, 0.42),
    sun=(1.00, 0.80, 0.55),
    tint=(0.78, 0.62, 0.72),
)


def sky(rng: np.random.Generator, left: float, width: float, scale: float, light: Light) -> Painting:
    """A gradient, lit clouds that flatten towards the horizon, and the sun."""
    painting = Painting(left, -24, width, HORIZON + 60, scale)
    x, y = painting.x, painting.y
    painting.paint(
        ramp(y / HORIZON, (0, light.zenith), (0.55, light.sky), (0.95, light.glow))
        + np.zeros((1, x.size, 1), np.float32)
    )
    away = np.hypot(x - SUN[0], y - SUN[1])
    painting.paint(light.sun, 0.75 * np.exp(-away / 34))
    field = painting.noise(rng, (46, 120), 6, 0.55) + 0.35 * painting.noise(rng, (10, 30), 4)
    step = max(round(5 * scale), 1)
    toward_sun = np.pad(field, ((step, 0), (step, 0)), "edge")[
        :-step, :-step
    ]  # a cloud that gets thinner towards the sun has a lit edge
    lit = smoothstep(-0.9, 0.9, field - toward_sun) * 0.75 + 0.25 * np.exp(-away / 120)
    cover = smoothstep(0.05, 1.35, field + 0.25 - 0.9 * smoothstep(90, 165, y) - 0.5 * smoothstep(40, -20, y))
    streaks = painting.noise(rng, (7, 75), 5, 0.6)
    painting.paint(
        mix(light.cloud_shadow, light.cloud, 0.5 + 0.3 * streaks),
        0.35 * smoothstep(-0.6, 1.8, streaks + 0 * y),
    )
    painting.paint(mix(light.cloud_shadow, light.cloud, lit), 0.92 * cover)
    painting.paint(light.sun, np.clip(1.2 * np.exp(-np.maximum(away - 9, 0) / 3.0), 0, 1))
    return painting


def mountains(rng: np.random.Generator, left: float, width: float, scale: float, light: Light) -> Painting:
    """A ridge with snow, lit from the left, in haze at its foot."""
    painting = Painting(left, 40, width, HORIZON - 30, scale)
    x, y = painting.x, painting.y
    crest = np.abs(noise(rng, (1, x.size), (1, 110 * scale), 6, 0.45))  # its folds are the peaks
    ridge = 82 + 26 * crest
    relief = -np.abs(painting.noise(rng, (44, 40), 5, 0.5)) + 0.08 * painting.noise(rng, (6, 3), 3)
    slope = np.diff(relief, axis=1, append=relief[:, -1:]) * 6 * scale
    lit = smoothstep(-0.5, 0.6, slope + 0.1)
    rock = painting.noise(rng, (12, 8), 4, 0.6)
    color = mix((0.22, 0.27, 0.42), (0.66, 0.58, 0.56), lit) * (1 + 0.05 * rock[..., None])
    snow = smoothstep(-3, 3, 101 - y + 5 * rock + 9 * relief)
    color = mix(color, mix((0.60, 0.68, 0.84), (1.0, 0.97, 0.93), lit), snow * 0.95)
    haze = smoothstep(70, 152, y + 0 * x)
    color = mix(color, mix(light.sky, light.glow, haze), 0.22 + 0.58 * haze)
    painting.fill(color * light.tint, ridge - y)
    return painting


def woods(rng: np.random.Generator, left: float, width: float, scale: float, light: Light) -> Painting:
    """Two rows of wooded hills on the far shore."""
    painting = Painting(left, 96, width, 72, scale)
    x = painting.x
    for top, height, far, deep in ((136.0, 8.0, 0.45, 16), (147.0, 5.0, 0.12, 26)):
        ridge = top - height * noise(rng, (1, x.size), (1, 90 * scale), 3)
        dark, bright = mix((0.09, 0.17, 0.13), light.sky, far), mix((0.45, 0.52, 0.20), light.glow, far)
        painting.fill(tuple(dark * light.tint), ridge - painting.y)
        for depth in np.arange(0, deep, 2.3):
            for at in np.arange(0, width, 2.6):
                cx = at + rng.uniform(-1.3, 1.3)
                foot = ridge[0, int(np.clip(cx * scale, 0, x.size - 1))] + depth + rng.uniform(-1.2, 1.2)
                tone = np.clip(0.55 + 0.25 * rng.standard_normal() - 0.012 * depth, 0.1, 1)
                leaf = mix(dark, bright, tone) * light.tint
                painting.ball(
                    left + cx,
                    foot,
                    rng.uniform(1.5, 2.9),
                    tuple(0.55 * dark * light.tint + 0.2 * leaf),
                    tuple(leaf),
                )
    painting.shade(1 + 0.10 * painting.noise(rng, 1.6, 2))
    return painting


def lake(rng: np.random.Generator, left: float, width: float, scale: float, light: Light) -> Painting:
    """Water with mirrored sky and woods, ripples that grow towards the camera, and sun glitter."""
    painting = Painting(left, HORIZON + 3, width, 80, scale)
    x, y = painting.x, painting.y
    near = (y - HORIZON) / 70
    ripples = sum(
        painting.noise(rng, (1.2 + 1.6 * k, 14.0 + 16.0 * k), 3, 0.6)
        * np.exp(-(((near - 0.35 * k) / 0.4) ** 2))
        for k in range(4)
    )
    mirrored = y + (1.0 + 7.0 * near) * ripples
    color = ramp(
        mirrored - HORIZON,
        (0, (0.16, 0.22, 0.18)),
        (9, (0.26, 0.33, 0.28)),
        (19, light.glow),
        (44, light.sky),
        (90, light.zenith),
    )
    color = mix(color, (0.05, 0.16, 0.24), 0.22 + 0.2 * near + 0 * x)
    color += 0.055 * ripples[..., None]
    column = np.exp(-(((x - SUN[0] - 20) / (16 + 34 * near)) ** 2))
    sparkle = smoothstep(0.7, 1.7, ripples + 0.55 * column) * column
    painting.paint(np.clip(mix(color * light.tint, light.sun, sparkle), 0, 1))
    return painting


def meadow(rng: np.random.Generator, left: float, width: float, scale: float, light: Light) -> Painting:
    """The near bank: grass, a path, and flowers that are larger near the camera."""
    painting = Painting(left, 188, width, 130, scale)
    x, y = painting.x, painting.y
    bank = (
        207
        + 4 * noise(rng, (1, x.size), (1, 120 * scale), 3)
        + 0.5 * noise(rng, (1, x.size), (1, 3 * scale), 2)
    )
    near = np.clip((y - 200) / 88, 0, 1)
    tufts = painting.noise(rng, (5, 2.2), 3, 0.6) * (0.4 + near) + painting.noise(rng, (12, 34), 4)
    color = ramp(
        0.5 + 0.17 * tufts, (0, (0.13, 0.25, 0.07)), (0.5, (0.34, 0.47, 0.13)), (1, (0.66, 0.68, 0.25))
    )
    color = mix(color, color * 0.82, near + 0 * x)
    earth = np.abs(painting.noise(rng, (30, 200), 2) * 0.9 + (y - 240) / 16)
    color = mix(color, (0.72, 0.60, 0.42), 0.8 * smoothstep(0.55, 0.2, earth + 0.10 * tufts))
    color = mix(color, (0.80, 0.73, 0.55), smoothstep(3.0, 1.0, y - bank) * 0.8)
    painting.fill(color * light.tint, bank - y)
    blooms: tuple[Color, ...] = (
        (0.86, 0.13, 0.09),
        (0.97, 0.94, 0.88),
        (0.96, 0.77, 0.15),
        (0.55, 0.32, 0.68),
    )
    count = int(width * 1.3)
    for kind in rng.choice(4, count, p=[0.45, 0.25, 0.2, 0.1]):
        fy = 214 + 100 * rng.random() ** 0.8
        fx = left + width * rng.random()
        size = 0.5 + 2.0 * ((fy - 205) / 100) * rng.uniform(0.6, 1.2)
        bloom = np.array(blooms[kind])
        painting.dab(fx + 0.3 * size, fy + 0.9 * size, (0.3 * size, 1.3 * size), 0, (0.16, 0.28, 0.08))
        painting.dab(fx, fy, (size, 0.75 * size), 0, tuple(bloom * light.tint * 0.85))
        painting.dab(
            fx - 0.25 * size, fy - 0.25 * size, (0.5 * size, 0.4 * size), 0, tuple(bloom * light.tint)
        )
    return painting


def house(rng: np.random.Generator, x: float, y: float, scale: float, light: Light) -> Painting:
    """A half-timbered house, sunlit on its left side; (x, y) is the centre of its base."""
    painting = Painting(x - 62, y - 92, 124, 102, scale)
    px, py = painting.x - x, painting.y - y
    grain = painting.noise(rng, 2.5, 3)
    plaster = lambda tone: np.clip(mix(tone, (0.55, 0.47, 0.36), 0.12 + 0.07 * grain), 0, 1)  # noqa: E731
    wood = mix((0.27, 0.17, 0.10), (0.40, 0.26, 0.15), smoothstep(-1, 1, grain))
    painting.fill((0.20, 0.27, 0.10), ellipse(px, py, (6, 2), (58, 6)))  # its shadow on the grass
    painting.fill(
        plaster((0.97, 0.91, 0.78)), polygon(px, py, [(-44, 0), (-44, -36), (-26, -62), (-8, -36), (-8, 0)])
    )
    painting.fill(plaster((0.80, 0.72, 0.60)), polygon(px, py, [(-8, 2), (-8, -36), (44, -36), (44, 2)]))
    beams = [
        ((-44, 0), (-44, -36)),
        ((-8, 1), (-8, -36)),
        ((44, 1), (44, -36)),
        ((-44, -36), (44, -36)),
        ((-44, -18), (-8, -18)),
    ]
    beams += [
        ((-26, -36), (-26, -60)),
        ((-8, -18), (44, -18)),
        ((8, 2), (8, -36)),
        ((26, 2), (26, -36)),
        ((-44, 0), (-34, -18)),
    ]
    for (ax, ay), (bx, by) in beams:
        painting.fill(wood, polygon(px, py, [(ax, ay), (bx, by)]) - 1.1)
    for wx, wy in ((-32, -29), (-20, -29), (12, -30), (30, -30), (30, -13)):
        painting.fill(
            (0.93, 0.90, 0.84),
            polygon(px, py, [(wx - 1, wy - 1), (wx + 8, wy - 1), (wx + 8, wy + 10), (wx - 1, wy + 10)]),
        )
        pane = polygon(px, py, [(wx, wy), (wx + 7, wy), (wx + 7, wy + 9), (wx, wy + 9)])
        painting.fill(
            mix((0.16, 0.22, 0.30), (0.98, 0.80, 0.42), smoothstep(-2, 9, py - wy + 0.4 * (px - wx))), pane
        )
        painting.fill(
            (0.93, 0.90, 0.84),
            np.minimum(np.abs(px - wx - 3.5), np.abs(py - wy - 4)) - 0.45 + 99 * (pane > 0),
        )
    painting.fill((0.20, 0.33, 0.30), polygon(px, py, [(-30, 1), (-30, -15), (-21, -15), (-21, 1)]))
    painting.fill((0.52, 0.34, 0.27), polygon(px, py, [(20, -50), (20, -80), (29, -80), (29, -50)]))
    painting.fill((0.40, 0.25, 0.20), polygon(px, py, [(25, -50), (25, -80), (29, -80), (29, -50)]))
    row = np.floor(py / 2.6)
    tile = np.abs((px + 0.55 * py + 2.1 * (row % 2)) / 4.2 % 1 - 0.5) + 0.45 * (py / 2.6 % 1)
    tiles = mix((0.42, 0.13, 0.08), (0.80, 0.33, 0.19), np.clip(tile + 0.10 * grain, 0, 1))
    painting.fill(tiles, polygon(px, py, [(-26, -66), (36, -66), (50, -33), (-5, -33)]))
    painting.fill(
        (0.36, 0.20, 0.13),
        polygon(px, py, [(-26, -66), (-48, -33), (-45, -33), (-26, -62), (-8, -33), (-5, -33)]),
    )
    for k in range(60):
        bx, by = rng.uniform(-52, 52), rng.uniform(-3, 6)
        green = mix((0.12, 0.24, 0.08), (0.48, 0.56, 0.18), rng.random())
        painting.dab(x + bx, y + by, (rng.uniform(1.5, 4), rng.uniform(1.5, 3)), 0, tuple(green))
        if k % 5 == 0:
            painting.dab(x + bx, y + by - 1, (0.9, 0.9), 0, (0.90, 0.35, 0.45))
    painting.rgba[..., :3] *= np.array(light.tint, np.float32)
    return painting


def tree(
    rng: np.random.Generator,
    x: float,
    y: float,
    height: float,
    scale: float,
    light: Light,
    leaves: int = 2200,
) -> Painting:
    """A broad-leaved tree: trunk and boughs, then leaves from the dark inside to the lit outside."""
    reach = 0.5 * height
    painting = Painting(x - reach, y - 1.08 * height, 2 * reach, 1.14 * height, scale)
    px, py = painting.x - x, painting.y - y
    bark = painting.noise(rng, (8, 1.6), 4)
    lit = smoothstep(0.05 * height, -0.05 * height, px + 0 * py)
    wood = mix((0.16, 0.11, 0.08), (0.52, 0.38, 0.25), np.clip(lit + 0.16 * bark, 0, 1))
    w = 0.036 * height
    painting.fill(
        wood,
        polygon(
            px,
            py,
            [
                (-1.9 * w, 4),
                (-w, -0.12 * height),
                (-0.7 * w, -0.6 * height),
                (0.7 * w, -0.6 * height),
                (w, -0.1 * height),
                (2.1 * w, 4),
            ],
        )
        + 0.4 * bark / scale,
    )
    for bx, by, start in (
        (-0.30, -0.62, 0.34),
        (0.28, -0.66, 0.38),
        (-0.14, -0.84, 0.48),
        (0.16, -0.86, 0.50),
    ):
        bough = [(-0.4 * w, -start * height), (bx * height, by * height), (0.5 * w, -(start + 0.05) * height)]
        painting.fill(wood, polygon(px, py, bough) - 0.6)
    clumps = [
        (-0.26, -0.62, 0.19),
        (0.25, -0.64, 0.20),
        (-0.13, -0.83, 0.20),
        (0.14, -0.86, 0.18),
        (0.0, -0.66, 0.20),
        (-0.36, -0.50, 0.10),
        (0.36, -0.50, 0.10),
    ]
    leafy: tuple[Color, Color] = ((0.05, 0.11, 0.04), (0.30, 0.43, 0.12))
    for cx, cy, r in clumps:
        painting.ball(x + cx * height, y + cy * height, 0.8 * r * height, *leafy)
    weights = np.array([r * r for _, _, r in clumps])
    weights /= weights.sum()
    greens = ramp(
        np.linspace(0, 1, 64), (0, (0.06, 0.13, 0.05)), (0.45, (0.22, 0.37, 0.10)), (1, (0.72, 0.72, 0.26))
    )
    picks = rng.choice(len(clumps), leaves, p=weights)
    for pick, depth in zip(picks, np.linspace(0, 1, leaves), strict=True):
        cx, cy, r = clumps[pick]
        angle, away = rng.uniform(0, 2 * np.pi), 1.12 * np.sqrt(rng.random())
        dx, dy = np.cos(angle) * away, np.sin(angle) * away
        bright = np.clip(0.26 - 0.30 * (0.7 * dx + dy) + 0.38 * depth + rng.uniform(-0.15, 0.15), 0, 1)
        size = height * rng.uniform(0.009, 0.019)
        at = x + (cx + dx * r) * height, y + (cy + 0.9 * dy * r) * height
        painting.dab(*at, (size, 0.55 * size), rng.uniform(0, np.pi), greens[int(63 * bright)])
    painting.rgba[..., :3] *= np.array(light.tint, np.float32)
    return painting


def boat(rng: np.random.Generator, scale: float, light: Light) -> Painting:
    """A sailing boat; the origin is at its water line."""
    painting = Painting(-24, -50, 52, 58, scale)
    x, y = painting.x, painting.y
    cloth = painting.noise(rng, (7, 4), 3)
    belly = smoothstep(-16, 14, x + 0 * y)
    painting.fill(
        mix((0.99, 0.96, 0.88), (0.82, 0.74, 0.66), np.clip(belly + 0.08 * cloth, 0, 1)),
        polygon(x, y, [(-1, -46), (-2, -9), (-18, -8), (-13, -24)]),
    )
    painting.fill(
        mix((0.95, 0.52, 0.22), (0.74, 0.25, 0.12), np.clip(belly * 0.8 + 0.1 * cloth, 0, 1)),
        polygon(x, y, [(1, -44), (1, -9), (20, -7), (12, -22)]),
    )
    for stripe in (-32.0, -20.0):
        painting.fill(
            (0.98, 0.90, 0.74),
            np.maximum(
                polygon(x, y, [(1, -44), (1, -9), (20, -7), (12, -22)]), np.abs(y - stripe - 0.1 * x) - 1.4
            ),
        )
    painting.fill((0.30, 0.20, 0.13), polygon(x, y, [(-0.8, 0), (-0.8, -48), (0.8, -48), (0.8, 0)]))
    hull = polygon(x, y, [(-21, -6.5), (25, -8), (18, 2.5), (-16, 2.5)])
    painting.fill(
        mix((0.62, 0.16, 0.12), (0.28, 0.07, 0.07), smoothstep(-7, 2, y + 0.8 * np.sin(x / 3))), hull
    )
    painting.fill((0.96, 0.93, 0.86), np.maximum(hull, np.abs(y + 5.6 + 0.03 * x) - 0.9))
    painting.fill(
        (0.85, 0.91, 0.94), np.maximum(ellipse(x, y, (1, 3.0), (23, 1.6)), np.sin(x * 1.3) * 0.4 - 0.5)
    )
    painting.rgba[..., :3] *= np.array(light.tint, np.float32)
    return painting


def balloon(rng: np.random.Generator, scale: float, light: Light) -> Painting:
    """A striped hot-air balloon; the origin is the middle of its envelope."""
    painting = Painting(-24, -28, 48, 72, scale)
    x, y = painting.x, painting.y
    envelope = np.minimum(
        ellipse(x, y, (0, 0), (22, 23)), polygon(x, y, [(-18.6, 12), (18.6, 12), (5, 27), (-5, 27)])
    )
    across = np.clip(x / np.maximum(22 * np.sqrt(np.clip(1 - (y / 27.5) ** 2, 0.02, 1)), 1), -1, 1)
    gore = np.arcsin(across) / np.pi * 9 + 0.25  # the seams of a sphere
    stripes: tuple[Color, ...] = ((0.87, 0.15, 0.13), (0.98, 0.82, 0.25), (0.10, 0.37, 0.62))
    which = np.floor(gore).astype(int) % 3
    color = np.asarray(stripes, np.float32)[which]
    band = np.abs(y + 1.5 * np.sin(gore * 2 * np.pi)) < 3.6
    color = np.where(band[..., None], np.float32((0.98, 0.94, 0.86)), color)
    seam = np.abs(gore % 1 - 0.5) > 0.46
    light_side = np.clip(
        1.02 - 0.42 * (0.8 * x / 22 + 0.6 * y / 23) - 0.25 * (np.hypot(x, y) / 23) ** 4, 0.3, 1.25
    )
    weave = 1 + 0.03 * painting.noise(rng, 3.0, 3)
    painting.fill(np.clip(color * (light_side * weave * np.where(seam, 0.75, 1))[..., None], 0, 1), envelope)
    for rope in (-4.0, -1.5, 1.5, 4.0):
        painting.fill((0.28, 0.20, 0.13), polygon(x, y, [(rope, 26), (rope * 0.8, 35)]) - 0.3)
    weft = np.where(np.sin(x * 2.4) * np.sin(y * 2.4) > 0, 1.0, 0.72)
    painting.fill(
        np.float32((0.60, 0.40, 0.21)) * weft[..., None],
        polygon(x, y, [(-4.5, 34), (4.5, 34), (3.6, 41), (-3.6, 41)]),
    )
    painting.rgba[..., :3] *= np.array(light.tint, np.float32)
    return painting
