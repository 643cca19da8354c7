"""ComfyUI's MODEL: loading, evaluating and patching it, facts about it, and its identity."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...kernels.ddim import to_x
from . import memory

NEUTRAL_ID = uuid.UUID(int=0)

# -- loading and evaluating ------------------------------------------------------------------------


@contextmanager
def loaded(model: Any) -> Iterator[Any]:
    """The base model of a MODEL on the computing device with its patches applied; cleaned up afterwards."""
    memory.load_model(model)
    try:
        model.pre_run()
        yield model.model
    finally:
        model.cleanup()


def conditions(
    model: Any, conditioning: list, latents: Tensor, sigma: float | None = None
) -> dict[str, Tensor]:
    """A CONDITIONING as keyword arguments of `apply_model` (text embedding, SDXL's vector).

    The first entry whose range contains `sigma` is used. Its areas, masks and ControlNets are ignored.
    """
    base = getattr(model, "model", model)
    text, options = _entry(base, conditioning, sigma)
    arguments = {"width": latents.shape[-1] * 8, "height": latents.shape[-2] * 8, "prompt_type": "positive"}
    arguments |= {**options, "cross_attn": text, "noise": latents, "device": latents.device}
    return {k: getattr(v, "cond", v) for k, v in base.extra_conds(**arguments).items()}


def _entry(base: Any, conditioning: list, sigma: float | None) -> tuple[Tensor, dict]:
    to_sigma = base.model_sampling.percent_to_sigma
    for text, options in conditioning:
        high = to_sigma(options.get("start_percent", 0.0))
        low = to_sigma(options.get("end_percent", 1.0))
        if sigma is None or low <= sigma <= high:
            return text, options
    raise ValueError(
        "the conditioning has no entry for this noise level: use one that covers the whole sampling"
    )


def transformer_options(model: Any, sigma: Tensor) -> dict:
    """The `transformer_options` that a sampler would give to the UNet: the clone's patches and wrappers."""
    options = dict(model.model_options.get("transformer_options", {}))
    options["wrappers"] = {
        kind: {key: list(functions) for key, functions in keyed.items()}
        for kind, keyed in model.wrappers.items()
    }
    return {**options, "sigmas": sigma, "cond_or_uncond": [0], "uuids": [NEUTRAL_ID]}


def evaluate(
    base: Any, latents: Tensor, sigma: float, conditions: dict[str, Tensor], options: dict
) -> Tensor:
    """The model's denoised latents for variance-preserving latents, through ComfyUI's `apply_model`.

    `base` is a loaded base model. Gradients flow where they are enabled.
    """
    dtype = torch.promote_types(latents.dtype, torch.float32)  # a float64 sigma keeps float64 latents exact
    level = torch.full((len(latents),), sigma, dtype=dtype, device=latents.device)
    arguments = {k: one_per_row(v, len(latents)) if torch.is_tensor(v) else v for k, v in conditions.items()}
    return base.apply_model(to_x(latents, sigma), level, transformer_options=options, **arguments)


def one_per_row(t: Tensor, rows: int) -> Tensor:
    """A tensor with one entry for all rows, or one per row already."""
    return t.expand(rows, *t.shape[1:]) if len(t) == 1 else t


# -- patches on clones -----------------------------------------------------------------------------


def add_wrapper(model: Any, kind: str, key: str, wrapper: Callable) -> None:
    """Add a wrapper of a kind ("diffusion_model", "predict_noise", ...) to a CLONE, under a key of ours.

    Keys are "reelbrush RANK NAME". Wrappers of other packs keep their order and come first; ours follow in
    the order of their ranks, so that a higher rank is further inside.
    """
    model.add_wrapper_with_key(kind, key, wrapper)
    model.wrappers[kind] = dict(sorted(model.wrappers[kind].items(), key=lambda item: _rank(item[0])))


def _rank(key: Any) -> int:
    prefix, _, rest = str(key).partition(" ")
    rank = rest.partition(" ")[0]
    return int(rank) if prefix == "reelbrush" and rank.isdigit() else -1


def remove_wrappers(model: Any, kind: str, key: str) -> None:
    """Remove the wrappers of a CLONE under a key; nothing happens where there are none."""
    model.wrappers.get(kind, {}).pop(key, None)


def on_cleanup(model: Any, key: str, function: Callable[[], None]) -> None:
    """Have a CLONE call `function` when a run ends, also after a cancel."""
    model.add_callback_with_key("on_cleanup", key, lambda patcher: function())


# -- facts -----------------------------------------------------------------------------------------


def percent_to_sigma(model: Any, percent: float) -> float:
    """The sigma at a position in the sampling schedule: 0 is the noisiest level, 1 the end."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))


def compute_dtype(base: Any) -> torch.dtype:
    """The number type that the UNet computes in."""
    return getattr(base, "manual_cast_dtype", None) or base.get_dtype()


def latent_channels(model: Any) -> int:
    """The number of channels of a MODEL's latents."""
    return int(model.model.latent_format.latent_channels)


def latent_picture(base: Any, latents: Tensor) -> Tensor:
    """A rough picture [h, w, 3] in 0..1 of the first latent, from ComfyUI's colour factors."""
    pixels = latents[0].detach().float().movedim(0, -1).cpu()
    factors = base.latent_format.latent_rgb_factors
    if factors is None:
        return pixels[..., :3] / 2 + 0.5
    bias = getattr(base.latent_format, "latent_rgb_factors_bias", None)
    return (pixels @ torch.tensor(factors) + (0 if bias is None else torch.tensor(bias)) + 1) / 2


# -- identity --------------------------------------------------------------------------------------


def weights_key(base: Any) -> Hashable:
    """Equal only if the same weights are in use, with the same patches, LoRA hooks and injections."""
    patcher = getattr(base, "current_patcher", None)
    if patcher is None:
        return _Never()
    hooks = getattr(getattr(patcher, "current_hooks", None), "hooks", ())
    injections = getattr(patcher, "injections", {})  # newer LoRA loaders may put modules into the network
    return (
        identity(base),
        getattr(patcher, "patches_uuid", None),
        tuple((name, identity(value)) for name, value in sorted(patcher.object_patches.items())),
        tuple((identity(hook.hook_ref), float(hook.strength)) for hook in hooks),
        tuple((name, identity(i)) for name, group in sorted(injections.items()) for i in group),
    )


class _Never:
    """Equal to nothing else."""


def identity(thing: Any) -> Hashable:
    """A key that equals only the key of the same living object; it does not keep the object alive."""
    owner = getattr(thing, "__self__", None)  # every access to a bound method makes a new object
    try:
        return weakref.ref(thing if owner is None else owner), getattr(thing, "__name__", "")
    except TypeError:  # numbers, strings and None have no weak references
        return thing if isinstance(thing, (int, float, str, type(None), torch.dtype)) else _Never()
