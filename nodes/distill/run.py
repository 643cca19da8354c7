"""From a MODEL and LATENTs to a LATENT: checks, scaling, memory, progress. The nodes call these functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..common.inputs import picture_weights
from .clip import FrameBatch, Schedule, batches, shot_starts, stylize
from .expand import Expansion, TextureCanvas, expand
from .features import FeatureReader, opened, seeded
from .optimize import DistillRecipe, DistillStep, References, Report

DEFAULT_SCHEDULE = Schedule(200, 60)
STYLE_MEMORY = 4 << 30  # bytes of style features that are kept for the calls of one clip

Latent = dict[str, Any]


def samples(latent: Latent | None, what: str, channels: int | None = None) -> Tensor | None:
    """A LATENT's tensor [N, C, h, w]; a video model's or another model family's raises an error."""
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


def in_model_space(z: Tensor | None, reader: FeatureReader) -> Tensor | None:
    """A LATENT's tensor on the device, scaled for the model."""
    if z is None:
        return None
    return reader.base.process_latent_in(z.to(reader.device, torch.float32)).clone()


def as_latent(z: Tensor, reader: FeatureReader) -> Latent:
    """A LATENT of latents in model space."""
    return {"samples": reader.base.process_latent_out(z).float().cpu()}


def optimized(
    model: Any,
    null: list,
    style: Latent,
    recipe: DistillRecipe,
    *,
    content: Latent | None = None,
    start: Latent | None = None,
    size: tuple[int, int] = (512, 512),
    batch_size: int = 1,
    schedule: Schedule = DEFAULT_SCHEDULE,
    layers: str = "last 6",
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
    style_weights: str = "",
    blend: bool = False,
    noised: bool = False,
    flow: Any = None,
    seed: int = 0,
) -> tuple[Latent, dict[str, list[float]]]:
    """Algorithm 1 on a clip, or on `batch_size` noises of `size` pixels (height first): the latent, and the
    losses per step."""
    channels = host.latent_channels(model)
    inputs = {"style": style, "content": content, "start": start}
    style_z, content_z, start_z = (samples(x, name, channels) for name, x in inputs.items())
    first_z = start_z if start_z is not None else content_z
    from_noise = first_z is None
    if from_noise:
        first_z = seeded(seed)(torch.empty(batch_size, channels, size[0] // 8, size[1] // 8))
    elif batch_size > 1:
        raise ValueError(
            f"batch_size is {batch_size}, which is for textures from noise: set it to 1, because all results "
            "from the same content or start would be equal"
        )
    if content_z is not None:
        same_size = content_z.shape[-2:] == first_z.shape[-2:]
        if not same_size or len(content_z) not in (1, len(first_z)):
            raise ValueError(
                f"content and start differ, {tuple(content_z.shape)} and {tuple(first_z.shape)}: "
                "give both the same size and number of frames"
            )
    curves: dict[str, list[float]] = {"style": [], "content": [], "temporal": []}
    if schedule.steps == 0:
        return {"samples": first_z}, curves
    with opened(model, null, layers) as (_, reader):
        z = first_z.to(reader.device).clone() if from_noise else in_model_space(first_z, reader)
        references = References(
            reader,
            in_model_space(style_z, reader),
            in_model_space(content_z, reader),
            *masks,
            weights=picture_weights(style_weights, len(style_z)),
            blend=blend,
            noise_seed=seed if noised else None,
        )
        references.check(len(z))
        per_call = reader.frames_per_call(z, 1, recipe.frames_per_call)
        warm = flow is not None and schedule.warm_steps > 0 and len(z) > 1
        if warm:
            references.memory = min(STYLE_MEMORY, host.free_memory(host.offload_device()) // 4)
            if not recipe.frames_per_call:
                per_call = 1  # a finished frame is a good start for the next, less for later ones
            references.reads = style_reads(batches(len(z), flow.cuts, per_call, True), schedule)
        else:
            schedule = replace(schedule, warm_steps=0)
        total = frame_steps(len(z), flow.cuts if warm else range(len(z)), schedule)
        with host.progress(total, "Distilling style", "frame steps") as bar:
            z = stylize(
                references,
                z,
                replace(recipe, frames_per_call=per_call),
                schedule,
                flow=flow,
                report=follow(bar, reader.base, curves),
            )
        return as_latent(z, reader), curves


def style_reads(batches: Iterable[FrameBatch], schedule: Schedule) -> Counter[float]:
    """How many calls read the style at each timestep."""
    return Counter(t for batch in batches for t in set(schedule.timesteps(batch.warm)))


def frame_steps(frames: int, cuts: Sequence[int], schedule: Schedule) -> int:
    """The number of steps of all frames together."""
    full = len(shot_starts(frames, cuts))
    return full * len(schedule.timesteps(False)) + (frames - full) * len(schedule.timesteps(True))


def follow(bar: host.Progress, base: Any, curves: dict[str, list[float]]) -> Report:
    """Progress with a picture of the first frame, and the curves of the plot."""

    def report(step: DistillStep) -> None:
        for name in curves:
            curves[name].append(getattr(step, name))
        bar.step(len(step.z), preview=lambda: host.latent_picture(base, step.z))

    return report


def expanded(
    model: Any, null: list, source: Latent, canvas: TextureCanvas, expansion: Expansion, seed: int
) -> Latent:
    """A texture expanded to a canvas."""
    if any(name.endswith("._conv_forward") for name in model.object_patches):
        raise ValueError(
            "this model is from Seamless Tiling, with which every window of the canvas would tile by itself: "
            "connect the model before it, and choose the edges in seamless of Expand Texture"
        )
    texture = samples(source, "source", host.latent_channels(model))
    total = expansion.steps * len(canvas.windows())
    with opened(model, null) as (clone, reader), host.progress(total, "Expanding texture", "windows") as bar:
        picture = lambda z: lambda: host.latent_picture(reader.base, z)  # noqa: E731
        z = expand(
            clone,
            reader,
            in_model_space(texture, reader),
            canvas,
            expansion,
            seeded(seed),
            lambda windows, z: bar.step(windows, preview=picture(z)),
        )
        return as_latent(z, reader)
