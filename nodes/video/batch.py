"""Batches of frames, and the streams that hold them between operations."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from . import codec


@dataclass(frozen=True)
class Batch:
    """Consecutive frames [n, H, W, 3], their alpha [n, H, W, 1] or None, and their times in seconds.

    Values are integers as a file holds them (uint8, or uint16 above 8 bits), or floats in 0..1. A batch
    that leaves `as_pixels` has integers, and its alpha is the fourth channel of its frames.
    """

    frames: Tensor
    times: tuple[Fraction, ...]
    alpha: Tensor | None = None

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, part: slice) -> "Batch":
        alpha = None if self.alpha is None else self.alpha[part]
        return Batch(self.frames[part], self.times[part], alpha)

    @classmethod
    def of(cls, frames: Tensor, times: tuple[Fraction, ...]) -> "Batch":
        """A batch of frames whose fourth channel, if there is one, is alpha."""
        return cls(frames[..., :3], times, frames[..., 3:] if frames.shape[-1] == 4 else None)

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        if len(batches) == 1:
            return batches[0]
        alpha = None if batches[0].alpha is None else torch.cat([b.alpha for b in batches])
        return cls(torch.cat([b.frames for b in batches]), sum((b.times for b in batches), ()), alpha)

    def with_frames(self, frames: Tensor) -> "Batch":
        """A batch with other frames and the same times. Alpha is resized to the new size."""
        alpha = self.alpha
        if alpha is not None and alpha.shape[1:3] != frames.shape[1:3]:
            planes = as_floats(alpha).permute(0, 3, 1, 2)
            resized = interpolate(planes, frames.shape[1:3], mode="bilinear", antialias=True)
            alpha = resized.permute(0, 2, 3, 1)
        return Batch(frames, self.times, alpha)

    def as_pixels(self, bit_depth: int) -> "Batch":
        """This batch as integers on the CPU: what is saved, cached and measured."""
        channels = [self.frames] if self.alpha is None else [self.frames, self.alpha]
        pixels = [(codec.from_float(c, bit_depth) if c.is_floating_point() else c).cpu() for c in channels]
        return Batch(torch.cat(pixels, -1) if len(pixels) > 1 else pixels[0], self.times)


def as_floats(frames: Tensor, device: str | torch.device = "cpu", dtype=torch.float32) -> Tensor:
    """Frames as floats in 0..1. Integers are converted on the device: they are quicker to move there."""
    frames = frames.to(device)
    return (frames if frames.is_floating_point() else codec.to_float(frames)).to(dtype)


class Stream:
    """The frames of one operation from number `start` on, held until no reader needs them any more."""

    def __init__(self, batches: Iterator[Batch], start: int):
        self.batches = batches
        self.start, self.end, self.ended = start, start, False
        self._held: deque[Batch] = deque()
        self._needed: dict[Any, int] = {}

    def need(self, start: int, reader: Any = None) -> None:
        """From now on, this reader needs frame `start` and those after it."""
        self._needed[reader] = start
        self._drop()

    def _drop(self) -> None:
        while self._held and self.start + len(self._held[0]) <= min(self._needed.values(), default=0):
            self.start += len(self._held.popleft())

    def fill(self, end: int) -> None:
        """Read on until frame `end` - 1 is here, or the operation ends."""
        while self.end < end and not self.ended:
            host.check_interrupt()
            batch = next(self.batches, None)
            if batch is None:
                self.ended = True
            else:
                self._held.append(batch)
                self.end += len(batch)
                self._drop()

    def take(self, first: int, last: int) -> Batch:
        """Frames `first` to `last` - 1, which must be here."""
        parts, at = [], self.start
        for batch in self._held:
            low, high = max(first - at, 0), min(last - at, len(batch))
            if low < high:
                parts.append(batch[low:high])
            at += len(batch)
        return Batch.join(parts)

    def __iter__(self) -> Iterator[Batch]:
        """All frames that reader None needs, as they come."""
        while True:
            at = self._needed[None]
            self.fill(at + 1)
            if self.end <= at:
                return
            batch = self.take(at, self.end)
            self.need(self.end)
            yield batch


def filled(label: str, inputs: Sequence[Stream], end: int) -> int:
    """Read all inputs up to frame `end` - 1. Gives where they end if that is earlier."""
    for source in inputs:
        source.fill(end)
    ended = [source.end for source in inputs if source.ended]
    longest = max(source.end for source in inputs)
    if ended and longest > min(ended):
        raise ValueError(
            f"{label}: one clip ends after {min(ended)} frames, another has {longest} or more: "
            "give clips of one length (Trim Video cuts)"
        )
    return min(end, longest)
