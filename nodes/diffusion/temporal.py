"""Temporal attention: a frame also looks at anchor frames of its shot, in this call and in earlier ones.

In the chosen layers the keys and values of the anchors are put in front of a frame's own: the shot's first
frame, the frame before, both, or all that are at hand. A clip is sampled a few frames per call, but all its
frames share each noise level, so what a call leaves behind serves the next call of the same level: the
first frame of the running shot and the last frame. With `first`, `previous` and both, the result does not
depend on how the clip is split. At a cut the anchors start anew.

A frame that lacks an anchor (the first of a shot) looks at itself in its place: doubling all of a frame's
own tokens changes nothing in a softmax, and every row of the call keeps the same number of keys. (With `all`
in a call that a cut divides, the shorter shot's anchors are repeated up to that number.)
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import unet
from .rows import Rows, rows
from .unet import At, Layer, Pass, SigmaRange

ANCHORS = ("first", "previous", "first + previous", "all")


@dataclass
class Held:
    """What earlier calls of this noise level left behind for one side and layer."""

    frames: tuple[int, ...] = ()  # clip frame numbers: the running shot's first, the last call's last
    k: Tensor | None = None  # [len(frames), N, C]
    v: Tensor | None = None


@dataclass
class Temporal:
    """The patch. `cuts` are the frames at which a new shot begins."""

    chosen: Sequence[Layer]
    when: SigmaRange
    anchors: str = "first + previous"
    strength: float = 1.0
    cuts: Sequence[int] = ()
    _sigma: float = -1.0
    _held: dict[Hashable, Held] = field(default_factory=dict)

    def __post_init__(self):
        if self.anchors not in ANCHORS:
            raise ValueError(f"{self.anchors!r} names no anchors: {', '.join(ANCHORS)}")
        self.cuts = sorted(self.cuts)

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE; innermost, so that anchors are frames as the UNet made them."""
        unet.attach(model, "temporal", self.part, rank=8)
        model.add_callback_with_key("on_cleanup", "reelbrush temporal", lambda patcher: self.drop())

    def drop(self, sigma: float = -1.0) -> None:
        """Forget all anchors: at the end of a run, and when the noise level changes."""
        self._held.clear()
        self._sigma = sigma

    def part(self, call: Pass) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.when:
            return call.run()
        if call.sigma != self._sigma:
            self.drop(call.sigma)
        where = rows(call.options, len(call.x))

        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            extended = self._extended(k, v, where, at.layer)
            if self.strength == 1:
                return at.below(q, *extended)
            return at.below(q, k, v).lerp(at.below(q, *extended), self.strength)

        return call.run(options=unet.patched(call.options, self.chosen, attend))

    def _extended(self, k: Tensor, v: Tensor, where: Rows, layer: Layer) -> tuple[Tensor, Tensor]:
        """Keys and values with the anchors' in front, one side of the call after the other."""
        n, found = where.count, []
        for side, k_own, v_own in zip(where.sides, k.split(n), v.split(n), strict=True):
            held = self._held.get((side, layer.number), Held())
            pool = (*where.frames, *held.frames)  # this call's frames come first: they are newer
            k_pool = k_own if held.k is None else torch.cat([k_own, held.k])
            v_pool = v_own if held.v is None else torch.cat([v_own, held.v])
            picked = self._anchors(where.frames, pool)
            found.append(tuple(_in_front(own, p, picked) for own, p in ((k_own, k_pool), (v_own, v_pool))))
            kept = self._left_behind(where.frames, pool)
            frames = tuple(pool[i] for i in kept)
            self._held[side, layer.number] = Held(frames, k_pool[kept], v_pool[kept])
        return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])

    def _shot(self, frame: int) -> int:
        return bisect.bisect_right(self.cuts, frame)

    def _anchors(self, frames: Sequence[int], pool: Sequence[int]) -> list[list[int]]:
        """For each frame of the call, places in the pool; as many for every frame."""
        found = []
        for i, frame in enumerate(frames):
            mates = [p for p, other in enumerate(pool) if self._shot(other) == self._shot(frame)]
            first = min(mates, key=lambda p: (pool[p], p))
            before = max((p for p in mates if pool[p] < frame), key=lambda p: (pool[p], -p), default=i)
            others = {pool[p]: p for p in reversed(mates) if pool[p] != frame}  # each frame once, the newer
            by_name = {"first": [first], "previous": [before], "first + previous": [first, before]}
            found.append(by_name.get(self.anchors, list(others.values())) or [i])
        most = max(len(row) for row in found)
        return [(row * most)[:most] for row in found]

    def _left_behind(self, frames: Sequence[int], pool: Sequence[int]) -> list[int]:
        """Places in the pool of what the next call may need."""
        last = max(range(len(frames)), key=lambda i: frames[i])
        mates = [p for p, other in enumerate(pool) if self._shot(other) == self._shot(frames[last])]
        return [min(mates, key=lambda p: (pool[p], p)), last]


def _in_front(own: Tensor, pool: Tensor, picked: list[list[int]]) -> Tensor:
    """[n, N, C] with the tokens of each row's anchors in front: [n, (anchors + 1) * N, C]."""
    index = torch.tensor(picked, device=own.device)
    return torch.cat([pool[index].flatten(1, 2), own], dim=1)
