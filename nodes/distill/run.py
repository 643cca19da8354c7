"""From a MODEL and LATENTs to a LATENT: loading, scaling, memory, progress. What the nodes call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..diffusion import unet
from ..diffusion.autograd import picture
from . import features
from .clip import stylize
from .expand import Canvas, Expansion
from .expand import expand as expand_canvas
from .features import Eye
from .guided import seeded
from .optimize import Recipe, References, Report, Step

STYLE_MEMORY = 4 << 30  # of style features kept for the calls of one clip

Latent = dict[str, Any]


def samples(latent: Latent | None, what: str, channels: int | None = None) -> Tensor | None:
    """A LATENT's tensor [N, C, h, w]; a sentence for a video model's, or another model family's."""
    if latent is None:
        return None
    x = latent["samples"]
    if x.ndim != 4 or not len(x):
        raise ValueError(f"the {what} latent has shape {tuple(x.shape)}: encode pictures with the image VAE")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"the {what} latent has {x.shape[1]} channels and this model needs {channels}: "
            "encode with the VAE of this model's checkpoint"
        )
    return x


def channels(model: Any) -> int:
    """How many channels a model's latents have."""
    return int(model.model.latent_format.latent_channels)


@contextmanager
def opened(model: Any, null: list, layers: str) -> Iterator[tuple[Any, Eye]]:
    """A loaded base model and an eye on it; what it held is given back at the end, however it ends."""
    try:
        with unet.loaded(model) as base:
            yield base, Eye(base, null, layers)
    finally:
        host.release_memory()


def optimized(
    model: Any,
    null: list,
    style: Latent,
    recipe: Recipe,
    *,
    content: Latent | None = None,
    start: Latent | None = None,
    size: tuple[int, int] = (512, 512),
    steps: int = 200,
    warm_steps: int = 60,
    layers: str = "last 6",
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
    flow: Any = None,
    seed: int = 0,
) -> tuple[Latent, dict[str, list[float]]]:
    """Algorithm 1 on a clip, or on noise of `size` pixels (height first): the latent, the losses per step."""
    like = channels(model)
    style_z, content_z, start_z = (
        samples(x, name, like) for x, name in ((style, "style"), (content, "content"), (start, "start"))
    )
    begin = start_z if start_z is not None else content_z
    noise = begin is None
    if noise:
        begin = seeded(seed)(torch.empty(1, like, size[0] // 8, size[1] // 8))
    elif content_z is not None:
        fits = content_z.shape[-2:] == begin.shape[-2:] and len(content_z) in (1, len(begin))
        if not fits:
            raise ValueError(
                f"content and start differ, {tuple(content_z.shape)} and {tuple(begin.shape)}: "
                "give both the same size and number of frames"
            )
    curves: dict[str, list[float]] = {"style": [], "content": [], "temporal": []}
    if steps == 0:
        return {"samples": begin}, curves
    with opened(model, null, layers) as (base, eye), host.gradients():

        def place(z: Tensor | None) -> Tensor | None:
            return None if z is None else base.process_latent_in(z.to(eye.device, torch.float32)).clone()

        z = begin.to(eye.device).clone() if noise else place(begin)
        references = References(eye, place(style_z), place(content_z), *masks)
        references.check_masks(len(z))
        warm = flow is not None and warm_steps > 0 and len(z) > 1
        plan = features.plan(eye, z, 1, recipe.frames_per_call)
        if warm:
            references.memory = min(STYLE_MEMORY, host.free_memory(host.offload_device()) // 4)
            if not recipe.frames_per_call:  # the next frame, not the fourth, fits a finished one
                plan = replace(plan, frames_per_call=1)
        total = work(len(z), flow.cuts if warm else (), steps, warm_steps if warm else steps)
        with (
            features.gradients(base, frugal=plan.frugal),
            host.progress(total, "Distilling style", "frame steps") as bar,
        ):
            z = stylize(
                references,
                z,
                plan.on(recipe),
                steps=steps,
                warm_steps=warm_steps if warm else 0,
                flow=flow,
                report=follow(bar, base, curves),
            )
        return {"samples": base.process_latent_out(z).float().cpu()}, curves


def work(frames: int, cuts: tuple[int, ...], steps: int, warm_steps: int) -> int:
    """How many frames are stepped in all."""
    full = len({0, *(c for c in cuts if 0 < c < frames)})
    return full * steps + (frames - full) * warm_steps


def follow(bar: Any, base: Any, curves: dict[str, list[float]]) -> Report:
    """Progress with a picture of the first frame, and the curves of the plot."""

    def report(step: Step) -> None:
        for name in curves:
            curves[name].append(getattr(step, name))
        bar.step(len(step.z), preview=lambda: picture(base, step.z))

    return report


def expanded(model: Any, null: list, source: Latent, canvas: Canvas, how: Expansion, seed: int) -> Latent:
    """A texture grown to a canvas."""
    texture = samples(source, "source", channels(model))
    with opened(model, null, "last 6") as (base, eye), host.gradients():
        windows = len(canvas.windows())
        with host.progress(how.steps * windows, "Expanding texture", "windows") as bar:
            z = expand_canvas(
                model,
                base,
                null,
                base.process_latent_in(texture.to(eye.device, torch.float32)).clone(),
                canvas,
                how,
                seeded(seed),
                lambda done, z: bar.step(done, preview=lambda: picture(base, z)),
            )
        return {"samples": base.process_latent_out(z).float().cpu()}


def noted(bar: Any) -> Callable[[int, float], None]:
    """Progress of a training: one step after the other."""
    return lambda step, loss: bar.step()
