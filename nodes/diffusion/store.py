"""A style is computed once: features of a TRAJECTORY, shared by all rows, frames, chunks and calls.

At one noise level every frame of the clip looks at the same keys and values of the style, so a style costs
one UNet row per step, however many frames there are and however they are split over calls. `Reference`
computes them in a pass of their own (`Pass.read`: no ControlNet, stops after the last layer) and keeps them:

    gpu        the two newest noise levels, on the device, until the run ends (two, because Heun looks back);
               of a content only the frames of the two newest calls, so that it does not grow with the clip
    cpu        every noise level, in ordinary memory, on the TRAJECTORY: a second run with the same model
               and sampling computes nothing
    recompute  nothing: one pass per UNet call

What was kept is used again only under an equal key: the weights (base model, patches, object patches, LoRA
hooks), the patches of other nodes, the noise level and timestep, the pictures' size, their frames, the
layer and the number type. Objects are held weakly and compare by identity, so a key of something that is
gone equals nothing.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import unet
from .rows import select
from .unet import Features, Layer, Pass

if TYPE_CHECKING:
    from .trajectory import Trajectory

CACHES = ("gpu", "cpu", "recompute")
_LEVELS = 2
_CALLS = 2  # of a content: every call brings frames of its own, and both its sides come one after the other


class Reference:
    """Features of a trajectory's pictures at the noise level of a call.

    `frames_apart`: the pictures are frames of the clip (a content), and a call gets those of its own frames.
    Otherwise they are one style, and their tokens stand side by side.
    """

    def __init__(
        self,
        model: Any,
        trajectory: Trajectory,
        chosen: Sequence[Layer],
        parts: str = "kv",
        *,
        cache: str = "gpu",
        frames_apart: bool = False,
    ):
        trajectory.require(unet.family(model))
        if cache not in CACHES:
            raise ValueError(f"{cache!r} is no place to keep a style: {', '.join(CACHES)}")
        self.base, self.trajectory, self.chosen, self.parts = model.model, trajectory, list(chosen), parts
        self.cache, self.frames_apart = cache, frames_apart
        self._levels: OrderedDict[Hashable, dict[int, Features]] = OrderedDict()

    def attach(self, model: Any, name: str) -> None:
        """Have a CLONE drop what is on the device when a run ends, after a cancel too."""
        model.add_callback_with_key("on_cleanup", f"reelbrush {name}", lambda patcher: self.drop())

    def drop(self) -> None:
        """Forget what is on the device."""
        self._levels.clear()

    def features(self, call: Pass, frames: Sequence[int] = ()) -> dict[int, Features]:
        """By layer number; [1, tokens, C] of a style, [frames, tokens, C] of a content."""
        wanted = tuple(frames) if self.frames_apart else ()
        key = self._key(call, wanted)
        if (kept := self._levels.get(key)) is not None:
            return kept
        found = self._recall(key, call.x) or self._compute(call, wanted)
        if self.cache != "recompute":
            self._levels[key] = found
            while self._too_many():
                self._levels.popitem(last=False)
        if self.cache == "cpu":
            self._remember(key, found)
        return found

    def _too_many(self) -> bool:
        if self.frames_apart:
            return len(self._levels) > _CALLS
        return len({level[:2] for level in self._levels}) > _LEVELS

    def _compute(self, call: Pass, frames: Sequence[int]) -> dict[int, Features]:
        latents = self.trajectory.at(call.sigma)
        if self.frames_apart:
            latents = select(latents, frames, "content trajectory")
        latents = latents.to(call.x.device)
        given = unet.conditions(self.base, self.trajectory.conditioning, latents, call.sigma)
        found = call.read(latents, given, self.chosen, self.parts)
        if self.frames_apart:
            return found
        return {number: _side_by_side(features) for number, features in found.items()}

    # keys

    def _key(self, call: Pass, frames: tuple[int, ...]) -> tuple:
        """The noise level first (the device keeps by level), then all else that features depend on."""
        size = tuple(self.trajectory.latents.shape[1:])
        kind = (str(call.x.dtype), self.parts, size, frames, tuple(layer.number for layer in self.chosen))
        return (call.sigma, float(call.timesteps[0]), kind, weights_key(self.base), patches_key(call.options))

    # memory on the trajectory; per layer, so that nodes with other layers share

    def _kept_with_it(self) -> dict:
        return self.trajectory.cache.setdefault("reference features", {})

    def _recall(self, key: tuple, like: Tensor) -> dict[int, Features] | None:
        if self.cache != "cpu":
            return None
        cache = self._kept_with_it()
        kept = [cache.get(_of_layer(key, layer)) for layer in self.chosen]
        if any(features is None for features in kept):
            return None
        return {features.layer.number: _moved(features, like.device) for features in kept}

    def _remember(self, key: tuple, found: dict[int, Features]) -> None:
        cache = self._kept_with_it()
        for old in [k for k in cache if k[3:5] != key[3:5]]:
            del cache[old]  # one model at a time: a clip's worth of features is large
        for layer in self.chosen:
            cache.setdefault(_of_layer(key, layer), _moved(found[layer.number], torch.device("cpu")))


def _of_layer(key: tuple, layer: Layer) -> tuple:
    sigma, timestep, kind, weights, patches = key
    return (sigma, timestep, kind[:-1], weights, patches, layer)


def _side_by_side(features: Features) -> Features:
    """Several pictures' tokens as the tokens of one."""
    join = lambda t: None if t is None else t.reshape(1, -1, t.shape[-1])  # noqa: E731
    f = features
    return Features(f.layer, f.size, join(f.q), join(f.k), join(f.v), join(f.out))


def _moved(features: Features, device: torch.device) -> Features:
    move = lambda t: None if t is None else t.to(device)  # noqa: E731
    f = features
    return Features(f.layer, f.size, move(f.q), move(f.k), move(f.v), move(f.out))


# -- what a model computes with, as something to compare ------------------------------------------


def weights_key(base: Any) -> Hashable:
    """Equal exactly when the same weights are in place: base model, patches, object patches, LoRA hooks,
    injections."""
    patcher = getattr(base, "current_patcher", None)
    if patcher is None:
        return _Never()
    hooks = getattr(getattr(patcher, "current_hooks", None), "hooks", ())
    return (
        _same(base),
        getattr(patcher, "patches_uuid", None),
        tuple((name, _same(value)) for name, value in sorted(patcher.object_patches.items())),
        tuple((_same(hook.hook_ref), float(hook.strength)) for hook in hooks),
        tuple((name, _same(i)) for name, group in sorted(_injections(patcher)) for i in group),
    )


def _injections(patcher: Any) -> Iterable[tuple[str, list]]:
    """What is put into the modules themselves for a run (newer LoRA loaders may do so)."""
    return getattr(patcher, "injections", {}).items()


def patches_key(options: dict) -> Hashable:
    """Equal exactly when other nodes have set the same patches; ours are not in a reading pass."""
    found = [(name, _same(f)) for name, patches in options.get("patches", {}).items() for f in patches]
    for name, replaced in options.get("patches_replace", {}).items():
        for address, f in replaced.items():
            while f is not None and hasattr(f, "reelbrush_beneath"):
                f = f.reelbrush_beneath
            if f is not None:
                found.append((name, address, _same(f)))
    for keyed in options.get("wrappers", {}).values():
        found += [(str(key), _same(f)) for key, fs in keyed.items() for f in fs if not _ours(key)]
    found += [("override", _same(f)) for f in _values(options, "optimized_attention_override")]
    return tuple(found)


def _ours(key: Any) -> bool:
    return str(key).startswith("reelbrush")


def _values(options: dict, name: str) -> Iterator[Any]:
    if (value := options.get(name)) is not None:
        yield value


class _Never:
    """Equal to nothing else."""


def _same(thing: Any) -> Hashable:
    """Equal to that of the identical living thing only."""
    owner = getattr(thing, "__self__", None)  # a bound method is made anew at every look
    try:
        return weakref.ref(thing if owner is None else owner), getattr(thing, "__name__", "")
    except TypeError:  # cannot be referred to weakly: numbers, strings, None, ... else never equal
        return thing if isinstance(thing, (int, float, str, type(None), torch.dtype)) else _Never()
