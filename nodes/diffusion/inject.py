"""Injection: the content's own features and attention in the stylized evaluation (DiffStyler, eqs. 4 and 5).

At every step the inverted content's latents are evaluated once: the *source*. What its decoder's residual
blocks add (features, f) replaces what they add in the sampler's rows. Its queries and keys replace theirs in
self- and cross-attention (attention, A). Values are not replaced: queries and keys carry the content's
layout, values carry the style. Plug-and-Play (Tumanyan et al. 2023) is this with features in block 4 and
self-attention in blocks 4-11.

    replace   the source's in place of the row's own (the paper)
    fade      queries and keys q = a q_source + (1 - a) q with a = min(1, 2 t / 1000), features as above (the
              official code)

The source is a reading pass: one row per frame and noise level, for all regions, sides of the guidance and
calls of that level. It sees no ControlNet and none of the style LoRAs of Apply Style LoRA, as in the paper
("the original denoising step"), and it stops after the last thing that is needed. With regions, the base
model's rows are not injected (eq. 7 injects in the LoRAs' terms only), except where `outside_active` says so.

Departures of the official code: the source runs under each LoRA (and once per LoRA); features in block 4
only; no cross-attention; attention in blocks 4-11 where the paper has all decoder layers; base rows injected
in all steps (`outside_end` 1). `preset_settings` has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .inversion.trajectory import Trajectory
from .patching import unet
from .patching.feature_cache import FeatureCache
from .patching.hooks import RunningOptions, on_resblock
from .patching.layers import AttentionLayer, DecoderBlock, SigmaRange
from .patching.rows import rows
from .patching.unet import AttentionSite, UNetCall
from .regions import ROUTES

BLENDS = ("replace", "fade")
KINDS = ("attn1", "attn2")
PRESETS = ("custom", "paper", "official code")
Item = tuple[str, int]  # ("features", block number), or ("attn1" or "attn2", layer number)


def preset_settings(preset: str, blocks: int) -> dict[str, Any]:
    """The settings of a preset for a model with so many decoder blocks; none for "custom".

    Paper and code count the 12 decoder blocks of Stable Diffusion. SDXL has 9: it lacks the three of the
    lowest resolution. So blocks are counted from the end, where both have the same resolutions: 4 and 4-11
    are 1 and 1-8 there.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}: choose {', '.join(PRESETS)}")
    if preset == "custom":
        return {}
    settings = {"feature_end": 30 / 50, "attention_end": 25 / 50, "self_attention": True}
    if preset == "paper":
        own = {"feature_blocks": "last 8", "attention_blocks": "all"}
        return settings | own | {"cross_attention": True, "blend": "replace", "outside_end": 0.0}
    own = {"feature_blocks": str(max(0, blocks - 8)), "attention_blocks": "last 8"}
    return settings | own | {"cross_attention": False, "blend": "fade", "outside_end": 1.0}


# -- the source ------------------------------------------------------------------------------------


class InjectionSource(FeatureCache):
    """The content's features at a call's noise level, computed once per level and frames.

    {("features", block): [n, C, h, w], ("attn1", layer): (q, k), ("attn2", layer): (q, k)}.
    """

    def __init__(self, model: Any, content: Trajectory, layers: Sequence[AttentionLayer], key: str):
        super().__init__(model, content, layers, "qk", frames_apart=True)
        self.key = key

    def _read(self, call: UNetCall, latents: Tensor, conditions: dict, wanted: frozenset[Item]) -> dict:
        reading = ItemReader(wanted)
        options = {**unet.reading_options(call.options), self.key: reading}
        for kind in KINDS:
            layers = [layer for layer in self.layers if (kind, layer.number) in wanted]
            options = unet.with_attention(options, layers, reading.attend(kind), reading=True, kind=kind)
        with suppress(unet.StopForward):
            call.on_latents(latents, conditions)(options)
        if reading.missing:
            raise unet.unreadable()
        return reading.items


class ItemReader:
    """Keeps the wanted items of one reading pass, and ends it after the last one."""

    def __init__(self, wanted: frozenset[Item]):
        self.missing, self.items = set(wanted), {}

    def keep(self, item: Item, value: Any) -> None:
        if item in self.missing:
            self.items[item] = value
            self.missing.remove(item)
            if not self.missing:
                raise unet.StopForward

    def attend(self, kind: str) -> unet.Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            self.keep((kind, site.layer.number), (q, k))
            return site.inner(q, k, v)

        return attend


# -- the injection ---------------------------------------------------------------------------------


@dataclass
class Injection:
    """What is injected in one evaluation, and into which rows."""

    source: dict[Item, Any]
    feature_rows: list[slice]
    attention_rows: list[slice]
    amount: float = 1.0  # of the source's queries and keys

    def attend(self, kind: str) -> unet.Attend:
        """Attention with the source's queries and keys and the row's own values."""

        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            q_source, k_source = self.source[kind, site.layer.number]
            return site.inner(self._blended(q, q_source), self._blended(k, k_source), v)

        return attend

    def _blended(self, own: Tensor, source: Tensor) -> Tensor:
        """A shorter or longer text is repeated or cut, as ComfyUI does for texts in one batch."""
        if source.shape[1] != own.shape[1]:
            source = source[:, torch.arange(own.shape[1], device=own.device) % source.shape[1]]
        own = own.clone()
        for chosen in self.attention_rows:
            target = own[chosen].unflatten(0, (-1, len(source)))
            if self.amount < 1:
                target.lerp_(source, self.amount)
            else:
                target.copy_(source)
        return own


@dataclass
class InjectPatch:
    """Injection in some blocks and layers; `outside_active` is for the base model's rows beside regions."""

    content: Trajectory
    blocks: Sequence[DecoderBlock]
    layers: Sequence[AttentionLayer]
    features_active: SigmaRange
    attention_active: SigmaRange
    outside_active: SigmaRange
    kinds: Sequence[str] = KINDS
    blend: str = "replace"
    running: RunningOptions = field(default_factory=RunningOptions)

    def __post_init__(self):
        if self.blend not in BLENDS:
            raise ValueError(f"blend is {self.blend!r}: choose {', '.join(BLENDS)}")
        self.key = f"reelbrush inject {id(self)}"  # a model may have several injections

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE, inside all others, so that they see the injected attention."""
        self.source = InjectionSource(model, self.content, self.layers, f"{self.key} source")
        self.running.attach(model, self.key)
        unet.attach(model, "inject", self.patch, rank=9)
        self.source.attach(model, self.key)
        for block in self.blocks:
            on_resblock(model, block, lambda h, number=block.number: self._block(number, h))

    def _block(self, number: int, h: Tensor) -> Tensor:
        """The hook on a residual block: it reads the source's output and replaces the sampler's."""
        item = ("features", number)
        if (reading := self.running.get(self.source.key, reading=True)) is not None:
            reading.keep(item, h)
        injection = self.running.get(self.key)
        if injection is not None and item in injection.source:
            source = injection.source[item]
            for chosen in injection.feature_rows:
                h[chosen].unflatten(0, (-1, len(source))).copy_(source)
        return h

    def patch(self, call: UNetCall) -> Tensor:
        """Around one evaluation of the UNet."""
        injection = self._injection(call)
        if injection is None:
            return call.run()
        options = {**call.options, self.key: injection}
        for kind in self.kinds:
            layers = [layer for layer in self.layers if (kind, layer.number) in injection.source]
            options = unet.with_attention(options, layers, injection.attend(kind), kind=kind)
        return call.run(options=options)

    def _injection(self, call: UNetCall) -> Injection | None:
        features, attention = self._rows(call, self.features_active), self._rows(call, self.attention_active)
        items = [("features", block.number) for block in self.blocks if features]
        items += [(kind, layer.number) for kind in self.kinds for layer in self.layers if attention]
        if not items:
            return None
        frames = rows(call.options, len(call.x)).frames
        source = self.source.features(call, frames, frozenset(items))
        amount = min(1.0, float(call.timesteps[0]) / 500) if self.blend == "fade" else 1.0
        return Injection(source, features, attention, amount)

    def _rows(self, call: UNetCall, active: SigmaRange) -> list[slice]:
        """The rows that are injected in this call."""
        routes, count = call.options.get(ROUTES), len(call.x)
        is_active = call.sigma in active
        outside = None if routes is None or routes.count != count else routes.outside
        if outside is None:
            return [slice(0, count)] if is_active else []
        chosen = [outside] if call.sigma in self.outside_active and not self.outside_active.empty else []
        return chosen + ([slice(outside.stop, count)] if is_active and outside.stop < count else [])
