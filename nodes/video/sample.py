"""The sample: a scene rendered by code, its exact optical flow, its sound, three style pictures.

Nothing of it is recorded or drawn by hand, so the tests know the truth about it and the pack can ship it
as the default input of its workflows.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import codec, scenery, style_pictures
from .canvas import Array
from .shot import Shot

log = logging.getLogger("reelbrush")

FPS = 24
FRAMES = 48
SIZE = (512, 288)
VARIANTS = ("main", "cut", "still")
CLIP = "reelbrush_sample.mp4"
CLIP_CUT = "reelbrush_sample_cut.mp4"
CLIP_STYLIZED = "reelbrush_sample_stylized.mp4"
FLOW = "reelbrush_sample_flow.safetensors"
STYLES = {f"reelbrush_style_{name}.png": name for name in style_pictures.NAMES}
FILES = (CLIP, CLIP_CUT, CLIP_STYLIZED, *STYLES, FLOW)


@dataclass
class Scene:
    """Frames in 0..1 and what is true about their motion.

    `forward[i]` takes a pixel of frame i to frame i + 1, `backward[i]` one of frame i + 1 to frame i:
    (dx, dy) in pixels. A pixel is occluded when what it shows is hidden, or outside, in the other frame.
    """

    frames: Tensor  # [N, H, W, 3]
    forward: Tensor  # [N-1, H, W, 2]
    backward: Tensor  # [N-1, H, W, 2]
    occluded_forward: Tensor  # [N-1, H, W] bool
    occluded_backward: Tensor  # [N-1, H, W] bool
    fps: int = FPS


def _there_and_back(t: float) -> float:
    """A steady pan from -24 to 24 in 48 frames, then back: long clips never leave the painted world."""
    return abs((t + 48) % 96 - 48) - 24.0


def scene(
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    variant: str = "main",
    *,
    seed: int = 7,
    flow: bool = True,
) -> Scene:
    """Render the sample: "main" pans, "cut" changes to another shot in the middle, "still" holds the camera.

    Without `flow` the motion is left out (empty tensors): half the time.
    """
    if variant not in VARIANTS:
        raise ValueError(f"the sample has no variant {variant!r}: one of {', '.join(VARIANTS)}")
    if frames < 1 or min(size) < 16:
        raise ValueError(
            f"a sample of {frames} frames at {size[0]}x{size[1]}: 1 frame and 16 pixels at least"
        )
    pan = (lambda t: -14.0) if variant == "still" else _there_and_back
    shots = [(Shot(size, scenery.NOON, seed, pan), range(frames))]
    if variant == "cut":
        half = frames // 2
        dusk = Shot(size, scenery.DUSK, seed + 1, lambda t: -_there_and_back(t), stage=(-130, 170))
        shots = [(shots[0][0], range(half)), (dusk, range(half, frames))]
    pictures = np.stack([shot.frame(t) for shot, times in shots for t in times])
    width, height = size
    pairs = frames - 1 if flow else 0
    moves = [np.zeros((pairs, height, width, 2), np.float32) for _ in range(2)]
    hidden = [np.ones((pairs, height, width), bool) for _ in range(2)]  # nothing is seen across a cut
    for shot, times in shots if flow else ():
        for t in times[:-1]:
            moves[0][t], hidden[0][t] = shot.motion(t, t + 1)
            moves[1][t], hidden[1][t] = shot.motion(t + 1, t)
    return Scene(*(torch.from_numpy(a) for a in (pictures, *moves, *hidden)))


def flickering(frames: Tensor, amount: float = 0.05, seed: int = 11) -> Tensor:
    """As a stylizer leaves a clip that it takes frame by frame: flat colours, other blotches each time."""
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
    """A procedurally painted style picture [H, W, 3]: swirls, waves or glass."""
    return torch.from_numpy(style_pictures.paint(name, size))


def tune(seconds: float, rate: int = 44100) -> Array:
    """The sound [2, samples]: a plucked melody that wanders from left to right over a soft fifth."""
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


# -- files -----------------------------------------------------------------------------------------


def write_sample(folder: str | Path, names: Iterable[str] = FILES) -> list[Path]:
    """Write the sample's files, or those that are named, into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main = cache(lambda flow: scene(flow=flow))  # the clip and the flow are of one scene
    written = []
    for name in names:
        if name not in FILES:
            raise ValueError(f"the sample has no file {name!r}: it has {', '.join(FILES)}")
        path, part = folder / name, folder / f".part.{name}"
        try:
            if name == CLIP:
                _write_clip(part, main(FLOW in names).frames)
            elif name == CLIP_STYLIZED:
                _write_clip(part, flickering(main(FLOW in names).frames))
            elif name == CLIP_CUT:
                _write_clip(part, scene(variant="cut", flow=False).frames)
            elif name == FLOW:
                _write_flow(part, main(True))
            else:
                _write_picture(part, style(STYLES[name]))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        written.append(path)
    return written


def _write_clip(path: Path, frames: Tensor) -> None:
    count, height, width, _ = frames.shape
    sound = torch.from_numpy(tune(count / FPS))[None]
    info = codec.VideoInfo(width, height, Fraction(FPS), count)
    audio = {"waveform": sound, "sample_rate": 44100}
    with codec.Writer(path, info, container="mp4", codec="h264", quality=14, audio=audio) as writer:
        for frame in frames:
            writer.write(codec.from_float(frame))


def _write_picture(path: Path, picture: Tensor) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", codec.from_float(picture).numpy()[..., ::-1])[1].tobytes())


def _write_flow(path: Path, truth: Scene) -> None:
    """Both directions in half precision (0.002 pixels), and what is occluded."""
    from safetensors.torch import save_file

    about = {"stride": 1, "method": "exact"}
    tensors = {
        "forward": truth.forward.half(),
        "backward": truth.backward.half(),
        "occluded_forward": truth.occluded_forward,
        "occluded_backward": truth.occluded_backward,
    }
    save_file(tensors, path, metadata={"reelbrush_flow": json.dumps(about)})
