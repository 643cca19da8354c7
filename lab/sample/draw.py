"""Draws the files of nodes/sample/files anew.

python lab/sample/draw.py nodes/sample/files
python lab/sample/draw.py --flow input     # also the exact optical flow of the clip (69 MB)
"""

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from reelbrush.lab.sample.scene import FPS, Scene, flickering, mask, scene, style, tune, views
from reelbrush.lab.sample.style_pictures import NAMES
from reelbrush.nodes.common import pictures
from reelbrush.nodes.common.files import replacing
from reelbrush.nodes.sample import CLIP, CLIP_CUT, CLIP_STYLIZED, CONTENTS, MASK_FAR, MASK_NEAR
from reelbrush.nodes.video import codec

FAR = ("sky", "mountains", "balloon", "lake", "boat")  # the layers of MASK_FAR
FLOW = "reelbrush_sample_flow.safetensors"


def clips() -> Iterator[tuple[str, Tensor]]:
    """The name and the frames of each clip."""
    frames = scene(flow=False).frames
    yield CLIP, frames
    yield CLIP_STYLIZED, flickering(frames)
    yield CLIP_CUT, scene(variant="cut", flow=False).frames
    far = mask(FAR)
    yield MASK_FAR, far
    yield MASK_NEAR, 1 - far


def styles() -> Iterator[tuple[str, Tensor]]:
    """The file name of each style picture, and the picture."""
    for name in NAMES:
        yield f"reelbrush_style_{name}.png", style(name)


def write_clip(path: Path, frames: Tensor) -> None:
    """Write the frames with the sample's sound."""
    count, height, width, _ = frames.shape
    sound = torch.from_numpy(tune(count / FPS))[None]
    info = codec.VideoInfo(width, height, Fraction(FPS), count)
    audio = {"waveform": sound, "sample_rate": 44100}
    with (
        replacing(path) as temporary,
        codec.Writer(temporary, info, container="mp4", codec="h264", quality=14, audio=audio) as writer,
    ):
        for frame in frames:
            writer.write(codec.from_float(frame))


def write_flow(path: Path, motion: Scene) -> None:
    """Write both directions in half precision (0.002 pixels), and the occluded pixels."""
    from safetensors.torch import save_file

    tensors = {
        "forward": motion.forward.half(),
        "backward": motion.backward.half(),
        "occluded_forward": motion.occluded_forward,
        "occluded_backward": motion.occluded_backward,
    }
    about = {"stride": 1, "method": "exact"}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"reelbrush_flow": json.dumps(about)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder to write to")
    parser.add_argument("--flow", action="store_true", help="also write the exact optical flow of the clip")
    args = parser.parse_args()
    for name, frames in clips():
        write_clip(args.folder / name, frames)
    for name, picture in [*styles(), *zip(CONTENTS, views(), strict=True)]:
        pictures.write(args.folder / name, picture)
    if args.flow:
        write_flow(args.folder / FLOW, scene())


if __name__ == "__main__":
    main()
