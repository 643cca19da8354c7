"""Which frame is which row of a UNet call, and a clip sampled a few frames at a time.

ComfyUI gives the UNet a batch of sides (positive and negative conditioning, in any order, together or in
separate calls), each with the frames of the call in order: row r belongs to side r // n and to the n frames'
r % n. Which frames of the clip these are is known from Frames per Call (FRAMES), from core Context Windows
(`context_window.index_list`), or else they are all of them: `rows(options, batch)` answers.

`FramesPerCall` splits the clip at CALC_COND_BATCH, where latents, noise levels and conditioning are still
whole, and gives every chunk what belongs to its frames: latents, per-frame conditioning, ControlNet hints.
Hints need care: a ControlNet keeps the scaled hint of its first call, so every chunk has a copy of the
ControlNet (sharing its network) with its own slice. Latents stay in one batch: samplers, previews and
multistep memory see the whole clip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import host

FRAMES = "reelbrush_frames"  # in transformer_options: clip frame numbers of the frames of this call


@dataclass(frozen=True)
class Rows:
    """The rows of one UNet call."""

    frames: tuple[int, ...]  # clip frame number of each frame of the call
    sides: tuple[Any, ...]  # what tells the sides of the call apart, in row order; stable from call to call

    @property
    def count(self) -> int:
        return len(self.frames)


def rows(options: dict, batch: int) -> Rows:
    """Rows of a call with `batch` rows, from its `transformer_options`."""
    kinds = list(options.get("cond_or_uncond") or [0])
    if batch % len(kinds):
        raise RuntimeError(
            f"{batch} rows do not divide among {len(kinds)} conditionings: take the node off this model that "
            "changes the UNet's batch"
        )
    ids = list(options.get("uuids") or kinds)
    seen: dict[Any, int] = {}
    sides = []
    for side in zip(kinds, ids, strict=True):  # one conditioning may stand twice in a call: number them
        sides.append((*side, seen.setdefault(side, 0)))
        seen[side] += 1
    return Rows(tuple(frames_of(options, batch // len(kinds))), tuple(sides))


def frames_of(options: dict, count: int) -> list[int]:
    """Clip frame numbers of a call's frames; 0..count-1 when nothing splits the clip."""
    if (frames := options.get(FRAMES)) is not None and len(frames) == count:
        return list(frames)
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", 0) == 0 and len(window.index_list) == count:
        return [int(i) for i in window.index_list]
    return list(range(count))


def select(values: Tensor, frames: list[int] | tuple[int, ...], what: str) -> Tensor:
    """The rows of a per-frame tensor that belong to `frames`; one row serves all."""
    if len(values) == 1:
        return values
    if max(frames) >= len(values):
        raise ValueError(
            f"the {what} has {len(values)} frames, but frame {max(frames)} is sampled: give one frame, or as "
            "many as the latents have"
        )
    return values[list(frames)]


# -- a few frames at a time ------------------------------------------------------------------------


class FramesPerCall:
    """Wrappers that split a clip's frames over several UNet calls. `frames` 0: as many as memory takes."""

    def __init__(self, frames: int):
        if frames < 0:
            raise ValueError(f"{frames} frames per call: give 0 or more (0: as many as memory takes)")
        self.frames = frames
        self._controls: dict[tuple, Any] = {}

    def attach(self, model: Any) -> None:
        """Put the wrappers on a CLONE."""
        key = "reelbrush frames per call"
        for kind in ("calc_cond_batch", "prepare_sampling"):  # the last of such nodes decides
            model.wrappers.get(kind, {}).pop(key, None)
        model.add_wrapper_with_key("calc_cond_batch", key, lambda *a: self.split(*a))
        model.add_wrapper_with_key("prepare_sampling", key, lambda *a, **k: self.estimate(*a, **k))
        model.add_callback_with_key("on_cleanup", key, lambda patcher: self.cleanup())

    def estimate(self, run: Callable, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Estimate memory for the frames of one call: reserving for all would push weights out."""
        shape = list(noise_shape)
        shape[0] = min(shape[0], self.frames or 1)
        return run(model, shape, *args, **kwargs)

    def split(self, run: Callable, base: Any, conds: list, x: Tensor, sigma: Tensor, options: dict) -> list:
        """Denoised latents per side, chunk by chunk; the chunks join in frame order."""
        to = options["transformer_options"]
        frames = frames_of(to, len(x))
        size = self.frames or self._fitting(base, conds, x)
        windowed = frames != list(range(len(x)))
        if len(x) <= size and not windowed:
            return run(base, conds, x, sigma, options)
        parts = []
        for start in range(0, len(x), size):
            host.check_interrupt()
            local = list(range(start, min(start + size, len(x))))
            chunk = Chunk(local, [frames[i] for i in local], len(x), self._controls)
            inner = {**options, "transformer_options": {**to, FRAMES: chunk.frames}}
            sides = [side if side is None else [chunk.cond(c) for c in side] for side in conds]
            parts.append(run(base, sides, x[local], sigma[local] if len(sigma) == len(x) else sigma, inner))
        return [torch.cat(side) for side in zip(*parts, strict=True)]

    def cleanup(self) -> None:
        """Drop the chunks' hints (also after a cancel: ComfyUI calls ON_CLEANUP then too)."""
        for control in self._controls.values():
            control.cond_hint = control.extra_concat = None
        self._controls.clear()

    def _fitting(self, base: Any, conds: list, x: Tensor) -> int:
        """How many frames fit into free memory, both sides in one call, by ComfyUI's own estimate."""
        sides = sum(side is not None for side in conds)
        free = host.free_memory(x.device)
        need = lambda n: base.memory_required([n * sides, *x.shape[1:]]) * 1.5  # noqa: E731 - core's margin
        size = len(x)
        while size > 1 and need(size) > free:
            size = (size + 1) // 2
        return size


@dataclass
class Chunk:
    """Some frames of a clip, and how conditioning is cut down to them."""

    local: list[int]  # places in the batch that is split
    frames: list[int]  # clip frame numbers
    total: int  # frames in the batch that is split
    controls: dict[tuple, Any]

    def rows(self, t: Tensor) -> Tensor:
        """A per-frame tensor's rows. Core cuts some to the window and leaves others whole, and cycles short
        ones (`repeat_to_batch_size`): so does this."""
        if t.ndim == 0 or len(t) == 1:
            return t
        places = self.local if len(t) == self.total else self.frames
        return t[[i % len(t) for i in places]]

    def cond(self, cond: dict) -> dict:
        """One prepared conditioning entry."""
        new = dict(cond)
        new["model_conds"] = {key: self._model_cond(c) for key, c in cond["model_conds"].items()}
        if torch.is_tensor(cond.get("mask")):
            new["mask"] = self.rows(cond["mask"])
        if cond.get("control") is not None:
            new["control"] = self.control(cond["control"])
        return new

    def _model_cond(self, cond: Any) -> Any:
        tensor = getattr(cond, "cond", cond)
        if not torch.is_tensor(tensor) or len(tensor) == 1:
            return cond
        return self.rows(tensor) if tensor is cond else cond._copy_with(self.rows(tensor))

    def control(self, control: Any) -> Any:
        """A shallow copy with this chunk's hints, one per chunk and run: conds and unconds batch only when
        they carry the identical object. What `pre_run` prepared is kept, unlike by `control.copy()`."""
        key = (id(control), tuple(self.frames))
        if key not in self.controls:
            new = copy.copy(control)
            new.reelbrush_original = control  # keeps it alive, so that its id stays its own
            new.cond_hint = new.extra_concat = None
            if hasattr(control, "sub_idxs"):  # Advanced-ControlNet slices for itself when it is told
                new.sub_idxs, new.full_latent_length = (
                    list(self.frames),
                    max(self.total, max(self.frames) + 1),
                )
                new.context_length = len(self.frames)
            elif torch.is_tensor(control.cond_hint_original):
                new.cond_hint_original = self._hint(control.cond_hint_original)
                new.extra_concat_orig = [self._hint(t) for t in control.extra_concat_orig]
            if control.previous_controlnet is not None:
                new.previous_controlnet = self.control(control.previous_controlnet)
            self.controls[key] = new
        return self.controls[key]

    def _hint(self, hint: Tensor) -> Tensor:
        return hint if len(hint) == 1 else hint[[i % len(hint) for i in self.frames]]
