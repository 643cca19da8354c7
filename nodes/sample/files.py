"""The files of the sample: three clips, the style pictures and the exact flow."""

import json
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..common import pictures
from ..common.files import replacing
from ..video import codec
from .scene import FPS, Scene, flickering, scene, style, tune
from .style_pictures import NAMES

CLIP = "reelbrush_sample.mp4"
CLIP_CUT = "reelbrush_sample_cut.mp4"
CLIP_STYLIZED = "reelbrush_sample_stylized.mp4"
FLOW = "reelbrush_sample_flow.safetensors"
STYLES = {f"reelbrush_style_{name}.png": name for name in NAMES}
FILES = (CLIP, CLIP_CUT, CLIP_STYLIZED, *STYLES, FLOW)


def write_sample(folder: str | Path, names: Iterable[str] = FILES) -> list[Path]:
    """Write all files of the sample, or the named ones, into a folder."""
    folder, names = Path(folder), list(names)
    unknown = [name for name in names if name not in FILES]
    if unknown:
        raise ValueError(f"the sample has no file {unknown[0]!r}: choose one of {', '.join(FILES)}")
    main = cache(lambda: scene(flow=FLOW in names))
    write = {
        CLIP: lambda path: _write_clip(path, main().frames),
        CLIP_STYLIZED: lambda path: _write_clip(path, flickering(main().frames)),
        CLIP_CUT: lambda path: _write_clip(path, scene(variant="cut", flow=False).frames),
        FLOW: lambda path: _write_flow(path, main()),
    }
    for name in names:
        if name in STYLES:
            pictures.write(folder / name, style(STYLES[name]))
            continue
        with replacing(folder / name) as temporary:
            write[name](temporary)
    return [folder / name for name in names]


def _write_clip(path: Path, frames: Tensor) -> None:
    count, height, width, _ = frames.shape
    sound = torch.from_numpy(tune(count / FPS))[None]
    info = codec.VideoInfo(width, height, Fraction(FPS), count)
    audio = {"waveform": sound, "sample_rate": 44100}
    with codec.Writer(path, info, container="mp4", codec="h264", quality=14, audio=audio) as writer:
        for frame in frames:
            writer.write(codec.from_float(frame))


def _write_flow(path: Path, motion: Scene) -> None:
    """Both directions in half precision (0.002 pixels), and the occluded pixels."""
    from safetensors.torch import save_file

    tensors = {
        "forward": motion.forward.half(),
        "backward": motion.backward.half(),
        "occluded_forward": motion.occluded_forward,
        "occluded_backward": motion.occluded_backward,
    }
    about = {"stride": 1, "method": "exact"}
    save_file(tensors, path, metadata={"reelbrush_flow": json.dumps(about)})
