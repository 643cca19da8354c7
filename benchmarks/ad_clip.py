"""A clip with warm starts against the same frames on their own: time per frame, and how far the loss falls.

    python benchmarks/ad_clip.py --weights denoiser.safetensors --clip clip.mp4 --style picture.png

On the denoiser of `tiny_denoiser.py`. The loss of a frame is eq. 5's, averaged over t = 1, 201, 401, 601 and
801; its decrease is from the frame itself (all steps start there, cold) to the result. Cold frames take the
official loop's steps and rows: times are of this process' CPU, and the official loop's is what its three
forward rows and one backward row cost here.
"""

import argparse
import importlib.util
import logging
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush.nodes.diffusion import unet
from reelbrush.nodes.distill import features
from reelbrush.nodes.distill.clip import stylize
from reelbrush.nodes.distill.optimize import Recipe, References, distill, falling, gradient
from reelbrush.nodes.flow.estimate import estimate

ROOT = Path(__file__).resolve().parents[1]
PROBES = (1, 201, 401, 601, 801)
log = logging.getLogger("ad_clip")


def denoiser():
    """benchmarks/tiny_denoiser.py as a module."""
    spec = importlib.util.spec_from_file_location("tiny_denoiser", ROOT / "benchmarks" / "tiny_denoiser.py")
    module = sys.modules["tiny_denoiser"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def square(pictures: Tensor, side: int) -> Tensor:
    """The middle of pictures [N, H, W, 3] at side x side."""
    h, w = pictures.shape[1:3]
    m = min(h, w)
    cut = pictures[:, (h - m) // 2 : (h + m) // 2, (w - m) // 2 : (w + m) // 2].movedim(-1, 1)
    return interpolate(cut, (side, side), mode="area").movedim(1, -1)


def read_clip(path: Path, frames: int) -> Tensor:
    import cv2

    video, found = cv2.VideoCapture(str(path)), []
    while len(found) < frames:
        ok, frame = video.read()
        if not ok:
            break
        found.append(torch.from_numpy(frame[..., ::-1].copy()))
    return torch.stack(found).float() / 255


def read_picture(path: Path) -> Tensor:
    import cv2

    return torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy())[None].float() / 255


def probed(references: References, z: Tensor, frame: int, recipe: Recipe) -> Tensor:
    """Style and content loss of one frame, averaged over the probes."""
    each = [
        gradient(references, references.style_at(t), z, t, recipe, range(frame, frame + 1))[0] for t in PROBES
    ]
    return torch.stack(each).mean(dim=0)[:, 0]


def official_seconds(references: References, z: Tensor) -> float:
    """CPU seconds of three forward rows and a backward row: what the official loop does in a step."""
    begin = time.process_time()
    for t in PROBES:
        gradient(references, references.style_at(t), z, t, Recipe(), range(1))
    return (time.process_time() - begin) / len(PROBES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--style", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm-steps", type=int, default=60)
    parser.add_argument("--verify", type=int, nargs="*", default=[1, 4, 7], help="frames also done cold")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tiny, recipe = denoiser(), Recipe()
    clip = read_clip(arguments.clip, arguments.frames)
    flow, vae = estimate(square(clip, 256)), tiny.PixelVAE()
    content = vae.encode(square(clip, arguments.size))
    style = vae.encode(square(read_picture(arguments.style), arguments.size))
    model = tiny.load(arguments.weights)
    with unet.loaded(model) as base, features.gradients(base):
        eye = features.Eye(base, tiny.encode_text(""))
        references = References(eye, style, content, memory=1 << 32)
        official = official_seconds(References(eye, style, content), content[:1]) * arguments.steps
        begin = time.process_time()
        warm = stylize(
            references, content, recipe, steps=arguments.steps, warm_steps=arguments.warm_steps, flow=flow
        )
        ours = (time.process_time() - begin) / len(content)
        log.warning(
            "official %.1f s of CPU per frame, ours %.1f: %.2f times faster", official, ours, official / ours
        )
        for frame in arguments.verify:
            one = slice(frame, frame + 1)
            levels = falling(arguments.steps)
            cold = distill(references, content[one], levels, recipe, frames=range(frame, frame + 1))
            start, alone, carried = (
                probed(references, z[one], frame, recipe) for z in (content, pad(cold, frame), warm)
            )
            say(frame, start, alone, carried, recipe.content_weight)


def pad(one: Tensor, frame: int) -> Tensor:
    """A frame where `[frame]` finds it."""
    return one.expand(frame + 1, -1, -1, -1)


def say(frame: int, start: Tensor, cold: Tensor, warm: Tensor, weight: float) -> None:
    share = lambda of: float((of(start) - of(warm)) / (of(start) - of(cold)))  # noqa: E731
    total = lambda losses: losses[0] + weight * losses[1]  # noqa: E731
    log.warning(
        "frame %d: style %.4f -> cold %.4f, warm %.4f (%.3f of the decrease); "
        "total %.4f -> %.4f, %.4f (%.3f)",
        *(frame, start[0], cold[0], warm[0], share(lambda x: x[0])),
        *(total(start), total(cold), total(warm), share(total)),
    )


if __name__ == "__main__":
    main()
