"""A clip with warm starts against the official loop frame by frame: time per frame, fall of the loss.

    COMFYUI_PATH=... AD_PATH=... python benchmarks/ad_clip.py --weights ~/denoiser
                                     --clip clip.mp4 --style picture.jpg [--sheet clip.png]

Both run in this process on the denoiser of `tiny_denoiser.py`. The official loop's time is that of a few of
its steps, times its number of steps; its result is what our exact mode gives (tests/distill/test_official.py:
equal within 1e-13), so `cold` stands for it. The loss of a frame is eq. 5's, averaged over t = 1, 201, 401,
601 and 801; its decrease is from the frame itself, where all steps start, to the result. Without COMFYUI_PATH
and AD_PATH the official loop's time is put together from what its three forward rows and one backward row
cost here.
"""

import argparse
import importlib.util
import logging
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = {"COMFYUI_PATH", "AD_PATH"} <= set(os.environ)
log = logging.getLogger("ad_clip")


def loaded(path: Path):
    """A file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if OFFICIAL:
    loaded(ROOT / "tests" / "conftest.py")  # ComfyUI, from COMFYUI_PATH

from ad_sheets import Bench, draw, losses  # noqa: E402

from reelbrush.nodes.distill.clip import stylize  # noqa: E402
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling, gradient  # noqa: E402
from reelbrush.nodes.flow.estimate import estimate  # noqa: E402


def read_clip(path: Path, frames: int, every: int, side: int) -> Tensor:
    """The middle of every n-th frame, [N, side, side, 3]."""
    import cv2

    video, found = cv2.VideoCapture(str(path)), []
    for number in range(frames * every):
        ok, frame = video.read()
        if ok and number % every == 0:
            h, w = frame.shape[:2]
            m = min(h, w)
            cut = frame[(h - m) // 2 : (h + m) // 2, (w - m) // 2 : (w + m) // 2, ::-1]
            found.append(torch.from_numpy(cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA)))
    return torch.stack(found).float() / 255


def official_seconds(bench: Bench, style: Tensor, content: Tensor, steps: int = 4) -> float:
    """CPU seconds of a step of the official loop on one frame."""
    if not OFFICIAL:
        with bench.references(style, content) as about:
            about.memory = 0
            begin = time.process_time()
            for t in falling(steps):
                gradient(about, about.style_at(t), content, t, DistillRecipe(), (0,))
            return (time.process_time() - begin) / steps
    official = loaded(ROOT / "tests" / "distill" / "official.py")
    with official.pipeline_module() as module:
        latents = {"style": style, "content": content}
        fake = official.pipeline(
            module, official.diffusers_unet(bench.model), latents, {"": bench.null[0][0]}
        )
        for count in (1, steps):  # the first warms up
            begin = time.process_time()
            with official.losses_of(module):
                module.ADPipeline.optimize(
                    fake,
                    lr=0.05,
                    weight=0.25,
                    controller=module.utils.Controller((10, 16)),
                    style_image="style",
                    content_image="content",
                    num_inference_steps=count,
                )
            seconds = (time.process_time() - begin) / count
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--style", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--every", type=int, default=1, help="every n-th frame of the clip")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm-steps", type=int, default=54)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--content-weight", type=float, default=0.25)
    parser.add_argument("--per-call", type=int, default=1)
    parser.add_argument("--verify", type=int, nargs="*", default=[1, 4, 7], help="frames also done cold")
    parser.add_argument("--sheet", type=Path, help="a picture of frames, cold and warm results")
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    recipe = DistillRecipe(a.learning_rate, a.content_weight, frames_per_call=a.per_call)
    bench = Bench(a.weights, a.style.parent, a.size, a.steps, a.learning_rate, 0)
    flow = estimate(read_clip(a.clip, a.frames, a.every, 256))
    content = bench.vae.encode(read_clip(a.clip, a.frames, a.every, a.size))
    style = bench.latent(a.style.name)
    before = official_seconds(bench, style, content[:1])
    with bench.references(style, content) as about:
        begin = time.process_time()
        warm = stylize(about, content, recipe, steps=a.steps, warm_steps=a.warm_steps, flow=flow)
        ours = (time.process_time() - begin) / len(content)
    after = official_seconds(bench, style, content[:1])
    official = a.steps * min(before, after)
    log.warning(
        "%s loop: %.2f s of CPU per step (%.2f before, %.2f after ours), %.1f s per frame of %d steps",
        *("official" if OFFICIAL else "stand-in for the official", min(before, after), before, after),
        *(official, a.steps),
    )
    log.warning("warm starts: %.1f s per frame, %.2f times faster", ours, official / ours)
    rows = []
    with bench.references(style, content) as about:
        for frame in a.verify:
            rows.append(compared(bench, about, frame, content, warm, recipe))
    if a.sheet:
        draw(rows, a.sheet)


def compared(
    bench: Bench, about: References, frame: int, content: Tensor, warm: Tensor, recipe: DistillRecipe
) -> list:
    """One frame cold and warm: how far the losses fall, and pictures."""
    one, numbers = slice(frame, frame + 1), range(frame, frame + 1)
    cold = distill(about, content[one], falling(bench.steps), recipe, frames=numbers)
    start, alone, carried = (
        losses(about, z, recipe.content_weight, frame) for z in (content[one], cold, warm[one])
    )
    total = lambda of: float(of[0] + recipe.content_weight * of[1])  # noqa: E731
    share = lambda f: (f(start) - f(carried)) / (f(start) - f(alone))  # noqa: E731
    log.warning(
        "frame %d: total %.4f -> cold %.4f, warm %.4f (%.3f of the decrease); "
        "style %.4f -> %.4f, %.4f (%.3f)",
        *(frame, total(start), total(alone), total(carried), share(total)),
        *(start[0], alone[0], carried[0], share(lambda of: float(of[0]))),
    )
    cells = (("content", content[one]), ("style", about.style), ("cold", cold), ("warm", warm[one]))
    return [bench.given(f"{words}|frame {frame}", z) for words, z in cells]


if __name__ == "__main__":
    main()
