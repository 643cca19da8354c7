"""The sample clip: a scene rendered by code, with its exact optical flow and its sound.

Tests know its true motion, and workflows use it as their default input.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import scenery, style_pictures
from .camera import Camera
from .painting import Array

FPS = 24
FRAMES = 48
SIZE = (512, 288)
VARIANTS = ("main", "cut", "still")


@dataclass
class Scene:
    """Frames in 0..1 and their exact motion.

    `forward[i]` is the motion from frame i to frame i + 1, `backward[i]` from frame i + 1 to frame i, as
    (dx, dy) in pixels. A pixel is occluded when its content is hidden or outside in the other frame.
    """

    frames: Tensor  # [N, H, W, 3]
    forward: Tensor  # [N-1, H, W, 2]
    backward: Tensor  # [N-1, H, W, 2]
    occluded_forward: Tensor  # [N-1, H, W] bool
    occluded_backward: Tensor  # [N-1, H, W] bool
    fps: int = FPS


def pan(t: float) -> float:
    """A steady pan from -24 to 24 in 48 frames, then back, so that a long clip stays inside the painting."""
    return abs((t + 48) % 96 - 48) - 24.0


def scene(
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    variant: str = "main",
    *,
    seed: int = 7,
    flow: bool = True,
) -> Scene:
    """Render the sample: "main" pans, "cut" changes to another shot in the middle, "still" does not pan.

    Without `flow` the motion tensors are empty, which takes half the time.
    """
    if variant not in VARIANTS:
        raise ValueError(f"the sample has no variant {variant!r}: one of {', '.join(VARIANTS)}")
    if frames < 1 or min(size) < 16:
        raise ValueError(
            f"a sample of {frames} frames at {size[0]}x{size[1]}: ask for 1 frame and 16 pixels or more"
        )
    motion = (lambda t: -14.0) if variant == "still" else pan
    noon = Camera(size, scenery.NOON, seed, motion)
    shots = [(noon, range(frames))]
    if variant == "cut":
        half = frames // 2
        dusk = Camera(size, scenery.DUSK, seed + 1, lambda t: -pan(t), stage=(-130, 170))
        shots = [(noon, range(half)), (dusk, range(half, frames))]
    pictures = np.stack([camera.frame(t) for camera, times in shots for t in times])
    width, height = size
    pairs = frames - 1 if flow else 0
    moves = [np.zeros((pairs, height, width, 2), np.float32) for _ in range(2)]
    hidden = [np.ones((pairs, height, width), bool) for _ in range(2)]  # at a cut all is occluded
    for camera, times in shots if flow else ():
        for t in times[:-1]:
            moves[0][t], hidden[0][t] = camera.motion(t, t + 1)
            moves[1][t], hidden[1][t] = camera.motion(t + 1, t)
    return Scene(*(torch.from_numpy(a) for a in (pictures, *moves, *hidden)))


def mask(names: Collection[str]) -> Tensor:
    """Where the named layers of the sample clip are seen [N, H, W, 3]: white."""
    camera = Camera(SIZE, scenery.NOON, 7, pan)
    return torch.from_numpy(np.stack([camera.mask(t, names) for t in range(FRAMES)]))


def views(times: tuple[float, ...] = (0, 24, 48)) -> list[Tensor]:
    """Single pictures of two landscapes, at noon and at dusk."""
    cameras = [Camera(SIZE, light, seed, pan) for light, seed in ((scenery.NOON, 7), (scenery.DUSK, 11))]
    return [torch.from_numpy(camera.frame(t)) for camera in cameras for t in times]


def flickering(frames: Tensor, amount: float = 0.05, seed: int = 11) -> Tensor:
    """The frames as a stylizer without temporal consistency renders them: flat colours, random blotches."""
    g = torch.Generator().manual_seed(seed)
    out = torch.empty_like(frames)
    for frame, new in zip(frames, out, strict=True):
        flat = frame.flip(-1) * 0.6 + (frame * 6).round() / 15
        blotches = torch.randn(1, 3, frame.shape[0] // 16 + 2, frame.shape[1] // 16 + 2, generator=g)
        blotches = interpolate(blotches, frame.shape[:2], mode="bicubic")[0].permute(1, 2, 0)
        tone = 1 + amount * torch.randn((), generator=g)
        new.copy_((flat * tone + amount * blotches).clamp(0, 1))
    return out


def style(name: str, size: tuple[int, int] = (512, 512)) -> Tensor:
    """A style picture [H, W, 3] that is painted by code: swirls, waves or glass."""
    return torch.from_numpy(style_pictures.paint(name, size))


def tune(seconds: float, rate: int = 44100) -> Array:
    """The sound [2, samples]: a plucked melody that moves from left to right over two low tones."""
    count = round(seconds * rate)
    t = np.arange(count) / rate
    out = np.zeros((2, count))
    melody = (0, 4, 7, 12, 9, 7, 4, 2)  # steps above A, one every quarter of a second
    for number in range(int(np.ceil(seconds * 4))):
        at = t - number / 4
        pitch = 440 * 2 ** (melody[number % len(melody)] / 12)
        ring = np.where(at >= 0, np.exp(-4 * np.maximum(at, 0)) * np.minimum(np.maximum(at, 0) * 400, 1), 0)
        pluck = sum(
            np.sin(2 * np.pi * pitch * k * at) * np.exp(-2.5 * k * np.maximum(at, 0)) / k**1.5
            for k in range(1, 6)
        )
        side = (number % 16 + 0.5) / 16 * np.pi / 2
        out += np.stack([np.cos(side), np.sin(side)])[:, None] * (0.30 * ring * pluck)
    hum = sum(np.sin(2 * np.pi * 110 * k * t + k) for k in (1, 1.5)) * 0.06 * (1 - np.exp(-3 * t))
    return np.clip(out + hum, -1, 1).astype(np.float32)
