"""Temporal attention: a frame also attends to anchor frames of its shot, of this call and of earlier calls.

In the chosen layers the keys and values of the *anchors* are put in front of a frame's own: the shot's first
frame, the previous frame, both, or all frames that are available. A clip may be sampled a few frames per
call. Each call therefore keeps the keys and values of the shot's first frame and of its own last frame for
the next call at the same noise level. So with `first`, `previous` and both, the result does not depend on
how the clip is split. The anchors restart at every cut.

Z* and references weigh another picture against a frame's own tokens in one softmax. They read the number of
anchors (`AttentionSite.copies`) and let the other picture count as often, so anchors do not weaken its style.

A frame without an anchor (the first of a shot) has itself as the anchor. This changes nothing, because
doubling all tokens changes nothing in a softmax, and every row of the call has the same number of keys. With
`all` in a call that contains a cut, the anchors of the shorter shot are repeated up to that number.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import host
from .patching import unet
from .patching.layers import AttentionLayer, SigmaRange
from .patching.rows import Rows, rows
from .patching.unet import AttentionSite, UNetCall

ANCHORS = ("first", "previous", "first + previous", "all")


@dataclass
class AnchorFeatures:
    """Keys and values that earlier calls of this noise level have kept for one side and layer."""

    frames: tuple[
        int, ...
    ] = ()  # frame numbers in the clip: the first of the shot, the last of the last call
    k: Tensor | None = None  # [len(frames), N, C]
    v: Tensor | None = None


@dataclass
class TemporalPatch:
    """Anchors in the self-attention of some layers. `cuts` are the frames at which a new shot begins."""

    layers: Sequence[AttentionLayer]
    active: SigmaRange
    anchors: str = "first + previous"
    strength: float = 1.0
    cuts: Sequence[int] = ()
    _sigma: float = -1.0
    _kept: dict[Hashable, AnchorFeatures] = field(default_factory=dict)

    def __post_init__(self):
        if self.anchors not in ANCHORS:
            raise ValueError(f"anchors is {self.anchors!r}: choose {', '.join(ANCHORS)}")
        self.cuts = sorted(self.cuts)

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE, inside Z* and references: anchors are the frames' own features."""
        unet.attach(model, "temporal", self.patch, rank=8)
        host.on_cleanup(model, "reelbrush temporal", self._restart)

    def _restart(self, sigma: float = -1.0) -> None:
        """Drop all anchors: at the end of a run, and at another noise level."""
        self._kept.clear()
        self._sigma = sigma

    def patch(self, call: UNetCall) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.active:
            return call.run()
        if call.sigma != self._sigma:
            self._restart(call.sigma)
        of_call = rows(call.options, len(call.x))

        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            extended = self._extended(k, v, of_call, site.layer)
            with_anchors = site.with_copies(extended[0].shape[1] // k.shape[1])
            out = with_anchors.inner(q, *extended)
            return out if self.strength == 1 else site.inner(q, k, v).lerp(out, self.strength)

        return call.run(options=unet.with_attention(call.options, self.layers, attend))

    def _extended(self, k: Tensor, v: Tensor, of_call: Rows, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
        """Keys and values with the anchors' in front, one side of the call after the other."""
        n, frames, extended = of_call.count, of_call.frames, []
        for side, k_own, v_own in zip(of_call.sides, k.split(n), v.split(n), strict=True):
            kept = self._kept.get((side, layer.number), AnchorFeatures())
            pool = (*frames, *kept.frames)  # this call's frames first: they are newer
            k_pool = k_own if kept.k is None else torch.cat([k_own, kept.k])
            v_pool = v_own if kept.v is None else torch.cat([v_own, kept.v])
            anchors = self.anchors_of(frames, pool)
            extended.append((_in_front(k_own, k_pool, anchors), _in_front(v_own, v_pool, anchors)))
            keep = self.kept_after(frames, pool)
            numbers = tuple(pool[i] for i in keep)
            self._kept[side, layer.number] = AnchorFeatures(numbers, k_pool[keep], v_pool[keep])
        return tuple(torch.cat(tensors) for tensors in zip(*extended, strict=True))

    def _shot(self, frame: int) -> int:
        return bisect.bisect_right(self.cuts, frame)

    def _same_shot(self, frame: int, pool: Sequence[int]) -> list[int]:
        return [i for i, other in enumerate(pool) if self._shot(other) == self._shot(frame)]

    def anchors_of(self, frames: Sequence[int], pool: Sequence[int]) -> list[list[int]]:
        """Indices into the pool for each frame of the call, the same number for every frame."""
        per_frame = []
        for i, frame in enumerate(frames):
            shot = self._same_shot(frame, pool)
            first = min(shot, key=lambda p: (pool[p], p))
            previous = max((p for p in shot if pool[p] < frame), key=lambda p: (pool[p], -p), default=i)
            others = {pool[p]: p for p in reversed(shot) if pool[p] != frame}  # each frame once, the newer
            by_name = {"first": [first], "previous": [previous], "first + previous": [first, previous]}
            per_frame.append(by_name.get(self.anchors, list(others.values())) or [i])
        most = max(len(anchors) for anchors in per_frame)
        return [(anchors * most)[:most] for anchors in per_frame]

    def kept_after(self, frames: Sequence[int], pool: Sequence[int]) -> list[int]:
        """Indices into the pool of the frames that the next call may need: the shot's first and the last."""
        last = max(range(len(frames)), key=lambda i: frames[i])
        return [min(self._same_shot(frames[last], pool), key=lambda p: (pool[p], p)), last]


def _in_front(own: Tensor, pool: Tensor, anchors: list[list[int]]) -> Tensor:
    """[n, N, C] with the tokens of each row's anchors in front: [n, (anchors + 1) * N, C]."""
    index = torch.tensor(anchors, device=own.device)
    return torch.cat([pool[index].flatten(1, 2), own], dim=1)
