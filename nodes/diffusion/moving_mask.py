"""Masks that are read from a VIDEO when their frames are sampled, so that they may be as long as a film."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..video.lazy_video import LazyVideo

_AT_ONCE = 8


class MovingMask:
    """The masks [n, H, W] of a clip's frames; white is 1. Only the frames of the last request are kept."""

    def __init__(self, video: LazyVideo):
        self._video = video
        self._kept: dict[int, Tensor] = {}
        self._frames: Iterator[Tensor] = iter(())
        self._next = len(self) + 1  # the number of the next frame of `_frames`

    def __len__(self) -> int:
        return self._video.frame_count

    def __getitem__(self, frames: Sequence[int]) -> Tensor:
        self._kept = {n: mask for n, mask in self._kept.items() if n in frames}
        for number in sorted(set(frames) - self._kept.keys()):
            self._kept[number] = self._read(number)
        return torch.stack([self._kept[n] for n in frames])

    def _read(self, number: int) -> Tensor:
        """Reads on to this frame; from the beginning if it has passed."""
        if number < self._next:
            self._frames, self._next = (f for chunk in self._video.chunks(_AT_ONCE) for f in chunk), 0
        for frame in self._frames:
            self._next += 1
            if self._next > number:
                return frame.mean(-1)
        raise ValueError(f"the mask clip ends after {self._next} frames: give one as long as the content")
