"""Features of a TRAJECTORY, computed once and shared by all rows, frames and calls.

At one noise level every frame of the clip attends to the same keys and values of the style. So a style costs
one UNet row per step, for any number of frames and calls. `FeatureCache` computes the features in a reading
pass of their own and keeps them:

    gpu        the two newest noise levels, on the device, until the run ends (two, because Heun's method goes
               back); of a content only the frames of the two newest calls, so that it does not grow with
               the clip
    cpu        every noise level, in ordinary memory, for as long as the TRAJECTORY exists: a second run with
               the same model and sampling computes nothing
    recompute  nothing: one reading pass per UNet call

Kept features are used again only for an equal `FeatureKey`. Models and patches are in it as weak references
that compare by identity, so that a key of a deleted object equals no other key.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import host
from ..inversion.trajectory import Trajectory
from .layers import AttentionLayer, family
from .rows import rows
from .unet import Features, UNetCall

CACHES = ("gpu", "cpu", "recompute")
_LEVELS = 2
_CALLS = 2  # of a content: the positive and the negative call of the same frames come one after the other


class FeatureKey(NamedTuple):
    """Everything that features depend on."""

    sigma: float
    timestep: float
    weights: Hashable
    patches: Hashable
    dtype: torch.dtype
    size: tuple[int, ...]  # of the trajectory's latents
    frames: tuple[int, ...]  # of a content; () for a style
    wanted: Hashable  # what is read; in CPU memory, one layer
    text: Hashable = None  # the negative side whose text is read with; None: the trajectory's text


@dataclass
class SideText:
    """The text of a negative side: for all its frames, or for each of them."""

    key: Hashable
    tensors: dict[str, Tensor]  # [1 or frames, ...]


# in CPU memory, by trajectory
_KEPT: weakref.WeakKeyDictionary[Trajectory, dict[FeatureKey, Features]] = weakref.WeakKeyDictionary()


class FeatureCache:
    """Features of a trajectory's pictures at the noise level of a call.

    With `frames_apart`, the pictures are the frames of a content, and a call gets those of its own frames.
    Otherwise they are one style, and their tokens are concatenated. A style is read with the text of its
    trajectory, but for the rows of a negative conditioning with that row's text: in eq. 12 with guidance, the
    style is a row of the same batch. With null-text embeddings it is then read once per frame.
    """

    def __init__(
        self,
        model: Any,
        trajectory: Trajectory,
        layers: Sequence[AttentionLayer],
        names: str = "kv",
        *,
        cache: str = "gpu",
        frames_apart: bool = False,
    ):
        trajectory.require(family(model))
        if cache not in CACHES:
            raise ValueError(f"cache is {cache!r}: choose {', '.join(CACHES)}")
        self.base, self.trajectory, self.layers, self.names = model.model, trajectory, list(layers), names
        self.cache, self.frames_apart = cache, frames_apart
        self._levels: OrderedDict[FeatureKey, dict] = OrderedDict()  # on the device

    def attach(self, model: Any, name: str) -> None:
        """Have a CLONE release the device's memory when a run ends, after a cancel too."""
        host.on_cleanup(model, f"reelbrush {name}", self._levels.clear)

    def features(self, call: UNetCall, frames: Sequence[int] = (), wanted: Hashable = None) -> dict[Any, Any]:
        """By layer number: of a style [1, tokens, C], or with texts of their own [rows, tokens, C]; of a
        content [frames, tokens, C].

        `wanted` tells what to read where a subclass reads other things than layers.
        """
        wanted = (self.names, tuple(self.layers)) if wanted is None else wanted
        if self.frames_apart:
            return self._features(call, self._key(call, tuple(frames), wanted))
        key = self._key(call, (), wanted)
        texts = self._negative_texts(call)
        if not any(texts):
            return self._features(call, key)
        n, sides = len(call.x) // len(texts), []
        for text in texts:
            features = self._features(call, key._replace(text=text and text.key), text)
            sides.append({i: f.map(lambda t: t.expand(n, -1, -1)) for i, f in features.items()})
        return {i: Features.joined([side[i] for side in sides]) for i in sides[0]}

    def _negative_texts(self, call: UNetCall) -> list[SideText | None]:
        """For each side of the call its own text, None where the style is read with its trajectory's."""
        of_call = rows(call.options, len(call.x))
        texts: list[SideText | None] = [None] * len(of_call.sides)
        for place, side in enumerate(of_call.sides):
            if side[0] != 1 or call.context is None:
                continue
            part = slice(place * of_call.count, (place + 1) * of_call.count)
            tensors = {"c_crossattn": call.context[part]} | ({} if call.y is None else {"y": call.y[part]})
            alike = all((t == t[:1]).all() for t in tensors.values())
            if alike:
                tensors = {name: t[:1] for name, t in tensors.items()}
            known = host.conditions(self.base, self.trajectory.conditioning, call.x[:1], call.sigma)
            same = all(torch.equal(known[name].to(t), t) for name, t in tensors.items() if name in known)
            if not (alike and same):
                texts[place] = SideText((side, () if alike else of_call.frames), tensors)
        return texts

    def _features(self, call: UNetCall, key: FeatureKey, text: SideText | None = None) -> dict[Any, Any]:
        if key in self._levels:
            return self._levels[key]
        features = None if text else self._recall(key, call.x.device)
        features = features or self._compute(call, key, text)
        if self.cache != "recompute":
            self._levels[key] = features
            while self._too_many():
                self._levels.popitem(last=False)
        if self.cache == "cpu" and text is None:
            self._remember(key, features)
        return features

    def _too_many(self) -> bool:
        if self.frames_apart:
            return len(self._levels) > _CALLS
        return len({(key.sigma, key.timestep) for key in self._levels}) > _LEVELS

    def _compute(self, call: UNetCall, key: FeatureKey, text: SideText | None = None) -> dict[Any, Any]:
        if self.frames_apart:
            latents = self.trajectory.of_frames(call.sigma, key.frames, call.x)
        else:
            latents = self.trajectory.at(call.sigma).to(call.x.device)
        conditions = host.conditions(self.base, self.trajectory.conditioning, latents, call.sigma)
        if text is not None:
            pictures, texts = len(latents), len(text.tensors["c_crossattn"])
            latents = latents.repeat(texts, 1, 1, 1)
            conditions |= {name: t.repeat_interleave(pictures, 0) for name, t in text.tensors.items()}
        features = self._read(call, latents, conditions, key.wanted)
        if text is None or texts == 1:
            return features
        return {n: f.map(lambda t: t.view(texts, -1, t.shape[-1])) for n, f in features.items()}

    def _read(self, call: UNetCall, latents: Tensor, conditions: dict, wanted: Hashable) -> dict[Any, Any]:
        features = call.read(latents, conditions, self.layers, self.names)
        if self.frames_apart:
            return features
        return {n: f.map(lambda t: t.reshape(1, -1, t.shape[-1])) for n, f in features.items()}

    def _key(self, call: UNetCall, frames: tuple[int, ...], wanted: Hashable) -> FeatureKey:
        weights, patches = host.weights_key(self.base), patches_key(call.options)
        size = tuple(self.trajectory.latents.shape[1:])
        timestep = float(call.timesteps[0])
        return FeatureKey(call.sigma, timestep, weights, patches, call.x.dtype, size, frames, wanted)

    # CPU memory; one entry per layer, so that nodes with other layers share them

    def _recall(self, key: FeatureKey, device: torch.device) -> dict[int, Features] | None:
        entries = _KEPT.get(self.trajectory, {}) if self.cache == "cpu" else {}
        features = [entries.get(self._of_layer(key, layer)) for layer in self.layers]
        if any(f is None for f in features):
            return None
        return {f.layer.number: f.map(lambda t: t.to(device)) for f in features}

    def _remember(self, key: FeatureKey, features: dict[int, Features]) -> None:
        entries = _KEPT.setdefault(self.trajectory, {})
        for old in [k for k in entries if (k.weights, k.patches) != (key.weights, key.patches)]:
            del entries[old]  # keep only this model's features, because they are large
        for layer in self.layers:
            kept = features[layer.number].map(lambda t: t.to("cpu"))
            entries.setdefault(self._of_layer(key, layer), kept)

    def _of_layer(self, key: FeatureKey, layer: AttentionLayer) -> FeatureKey:
        return key._replace(wanted=(self.names, layer))


def patches_key(options: dict) -> Hashable:
    """Equal only if other nodes have set the same patches; ours are not active in a reading pass."""
    items: list[Hashable] = [
        (name, host.identity(f)) for name, patches in options.get("patches", {}).items() for f in patches
    ]
    for name, replaced in options.get("patches_replace", {}).items():
        for address, f in replaced.items():
            while f is not None and hasattr(f, "reelbrush_replaced"):
                f = f.reelbrush_replaced
            if f is not None:
                items.append((name, address, host.identity(f)))
    for keyed in options.get("wrappers", {}).values():
        for key, functions in keyed.items():
            if not str(key).startswith("reelbrush"):
                items += [(str(key), host.identity(f)) for f in functions]
    items.append(("override", host.identity(options.get("optimized_attention_override"))))
    return tuple(items)
