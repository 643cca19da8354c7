"""Attention distillation, exact mode: UNet rows and time per frame and step, against the official loop.

    COMFYUI_PATH=... AD_PATH=... python benchmarks/ad_steps.py [--frames 8] [--size 64] [--steps 1]

Both run in this process on the same random weights (Stable Diffusion 1.5's layout at 64 channels), float32:
the official loop frame after frame, as its users run it, ours with all frames of a clip in one step. The two
take turns, so that a busy machine slows both; CPU seconds stand beside the clock's.
"""

import argparse
import importlib.util
import logging
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CHANNELS = {"model_channels": 64}
log = logging.getLogger("ad_steps")


def now() -> torch.Tensor:
    """The clock, and this process' CPU time."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def loaded(path: Path):
    """A file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_steps(official, module, unet, content, style, text, steps):
    """Seconds per frame and step of the official loop on one frame (clock, CPU), and its rows per step."""
    rows = []
    hook = unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    fake = official.pipeline(module, unet, {"style": style, "content": content}, {"": text})
    begin = now()
    with official.losses_of(module):
        module.ADPipeline.optimize(
            fake,
            lr=0.05,
            weight=0.25,
            controller=module.utils.Controller((10, 16)),
            style_image="style",
            content_image="content",
            num_inference_steps=steps,
        )
    hook.remove()
    return (now() - begin) / steps, sum(rows) / steps


def our_steps(model, content, style, text, steps, per_call):
    """The same of ours on all frames at once."""
    from reelbrush.nodes.distill import features
    from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling

    rows, look = [], features.FeatureReader.__call__

    def counted(self, z, *args, **more):
        rows.append(len(z))
        return look(self, z, *args, **more)

    features.FeatureReader.__call__ = counted
    try:
        with features.opened(model, [[text, {}]]) as (_, reader):
            references = References(reader, style, content)
            begin = now()
            distill(references, content, falling(steps), DistillRecipe(frames_per_call=per_call))
            seconds = now() - begin
    finally:
        features.FeatureReader.__call__ = look
    return seconds / steps / len(content), sum(rows) / steps / len(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--per-call", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    loaded(ROOT / "tests" / "conftest.py")  # ComfyUI, from COMFYUI_PATH
    official = loaded(ROOT / "tests" / "distill" / "official.py")
    g = torch.Generator().manual_seed(0)
    draw = lambda n, *shape: torch.randn(n, *shape, generator=g)  # noqa: E731
    content, style = (draw(n, 4, arguments.size, arguments.size) for n in (arguments.frames, 1))
    text = draw(1, 77, 768)
    model = official.comfy_model(torch.float32, CHANNELS)
    theirs, ours = [], []
    with official.pipeline_module() as module:
        unet = official.diffusers_unet(model)
        official_steps(official, module, unet, content[:1, :, :16, :16], style[..., :16, :16], text, 1)
        our_steps(model, content[:2, :, :16, :16], style[..., :16, :16], text, 1, 2)
        half = max(1, arguments.frames // 2)
        for some in (content[:half], content[half:]):
            theirs.append(official_steps(official, module, unet, some[:1], style, text, arguments.steps))
            ours.append(our_steps(model, content, style, text, arguments.steps, arguments.per_call))
            theirs.append(official_steps(official, module, unet, some[-1:], style, text, arguments.steps))
    slow, fast = (torch.stack([t for t, _ in runs]).amin(dim=0).tolist() for runs in (theirs, ours))
    for who, seconds, runs in (("official", slow, theirs), ("ours", fast, ours)):
        clock = "%-8s %.2f s per frame and step (%.2f s of CPU), %.3f forward rows"
        log.warning(clock, who, *seconds, runs[0][1])
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    log.warning("%.2f times the official loop's steps per second by the clock, %.2f by CPU time", *ratios)


if __name__ == "__main__":
    main()
