"""Masks that are read from a VIDEO when their frames are sampled, so that they may be as long as a film."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..video.lazy_video import LazyVideo


class MovingMask:
    """The masks [n, H, W] of a clip's frames; white is 1. Only the frames of the last request are kept."""

    def __init__(self, video: LazyVideo):
        self._video = video
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._video.frame_count

    def __getitem__(self, frames: Sequence[int]) -> Tensor:
        missing = sorted(set(frames) - self._kept.keys())
        self._kept = {n: mask for n, mask in self._kept.items() if n in frames}
        for _, run in groupby(
            enumerate(missing), lambda item: item[1] - item[0]
        ):  # neighbours are read together
            numbers = [number for _, number in run]
            read = torch.cat(list(self._video.trim(numbers[0], len(numbers)).chunks(len(numbers))))
            self._kept.update(zip(numbers, read.mean(-1), strict=True))
        return torch.stack([self._kept[n] for n in frames])
