"""Which frame is which row of a UNet call, and a clip that is sampled a few frames at a time.

ComfyUI gives the UNet a batch of sides (positive and negative conditioning, in any order, together or in
separate calls). Each side has the n frames of the call in order: row r belongs to side r // n and to frame
r % n. `rows(options, batch)` gives their frame numbers in the clip. They come from Frames per Call (FRAMES),
from ComfyUI's Context Windows (`context_window.index_list`), or else the call has the whole clip.

`FrameSplitter` splits the clip at CALC_COND_BATCH, where latents, noise levels and conditioning are still
whole, and gives every call the latents, conditioning and ControlNet hints of its frames. The sampler keeps
the whole clip in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import host

FRAMES = "reelbrush_frames"  # in transformer_options: frame numbers in the clip of the frames of this call


@dataclass(frozen=True)
class Rows:
    """The rows of one UNet call."""

    frames: tuple[int, ...]  # the frame number in the clip of each frame of the call
    sides: tuple[Any, ...]  # one key per side, in row order; the same key in every call

    @property
    def count(self) -> int:
        return len(self.frames)


def rows(options: dict, batch: int) -> Rows:
    """Rows of a call with `batch` rows, from its `transformer_options`."""
    kinds = list(options.get("cond_or_uncond") or [0])
    if batch % len(kinds):
        raise RuntimeError(
            f"{batch} rows cannot be divided among {len(kinds)} conditionings: remove the node that changes "
            "the UNet's batch from this model"
        )
    ids = list(options.get("uuids") or kinds)
    counts: dict[Any, int] = {}
    sides = []
    for side in zip(kinds, ids, strict=True):  # a call may have one conditioning twice: number them
        sides.append((*side, counts.setdefault(side, 0)))
        counts[side] += 1
    return Rows(tuple(frames_of(options, batch // len(kinds))), tuple(sides))


def frames_of(options: dict, count: int) -> list[int]:
    """Frame numbers in the clip of a call's frames; 0..count-1 when nothing splits the clip."""
    if (frames := options.get(FRAMES)) is not None and len(frames) == count:
        return list(frames)
    window = options.get("context_window")
    if window is not None and getattr(window, "dim", 0) == 0:
        anchor = getattr(
            window, "causal_anchor_index", None
        )  # newer: a frame before the window is evaluated too
        first = [] if anchor is None or anchor < 0 else [anchor]
        if len(numbers := [*first, *window.index_list]) == count:
            return [int(i) for i in numbers]
    return list(range(count))


def select(values: Tensor, frames: Sequence[int], what: str) -> Tensor:
    """The entries of a per-frame tensor for `frames`; a single entry is for all frames."""
    if len(values) == 1:
        return values[[0]]
    if max(frames) >= len(values):
        raise ValueError(
            f"the {what} has {len(values)} frames, but frame {max(frames)} is sampled: give one frame, or as "
            "many as the latents have"
        )
    return values[list(frames)]


def fitting(base: Any, count: int, rows_each: int, like: Tensor) -> int:
    """How many of `count` groups of `rows_each` rows fit into free memory in one call, by ComfyUI's estimate
    and with its margin; halved until they fit."""
    free = host.free_memory(like.device)
    while count > 1 and base.memory_required([count * rows_each, *like.shape[1:]]) * 1.5 > free:
        count = (count + 1) // 2
    return count


class FrameSplitter:
    """Wrappers that split a clip's frames over several UNet calls; `frames` 0 decides from free memory."""

    def __init__(self, frames: int):
        if frames < 0:
            raise ValueError(f"frames is {frames}: give 0 (from free memory) or more")
        self.frames = frames
        self._controls: dict[tuple, Any] = {}

    def attach(self, model: Any) -> None:
        """Put the wrappers on a CLONE, in place of those of an earlier Frames per Call."""
        key = "reelbrush frames per call"
        for kind, wrapper in (("calc_cond_batch", self.split), ("prepare_sampling", self.estimate)):
            host.remove_wrappers(model, kind, key)
            host.add_wrapper(model, kind, key, lambda *a, wrapper=wrapper, **k: wrapper(*a, **k))
        host.on_cleanup(model, key, self.cleanup)

    def estimate(self, run: Callable, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING: reserve memory for the frames of one call. For all, weights would be unloaded."""
        shape = list(noise_shape)
        shape[0] = min(shape[0], self.frames or 1)
        return run(model, shape, *args, **kwargs)

    def split(self, run: Callable, base: Any, conds: list, x: Tensor, sigma: Tensor, options: dict) -> list:
        """CALC_COND_BATCH: denoised latents per side, computed call by call and joined in frame order."""
        transformer_options = options["transformer_options"]
        frames = frames_of(transformer_options, len(x))
        sides = sum(side is not None for side in conds)
        size = self.frames or fitting(base, len(x), sides, x)
        windowed = frames != list(range(len(x)))
        if len(x) <= size and not windowed:
            return run(base, conds, x, sigma, options)
        calls = []
        for start in range(0, len(x), size):
            host.check_interrupt()
            places = list(range(start, min(start + size, len(x))))
            cut = host.FrameSlice(places, [frames[i] for i in places], len(x), self._controls)
            inner = {**options, "transformer_options": {**transformer_options, FRAMES: cut.frames}}
            sliced = [side if side is None else [cut.cond(c) for c in side] for side in conds]
            calls.append(
                run(base, sliced, x[places], sigma[places] if len(sigma) == len(x) else sigma, inner)
            )
        return [torch.cat(side) for side in zip(*calls, strict=True)]

    def cleanup(self) -> None:
        """Release the copied hints at the end of a run; ComfyUI calls this after a cancel too."""
        host.drop_controls(self._controls)
