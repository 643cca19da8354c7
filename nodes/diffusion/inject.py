"""Injection: the content's own features and attention put into the stylized pass (DiffStyler, eqs. 4 and 5).

At every step the inverted content's latents go through the model once: the source. What the decoder's
residual blocks add there (features, f) overrides what they add in the sampler's rows, and the source's
queries and keys override theirs in self- and cross-attention (attention, A); values stay, so that what is
looked at is the content's layout and what is seen is the style's. Plug-and-Play (Tumanyan et al. 2023) is
this with features in block 4 and self-attention in blocks 4-11.

    replace   the source's in place of the row's own (the paper)
    fade      queries and keys q = a q_source + (1 - a) q with a = min(1, 2 t / 1000), features as above (the
              official code)

The source is a reading pass: one row per frame and noise level, for all regions, sides of the guidance and
calls of that level; it sees no ControlNet and none of the style LoRAs of Apply Style LoRA, as the paper has
it ("the original denoising step"), and leaves the UNet after the last thing that is needed. With regions,
rows of the base model outside all masks are left alone (eq. 7 injects in the LoRAs' terms only) until
`outside_when` says otherwise.

Departures of the official code: the source runs under each LoRA (and once per LoRA); features in block 4
only; cross-attention left out; attention in blocks 4-11 where the paper says all decoder layers; base rows
injected in all steps (`outside_end` 1).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import unet
from .hooks import Now
from .regions import ROUTES
from .rows import rows, select
from .store import Reference
from .unet import At, Block, Layer, Pass, SigmaRange

if TYPE_CHECKING:
    from .trajectory import Trajectory

BLENDS = ("replace", "fade")
KINDS = ("attn1", "attn2")
Item = tuple[str, int]  # ("features", block) or ("attn1" or "attn2", layer)


# -- the source ------------------------------------------------------------------------------------


class Source(Reference):
    """The content's features at a call's noise level, kept as the store keeps a style's: once per level and
    frames. Answers {("features", block): [n, C, h, w], ("attn1", layer): (q, k), ("attn2", layer): (q,
    k)}."""

    def __init__(self, model: Any, content: Trajectory, layers: Sequence[Layer], key: str):
        super().__init__(model, content, layers, "qk", frames_apart=True)
        self.key, self._items = key, frozenset()

    def read(self, call: Pass, frames: Sequence[int], items: Sequence[Item]) -> dict[Item, Any]:
        """What `items` names, of these frames."""
        self._items = frozenset(items)
        return self.features(call, frames)

    def _key(self, call: Pass, frames: tuple[int, ...]) -> tuple[Hashable, ...]:
        return (*super()._key(call, frames), self._items)

    def _compute(self, call: Pass, frames: Sequence[int]) -> dict[Item, Any]:
        latents = select(self.trajectory.at(call.sigma), frames, "content trajectory").to(call.x.device)
        if latents.shape[2:] != call.x.shape[2:]:
            raise ValueError(
                f"the content trajectory is {latents.shape[3] * 8}x{latents.shape[2] * 8}, what is sampled "
                f"is {call.x.shape[3] * 8}x{call.x.shape[2] * 8}: inject from an inversion of these latents"
            )
        given = unet.conditions(self.base, self.trajectory.conditioning, latents, call.sigma)
        reading = _Reading(self._items)
        options = {**unet.reference(call.options), self.key: reading}
        for kind in KINDS:
            chosen = [layer for layer in self.chosen if (kind, layer.number) in self._items]
            options = unet.patched(options, chosen, reading.attend(kind), reading=True, kind=kind)
        with suppress(unet.Enough):
            call.elsewhere(latents, given)(options)
        if reading.missing:
            raise RuntimeError(
                "another node replaces whole attention blocks, so that their layers cannot be read: "
                "take it off this model"
            )
        return reading.found


class _Reading:
    """What a reading pass has met so far."""

    def __init__(self, wanted: frozenset[Item]):
        self.missing, self.found = set(wanted), {}

    def keep(self, item: Item, value: Any) -> None:
        if item in self.missing:
            self.found[item] = value
            self.missing.remove(item)
            if not self.missing:
                raise unet.Enough

    def attend(self, kind: str):
        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            self.keep((kind, at.layer.number), (q, k))
            return at.below(q, k, v)

        return attend


# -- the injection ---------------------------------------------------------------------------------


@dataclass
class Plan:
    """One evaluation's injection: from what, into which rows."""

    held: dict[Item, Any]
    features: list[slice]
    attention: list[slice]
    amount: float = 1.0  # of queries and keys


@dataclass
class Inject:
    """The part. Ranges are noise levels; `outside_when` is for the base model's rows beside regions."""

    content: Trajectory
    blocks: Sequence[Block]
    layers: Sequence[Layer]
    features_when: SigmaRange
    attention_when: SigmaRange
    outside_when: SigmaRange
    kinds: Sequence[str] = KINDS
    blend: str = "replace"
    now: Now = field(default_factory=Now)

    def __post_init__(self):
        if self.blend not in BLENDS:
            raise ValueError(f"{self.blend!r} is no blend of an injection: {', '.join(BLENDS)}")
        self.key = f"reelbrush inject {id(self)}"  # several injections may stand on one model

    def __deepcopy__(self, memo: dict) -> Inject:
        return self

    def attach(self, model: Any) -> None:
        """Put the part on a CLONE; innermost of the parts, so that all others see the injected attention."""
        self.source = Source(model, self.content, self.layers, f"{self.key} source")
        self.now.attach(model, self.key)
        unet.attach(model, "inject", self.part, rank=9)
        self.source.attach(model, self.key)
        for block in self.blocks:
            unet.on_resblock(model, block.number, lambda h, number=block.number: self._block(number, h))

    def _block(self, number: int, h: Tensor) -> Tensor:
        """The hook on a residual block: of the source it is read, of the sampler's rows replaced."""
        item = ("features", number)
        if (reading := self.now.wish(self.source.key, reading=True)) is not None:
            reading.keep(item, h)
        plan = self.now.wish(self.key)
        if plan is not None and item in plan.held:
            for where in plan.features:
                source = plan.held[item]
                h[where].unflatten(0, (-1, len(source))).copy_(source)
        return h

    def part(self, call: Pass) -> Tensor:
        """Around one evaluation of the UNet."""
        plan = self._plan(call)
        if plan is None:
            return call.run()
        options = {**call.options, self.key: plan}
        for kind in self.kinds:
            chosen = [layer for layer in self.layers if (kind, layer.number) in plan.held]
            options = unet.patched(options, chosen, _attend(plan, kind), kind=kind)
        return call.run(options=options)

    def _plan(self, call: Pass) -> Plan | None:
        features, attention = self._rows(call, self.features_when), self._rows(call, self.attention_when)
        items = [("features", block.number) for block in self.blocks if features]
        items += [(kind, layer.number) for kind in self.kinds for layer in self.layers if attention]
        if not items:
            return None
        where = rows(call.options, len(call.x))
        held = self.source.read(call, where.frames, items)
        amount = min(1.0, float(call.timesteps[0]) / 500) if self.blend == "fade" else 1.0
        return Plan(held, features, attention, amount)

    def _rows(self, call: Pass, when: SigmaRange) -> list[slice]:
        """The rows that are injected now, the base model's beside regions for as long as they are."""
        routes, count = call.options.get(ROUTES), len(call.x)
        now = call.sigma in when
        outside = None if routes is None or routes.count != count else routes.outside
        if outside is None:
            return [slice(0, count)] if now else []
        found = [outside] if call.sigma in self.outside_when and not self.outside_when.empty else []
        return found + ([slice(outside.stop, count)] if now and outside.stop < count else [])


def _attend(plan: Plan, kind: str):
    """Queries and keys of the source, values of the row's own."""

    def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
        q_source, k_source = plan.held[kind, at.layer.number]
        q, k = (_blended(own, s, plan) for own, s in ((q, q_source), (k, k_source)))
        return at.below(q, k, v)

    return attend


def _blended(own: Tensor, source: Tensor, plan: Plan) -> Tensor:
    """Tokens of the rows of a plan moved to the source's. A text of another length is read again from its
    start, as where texts of two lengths meet in one batch."""
    if source.shape[1] != own.shape[1]:
        source = source[:, torch.arange(own.shape[1], device=own.device) % source.shape[1]]
    own = own.clone()
    for where in plan.attention:
        mine = own[where].unflatten(0, (-1, len(source)))
        if plan.amount < 1:
            mine.lerp_(source, plan.amount)
        else:
            mine.copy_(source)
    return own
