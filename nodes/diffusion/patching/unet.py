"""Patches around ComfyUI's UNet: replace its attention and read its features, on a clone of the MODEL.

A node clones the MODEL and calls `attach(clone, name, patch)`. Every evaluation of the UNet then goes through
`patch(call)`. A patch may change the inputs, use the output, read features of other latents at the same noise
level (`call.read`), and replace attention for this evaluation:

    def patch(call):
        if call.sigma not in sigma_range:
            return call.run()
        return call.run(options=with_attention(call.options, layers, attend))

    def attend(q, k, v, site):        # [B, N, heads * d] after the projections; the result goes to `to_out`
        return site.inner(q, torch.cat([more_k, k], 1), torch.cat([more_v, v], 1))

`site.inner` is the attention that would have run here: the replacement of another pack, of another patch of
ours, or ComfyUI's attention with its precision and options. The replacements are put into a copy of
`transformer_options` when the UNet is called. So they wrap what other nodes have set, whether these come
before or after ours, and outside the range there is no replacement at all. All patches put additional tokens
IN FRONT, so that the last N tokens are always the frame's own.

A *reading pass* evaluates the UNet only to read features (`call.read`, `capture`). It runs ComfyUI's own
forward and stops after the last layer that is needed. It carries the mark READING in `transformer_options`:
our patches are not active in it. It sees no ControlNet, because the UNet empties a ControlNet's lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....kernels.reweight import KeysValues, extend, key_bias
from ... import host
from .layers import AttentionLayer

READING = "reelbrush_reading"  # in transformer_options: this evaluation is a reading pass
COPIES = "reelbrush_copies"  # in transformer_options: how often a frame's own content is among its keys

# -- one evaluation of the UNet --------------------------------------------------------------------


@dataclass
class UNetCall:
    """One evaluation of the UNet, as a patch sees it; `x` is variance preserving."""

    inner: Callable[..., Tensor]
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
        """Evaluate the UNet, through the patches further inside; `options=`, `x=`, ... replace inputs."""
        c = replace(self, **changes)
        return c.inner(c.x, c.timesteps, c.context, c.y, c.control, c.options, **c.extra)

    def read(
        self,
        latents: Tensor,
        conditions: dict[str, Tensor],
        layers: Sequence[AttentionLayer],
        names: str = "kv",
    ) -> dict[int, Features]:
        """Features of other latents (variance preserving, [n, C, h, w]) at this call's noise level."""
        run = self.on_latents(latents, conditions)
        return record(run, reading_options(self.options), layers, names)

    def on_latents(self, latents: Tensor, conditions: dict[str, Tensor]) -> Callable[[dict], Tensor]:
        """This evaluation on other latents, as a function of `transformer_options`; for reading passes."""
        tensors = {k: v for k, v in conditions.items() if torch.is_tensor(v)}
        extra = {k: host.one_per_row(v, len(latents)).to(self.x) for k, v in tensors.items()}
        x = latents.to(self.x)
        if (concat := extra.pop("c_concat", None)) is not None:
            x = torch.cat([x, concat], dim=1)
        changes = {
            "x": x,
            "timesteps": self.timesteps[:1].expand(len(x)),
            "context": extra.pop("c_crossattn", None),
            "y": extra.pop("y", None),
            "control": None,
            "extra": extra,
        }
        return lambda options: self.run(options=options, **changes)

    def repeated(self, times: int) -> UNetCall:
        """The call with all its rows `times` times, one copy of the batch after the other."""
        n = len(self.x)

        def repeat(value: Any) -> Any:
            per_row = torch.is_tensor(value) and len(value) == n and times > 1
            return torch.cat([value] * times) if per_row else value

        options = dict(self.options)
        if times > 1:
            options["cond_or_uncond"] = list(options.get("cond_or_uncond") or [0]) * times
            if "uuids" in options:
                options["uuids"] = list(options["uuids"]) * times
        # new lists for the ControlNet's output: the UNet empties them
        control = self.control and {k: [repeat(t) for t in ts] for k, ts in self.control.items()}
        return replace(
            self,
            x=repeat(self.x),
            timesteps=repeat(self.timesteps),
            context=repeat(self.context),
            y=repeat(self.y),
            control=control,
            options=options,
            extra={k: repeat(v) for k, v in self.extra.items()},
        )


def reading_options(options: dict) -> dict:
    """`transformer_options` for a reading pass: marked, with neutral row ids."""
    patches = {k: v for k, v in options.get("patches", {}).items() if k != "middle_patch"}  # GLIGEN's
    rows = {"cond_or_uncond": [1], "uuids": [host.NEUTRAL_ID]}
    return {**options, "patches": patches, READING: True, **rows}


def attach(
    model: Any, name: str, patch: Callable[[UNetCall], Tensor], *, rank: int = 5, reading: bool = False
) -> None:
    """Put `patch` around every evaluation of a CLONE's UNet.

    A patch with a higher rank runs further inside, and its attention gets q, k and v first: regions 3, Z* and
    references 5, temporal attention 8, injection 9, `RunningOptions` 10. With `reading`, the patch is also
    active in reading passes.
    """

    def wrapper(inner, x, timesteps, context=None, y=None, control=None, transformer_options=None, **extra):
        options = {} if transformer_options is None else transformer_options
        if options.get(READING) and not reading:
            return inner(x, timesteps, context, y, control, options, **extra)
        return patch(UNetCall(inner, x, timesteps, context, y, control, options, extra))

    host.add_wrapper(model, "diffusion_model", f"reelbrush {rank} {name}", wrapper)


def is_attached(model: Any, name: str, *, rank: int = 5) -> bool:
    """Whether a MODEL has a patch."""
    return f"reelbrush {rank} {name}" in model.wrappers.get("diffusion_model", {})


def detach(model: Any, name: str, *, rank: int = 5) -> None:
    """Remove a patch from a CLONE."""
    host.remove_wrappers(model, "diffusion_model", f"reelbrush {rank} {name}")


# -- attention -------------------------------------------------------------------------------------


@dataclass
class Features:
    """What one layer computed in one evaluation, [B, N, heads * d]. `out` is before the output projection."""

    layer: AttentionLayer
    size: tuple[int, int]  # height and width of the N tokens
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    out: Tensor | None = None

    def heads(self, name: str) -> Tensor:
        """`q`, `k`, `v` or `out` as [B, heads, N, d]."""
        return getattr(self, name).unflatten(-1, (self.layer.heads, -1)).transpose(1, 2)

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same layer with every tensor changed."""
        return self.joined([self], lambda tensors: change(tensors[0]))

    @staticmethod
    def joined(parts: list[Features], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> Features:
        """The features of several evaluations of one layer as one."""
        names = [name for name in ("q", "k", "v", "out") if getattr(parts[0], name) is not None]
        return replace(parts[0], **{name: join([getattr(part, name) for part in parts]) for name in names})


@dataclass
class AttentionSite:
    """Where a replacement runs: the layer, the call's options, and the attention that it replaces."""

    layer: AttentionLayer
    options: dict
    replaced: Callable[..., Tensor] | None

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.options["activations_shape"][2:])

    @property
    def takes_mask(self) -> bool:
        """Whether `inner` can use a mask: ComfyUI's attention can, another replacement cannot."""
        return self.replaced is None

    @property
    def copies(self) -> int:
        """How often a frame's own content is among its keys: 1, and once for each anchor in front of it."""
        return self.options.get(COPIES, 1)

    def with_copies(self, copies: int) -> AttentionSite:
        return replace(self, options={**self.options, COPIES: self.copies * copies})

    def beside(
        self, q: Tensor, own: KeysValues, other: KeysValues, *, scale: float = 1.0, bias: Tensor | None = None
    ) -> Tensor:
        """One softmax over another picture's tokens and the frame's own (eq. 12). `bias` [M] is added to the
        logits of the other picture, which counts once for each copy of the own tokens."""
        if self.copies > 1 and self.takes_mask:
            bias = (other[0].new_zeros(other[0].shape[1]) if bias is None else bias) + math.log(self.copies)
        elif self.copies > 1:
            other = tuple(t.repeat(1, self.copies, 1) for t in other)
        mask = key_bias(bias, own[0].shape[1], q)
        return self.inner(q, *extend(own, other, scale=scale), mask=None if mask is None else mask[None])

    def inner(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention that would have run here. `mask` is added to the logits, [1 or B, 1 or N, M]."""
        if self.replaced is not None:
            return self.replaced(q, k, v, self.options)
        return host.attention(
            q, k, v, self.layer.heads, mask, self.options.get("attn_precision"), self.options
        )


Attend = Callable[[Tensor, Tensor, Tensor, AttentionSite], Tensor]


def with_attention(
    options: dict,
    layers: Sequence[AttentionLayer],
    attend: Attend,
    *,
    reading: bool = False,
    kind: str = "attn1",
) -> dict:
    """A copy of `transformer_options` in which `attend` replaces the attention of some layers; with `kind`
    "attn2", the cross-attention beside each of them."""
    replacements = dict(options.get("patches_replace", {}))
    of_kind = replacements[kind] = dict(replacements.get(kind, {}))
    for layer in layers:
        replaced = of_kind.get(layer.address, of_kind.get(layer.address[:2]))
        of_kind[layer.address] = _replacement(layer, attend, replaced, reading)
    return {**options, "patches_replace": replacements}


def _replacement(layer: AttentionLayer, attend: Attend, replaced: Callable | None, reading: bool) -> Callable:
    def replacement(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        site = AttentionSite(layer, options, replaced)
        if options.get(READING) and not reading:
            return site.inner(q, k, v)
        height, width = site.size
        if q.shape[1] != height * width:
            raise RuntimeError(
                f"attention layer {layer.number} has {q.shape[1]} tokens for a picture of {height}x{width}: "
                "remove Token Merging, HyperTile and other nodes that merge or tile tokens from this model"
            )
        return attend(q, k, v, site)

    replacement.reelbrush_replaced = replaced  # other packs' replacements are part of a feature's identity
    return replacement


# -- reading passes --------------------------------------------------------------------------------


class StopForward(Exception):  # noqa: N818 - it is not an error
    """Everything that is needed has been read."""


def unreadable() -> RuntimeError:
    """The error for layers that a reading pass has not reached."""
    return RuntimeError(
        "another node replaces whole attention blocks, so that their layers cannot be read: "
        "remove it from this model"
    )


def record(
    run: Callable[[dict], Any], options: dict, layers: Sequence[AttentionLayer], names: str = "kv"
) -> dict[int, Features]:
    """Call `run(options)` until q, k, v, o(ut) of some layers are computed, as the letters of `names` say."""
    features: dict[int, Features] = {}
    last = max((layer.number for layer in layers), default=-1)

    def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        ends = site.layer.number == last
        out = site.inner(q, k, v) if "o" in names or not ends else None
        tensors = {"q": q, "k": k, "v": v, "out": out}
        wanted = {name: t for name, t in tensors.items() if name[0] in names}
        features[site.layer.number] = Features(site.layer, site.size, **wanted)
        if ends:
            raise StopForward
        return out

    try:
        with suppress(StopForward):
            run(with_attention(options, layers, attend, reading=True))
        if len(features) != len(layers):
            raise unreadable()
        return dict(features)
    finally:
        features.clear()  # a graph with recomputation keeps the options, and so `attend`: a cycle otherwise


def capture(
    base: Any,
    latents: Tensor,
    sigma: float,
    conditions: dict[str, Tensor],
    layers: Sequence[AttentionLayer],
    names: str = "qkvo",
    *,
    options: dict | None = None,
    grad: bool = False,
) -> dict[int, Features]:
    """Features of variance-preserving latents [n, C, h, w] at a noise level, by layer number.

    `base` is a loaded base model. `options` are `transformer_options`: none for the network alone, or those
    of a sampler. With `grad` the features keep the graph to `latents` (use a model from host.differentiable).
    """
    level = torch.full((1,), sigma, device=latents.device)
    marked = reading_options({**(options or {}), "sigmas": level})

    def run(options: dict) -> Tensor:
        return host.evaluate(base, latents, sigma, conditions, options)

    with nullcontext() if grad else torch.no_grad():
        return record(run, marked, layers, names)
