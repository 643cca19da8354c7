"""ComfyUI's UNet opened up: its layers named, its attention read and replaced, never on the shared model.

Two numberings. *Layers* are self-attention layers in execution order (0..15 on SD1.x and SD2.x, 0..69 on
SDXL); *blocks* are decoder blocks (0..11 on SD1.x). `layers(model)`, `blocks(model)` and `pick("last 6",
count)` give them.

How a patch gets in. A node clones the MODEL and calls `attach(clone, name, part)`. `part(call)` stands
around every evaluation of the UNet: it may change what goes in, look at what comes out, evaluate the UNet
on other latents (`call.read`), and replace attention for this evaluation:

    def part(call):
        if call.sigma not in when:
            return call.run()
        return call.run(options=patched(call.options, chosen, attend))

    def attend(q, k, v, at):            # [B, N, heads * d], projected; returns the same, before `to_out`
        return at.below(q, torch.cat([more_k, k], 1), torch.cat([more_v, v], 1))

`at.below` is what would have run here: another pack's replacement, another part of ours, or core attention
with its precision and options. Patches are put into a copy of `transformer_options` when the UNet is called,
so they wrap whatever nodes before *and after* ours have set, and out of range nothing is there at all.
Parts agree on one thing: whoever adds tokens puts them in FRONT, so a frame's own are the last N.

How features are read. `call.read` inside a part, `capture` with a MODEL in hand; both run ComfyUI's own
forward and stop after the last layer that is asked for. Such passes carry the mark REFERENCE, and every
part of ours stands aside in them; they see no ControlNet (its lists are popped while they are read).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import host
from .layers import (
    Block,
    Layer,
    SigmaRange,
    blocks,
    family,
    layers,
    network,
    pick,
    pick_layers,
    sigma_range,
    step_of,
)

REFERENCE = "reelbrush_reference"  # in transformer_options: this pass only reads features
_NEUTRAL = uuid.UUID(int=0)

__all__ = [
    "REFERENCE",
    "At",
    "Attend",
    "Block",
    "Enough",
    "Features",
    "Layer",
    "Pass",
    "SigmaRange",
    "attach",
    "blocks",
    "capture",
    "conditions",
    "detach",
    "evaluate",
    "family",
    "layers",
    "loaded",
    "network",
    "on_resblock",
    "patched",
    "pick",
    "pick_layers",
    "record",
    "reference",
    "sigma_range",
    "split_heads",
    "standalone_options",
    "step_of",
]

# -- one evaluation of the UNet --------------------------------------------------------------------


@dataclass
class Pass:
    """One evaluation of the UNet, in the hands of a part; `x` is variance preserving."""

    rest: Callable[..., Tensor]
    x: Tensor
    timesteps: Tensor
    context: Tensor | None
    y: Tensor | None
    control: dict | None
    options: dict
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def sigma(self) -> float:
        return float(self.options["sigmas"].flatten()[0])

    def run(self, **changes: Any) -> Tensor:
        """The UNet itself (and the parts further inside); `options=`, `x=`, ... go in instead."""
        c = replace(self, **changes)
        return c.rest(c.x, c.timesteps, c.context, c.y, c.control, c.options, **c.extra)

    def read(
        self, latents: Tensor, conditions: dict[str, Tensor], chosen: Sequence[Layer], parts: str = "kv"
    ) -> dict[int, Features]:
        """Features of other latents (variance preserving, [n, C, h, w]) at this call's noise level."""
        return record(self.elsewhere(latents, conditions), reference(self.options), chosen, parts)

    def elsewhere(self, latents: Tensor, conditions: dict[str, Tensor]) -> Callable[[dict], Tensor]:
        """This evaluation on other latents, with `transformer_options` of its own: for reading passes."""
        given = {k: _rows(v, len(latents)).to(self.x) for k, v in conditions.items() if torch.is_tensor(v)}
        x = latents.to(self.x)
        if (concat := given.pop("c_concat", None)) is not None:
            x = torch.cat([x, concat], dim=1)
        changes = {
            "x": x,
            "timesteps": self.timesteps[:1].expand(len(x)),
            "context": given.pop("c_crossattn", None),
            "y": given.pop("y", None),
            "control": None,
            "extra": given,
        }
        return lambda options: self.run(options=options, **changes)


def reference(options: dict) -> dict:
    """`transformer_options` for a pass that only reads: marked, its rows neutral."""
    patches = {k: v for k, v in options.get("patches", {}).items() if k != "middle_patch"}  # GLIGEN's
    return {**options, "patches": patches, REFERENCE: True, "cond_or_uncond": [1], "uuids": [_NEUTRAL]}


def attach(
    model: Any, name: str, part: Callable[[Pass], Tensor], *, rank: int = 5, reading: bool = False
) -> None:
    """Put `part` around every evaluation of a CLONE's UNet. Parts of a higher rank run further inside: their
    attention is the first to see q, k and v (regions 3, Z* and references 5, temporal 8, injection 9; `Now`
    stands innermost with 10). With `reading`, the part is also around passes that only read."""

    def wrapper(rest, x, timesteps, context=None, y=None, control=None, transformer_options=None, **extra):
        options = {} if transformer_options is None else transformer_options
        if options.get(REFERENCE) and not reading:
            return rest(x, timesteps, context, y, control, options, **extra)
        return part(Pass(rest, x, timesteps, context, y, control, options, extra))

    model.add_wrapper_with_key("diffusion_model", f"reelbrush {rank} {name}", wrapper)
    every = model.wrappers["diffusion_model"]
    # Python's sort is stable: other packs' wrappers keep their order, ours follow by rank
    model.wrappers["diffusion_model"] = dict(sorted(every.items(), key=lambda item: _rank(item[0])))


def detach(model: Any, name: str, *, rank: int = 5) -> None:
    """Take a part off a CLONE again, to put another in its place."""
    model.remove_wrappers_with_key("diffusion_model", f"reelbrush {rank} {name}")


def _rank(key: Any) -> int:
    first, _, rest = str(key).partition(" ")
    rank = rest.partition(" ")[0]
    return int(rank) if first == "reelbrush" and rank.isdigit() else -1


# -- attention -------------------------------------------------------------------------------------


@dataclass
class Features:
    """What one layer held in one pass; [B, N, heads * d] each. `out` is before the output projection."""

    layer: Layer
    size: tuple[int, int]  # height and width of the N tokens
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    out: Tensor | None = None

    def heads(self, name: str) -> Tensor:
        """`q`, `k`, `v` or `out` as [B, heads, N, d]."""
        return split_heads(getattr(self, name), self.layer.heads)


@dataclass
class At:
    """Where a replacement stands: the layer, this call's options, and what would have run here."""

    layer: Layer
    options: dict
    beneath: Callable[..., Tensor] | None

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.options["activations_shape"][2:])

    @property
    def takes_mask(self) -> bool:
        """Whether `below` can be given a mask: core attention can, another replacement cannot."""
        return self.beneath is None

    def below(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """What would have run here. `mask` is added to the logits, [1 or B, 1 or N, M]."""
        if self.beneath is not None:
            return self.beneath(q, k, v, self.options)
        return host.attention(
            q, k, v, self.layer.heads, mask, self.options.get("attn_precision"), self.options
        )


Attend = Callable[[Tensor, Tensor, Tensor, At], Tensor]


def patched(
    options: dict, chosen: Sequence[Layer], attend: Attend, *, reading: bool = False, kind: str = "attn1"
) -> dict:
    """A copy of `transformer_options` in which `attend` stands around the attention of the chosen layers;
    `kind` "attn2" is the cross-attention beside each."""
    replaced = dict(options.get("patches_replace", {}))
    every = replaced[kind] = dict(replaced.get(kind, {}))
    for layer in chosen:
        beneath = every.get(layer.address, every.get(layer.address[:2]))
        every[layer.address] = _replacement(layer, attend, beneath, reading)
    return {**options, "patches_replace": replaced}


def _replacement(layer: Layer, attend: Attend, beneath: Callable | None, reading: bool) -> Callable:
    def replacement(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        at = At(layer, options, beneath)
        if options.get(REFERENCE) and not reading:
            return at.below(q, k, v)
        height, width = at.size
        if q.shape[1] != height * width:
            raise RuntimeError(
                f"attention layer {layer.number} has {q.shape[1]} tokens for a picture of {height}x{width}: "
                "take Token Merging, HyperTile and other nodes that merge or tile tokens off this model"
            )
        return attend(q, k, v, at)

    replacement.reelbrush_beneath = beneath  # so that what others have set can be told from what is ours
    return replacement


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] as [B, heads, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


# -- reading ---------------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818 - it is no error
    """The last layer that is needed has been read."""


def record(
    run: Callable[[dict], Any],
    options: dict,
    chosen: Sequence[Layer],
    parts: str = "kv",
    *,
    stop: bool = True,
) -> dict[int, Features]:
    """Run `run(options)` and keep the chosen layers' q, k, v, o(ut): `parts` names which, by letter."""
    found: dict[int, Features] = {}
    last = max((layer.number for layer in chosen), default=-1)

    def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
        ends = stop and at.layer.number == last
        out = at.below(q, k, v) if "o" in parts or not ends else None
        held = {"q": q, "k": k, "v": v, "out": out}
        kept = {name: t for name, t in held.items() if name[0] in parts}
        found[at.layer.number] = Features(at.layer, at.size, **kept)
        if ends:
            raise Enough
        return out

    with suppress(Enough):
        run(patched(options, chosen, attend, reading=True))
    if len(found) != len(chosen):
        raise RuntimeError(
            "another node replaces whole attention blocks, so that their layers cannot be read: "
            "take it off this model"
        )
    return found


@contextmanager
def loaded(model: Any) -> Iterator[Any]:
    """A MODEL's base model on the computing device, its weights patched; cleaned up afterwards."""
    host.load_model(model)
    try:
        model.pre_run()
        yield model.model
    finally:
        model.cleanup()


def conditions(
    model: Any, conditioning: list, latents: Tensor, sigma: float | None = None
) -> dict[str, Tensor]:
    """A CONDITIONING as keyword arguments of `apply_model` (text, SDXL's vector): the first entry whose range
    of the sampling holds `sigma`. Areas, masks and ControlNets in it are not used."""
    base = getattr(model, "model", model)
    text, values = _entry(base, conditioning, sigma)
    given = {"width": latents.shape[-1] * 8, "height": latents.shape[-2] * 8, "prompt_type": "positive"}
    given |= {**values, "cross_attn": text, "noise": latents, "device": latents.device}
    return {k: getattr(v, "cond", v) for k, v in base.extra_conds(**given).items()}


def _entry(base: Any, conditioning: list, sigma: float | None) -> tuple[Tensor, dict]:
    to_sigma = base.model_sampling.percent_to_sigma
    for text, values in conditioning:
        high = to_sigma(values.get("start_percent", 0.0))
        low = to_sigma(values.get("end_percent", 1.0))
        if sigma is None or low <= sigma <= high:
            return text, values
    raise ValueError("the conditioning is empty at this noise level: give one that covers the whole sampling")


def standalone_options(model: Any, sigma: Tensor) -> dict:
    """The `transformer_options` that a sampler would hand to the UNet: the clone's patches and wrappers."""
    options = dict(model.model_options.get("transformer_options", {}))
    options["wrappers"] = {
        kind: {key: list(fs) for key, fs in keyed.items()} for kind, keyed in model.wrappers.items()
    }
    return {**options, "sigmas": sigma, "cond_or_uncond": [0], "uuids": [_NEUTRAL]}


def evaluate(
    base: Any, latents: Tensor, sigma: float, conditions: dict[str, Tensor], options: dict
) -> Tensor:
    """The model's denoised latents for variance-preserving ones, through ComfyUI's own `apply_model`.

    `base` is a loaded base model (`with loaded(model) as base`). Gradients flow where they are enabled.
    """
    exact = torch.promote_types(latents.dtype, torch.float32)  # a level in float64 scales float64 exactly
    level = torch.full((len(latents),), sigma, dtype=exact, device=latents.device)
    given = {k: _rows(v, len(latents)) if torch.is_tensor(v) else v for k, v in conditions.items()}
    return base.apply_model(latents * (1 + sigma**2) ** 0.5, level, transformer_options=options, **given)


def capture(
    base: Any,
    latents: Tensor,
    sigma: float,
    conditions: dict[str, Tensor],
    chosen: Sequence[Layer],
    parts: str = "qkvo",
    *,
    options: dict | None = None,
    grad: bool = False,
    stop: bool = True,
) -> dict[int, Features]:
    """Features of variance-preserving latents [n, C, h, w] at a noise level, by layer number.

    `base` is a loaded base model; `options` are `transformer_options` (default: none, the bare network; from
    a sampler give the sampler's). With `grad` they hold the graph back to `latents` (host.differentiable
    gives such a model). `stop` leaves the network after the last chosen layer.
    """
    level = torch.full((1,), sigma, device=latents.device)
    marked = reference({**(options or {}), "sigmas": level})
    with nullcontext() if grad else torch.no_grad():
        return record(
            lambda o: evaluate(base, latents, sigma, conditions, o), marked, chosen, parts, stop=stop
        )


def on_resblock(model: Any, block: int, change: Callable[[Tensor], Tensor]) -> None:
    """On a CLONE: `change` gets what a decoder block's residual block adds to its skip path, and returns it.

    The hook is on the last convolution's `forward`, so that LoRAs on its weights keep working. Hooks chain.
    """
    every = blocks(model)
    if not 0 <= block < len(every):
        raise ValueError(f"there is no decoder block {block} in this model: it has 0..{len(every) - 1}")
    path = f"diffusion_model.{every[block].path}.out_layers.3.forward"
    inner = model.get_model_object(path)
    model.add_object_patch(path, lambda x: change(inner(x)))


def _rows(t: Tensor, n: int) -> Tensor:
    return t.expand(n, *t.shape[1:]) if len(t) == 1 else t
