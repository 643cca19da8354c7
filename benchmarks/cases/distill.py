"""Attention distillation on a UNet with random weights: rows and time per step, and memory."""

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch

from reelbrush.nodes.distill.expand import Expansion, TextureCanvas, expand
from reelbrush.nodes.distill.features import FeatureReader, opened
from reelbrush.nodes.distill.guided import seeded
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling
from reelbrush.tests.diffusion import tiny
from reelbrush.tests.distill import official, small

INSIDE = bool(os.environ.get("COMFYUI_PATH"))


@contextmanager
def _rows_counted():
    """The rows of every evaluation by a FeatureReader."""
    seen, call = [], FeatureReader.__call__

    def counted(self, z, *args, **more):
        seen.append(len(z))
        return call(self, z, *args, **more)

    FeatureReader.__call__ = counted
    try:
        yield seen
    finally:
        FeatureReader.__call__ = call


def steps(
    frames: int = 8, per_call: int = 4, size: int = 64, steps: int = 1, channels: int = 64
) -> dict[str, Callable]:
    """Algorithm 1: rows and time of our clip against the official loop, frame after frame.

    The official loop needs COMFYUI_PATH and AD_PATH (a checkout of xugao97/AttentionDistillation). Without
    them the first variant is our code with one frame at a time, which computes the same rows.
    """

    def inputs() -> tuple:
        g = torch.Generator().manual_seed(0)
        draw = lambda n, *shape: torch.randn(n, *shape, generator=g)  # noqa: E731
        if INSIDE:
            model = official.comfy_model(torch.float32, {"model_channels": channels})
        else:
            model = tiny.tiny_model({**tiny.LAYOUTS["sd15"], "model_channels": channels})
        width = model.model.model_config.unet_config["context_dim"]
        return model, draw(frames, 4, size, size), draw(1, 4, size, size), draw(1, 77, width)

    def theirs() -> Callable[[], dict]:
        model, content, style, text = inputs()
        unet = official.diffusers_unet(model)

        def run() -> dict:
            rows: list[int] = []
            hook = unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
            with official.pipeline_module() as module, official.losses_of(module):
                for frame in content.split(1):
                    latents = {"style": style, "content": frame}
                    module.ADPipeline.optimize(
                        official.pipeline(module, unet, latents, {"": text}),
                        lr=0.05,
                        weight=0.25,
                        controller=module.utils.Controller((10, 16)),
                        style_image="style",
                        content_image="content",
                        num_inference_steps=steps,
                    )
            hook.remove()
            return {"frames": frames, "rows per frame and step": sum(rows) / steps / frames}

        return run

    def ours(together: bool) -> Callable:
        def prepare() -> Callable[[], dict]:
            model, content, style, text = inputs()
            groups = [content] if together else content.split(1)
            recipe = DistillRecipe(frames_per_call=per_call)

            def run() -> dict:
                with opened(model, [[text, {}]]) as (_, reader), _rows_counted() as seen:
                    for group in groups:
                        distill(References(reader, style, group), group, falling(steps), recipe)
                return {"frames": frames, "rows per frame and step": sum(seen) / steps / frames}

            return run

        return prepare

    first = (
        {"official": theirs} if INSIDE and "AD_PATH" in os.environ else {"one frame at a time": ours(False)}
    )
    return {**first, "ours": ours(True)}


def expansion(side: int = 512, window: int = 512, overlap: int = 0) -> dict[str, Callable]:
    """Texture expansion to canvases of 1, 2 and 4 sides: memory (--rounds 1). The target is constant."""

    return {f"{side * n} pixels": partial(_expansion, side * n, window, overlap) for n in (1, 2, 4)}


def _expansion(pixels: int, window: int, overlap: int) -> Callable[[], dict]:
    model, texture = small.model(), small.styles(size=(window // 8, window // 8))
    canvas = TextureCanvas(pixels // 8, pixels // 8, window // 8, overlap // 8)
    settings = Expansion(steps=1, iterations=1, windows_per_call=1)

    def run() -> dict:
        with torch.inference_mode(), opened(model, small.null(model)) as (clone, reader):
            out = expand(clone, reader, texture, canvas, settings, seeded(0))
        return {"windows": len(canvas.windows()), "finite": bool(out.isfinite().all())}

    return run
