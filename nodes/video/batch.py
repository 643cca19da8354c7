"""Batches of frames, and the buffer that holds them between operations."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import interpolate

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
    def join(cls, batches: list["Batch"]) -> "Batch":
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
        frames = _pixels(self.frames, bit_depth)
        if self.alpha is not None:
            frames = torch.cat([frames, _pixels(self.alpha, bit_depth)], -1)
        return Batch(frames, self.times)


def as_floats(
    frames: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Frames as floats in 0..1. Integers are converted on the device: they are quicker to move there."""
    frames = frames.to(device)
    return (frames if frames.is_floating_point() else codec.to_float(frames)).to(dtype)


def _pixels(frames: Tensor, bit_depth: int) -> Tensor:
    return (codec.from_float(frames, bit_depth) if frames.is_floating_point() else frames).cpu()


class FrameBuffer:
    """The frames of one input from number `start` on, taken in ranges. `batches` begins with frame `at`."""

    def __init__(self, batches: Iterator[Batch], at: int, start: int):
        self.start, self.end, self.ended = start, at, False
        self._batches = batches
        self._held: deque[Batch] = deque()

    def fill(self, end: int) -> None:
        """Read on until frame `end` - 1 is here, or the input ends."""
        while self.end < end and not self.ended:
            batch = next(self._batches, None)
            if batch is None:
                self.ended = True
                return
            skipped = max(0, self.start - self.end)
            self.end += len(batch)
            if skipped < len(batch):
                self._held.append(batch[skipped:] if skipped else batch)

    def take(self, first: int, last: int) -> Batch:
        """Frames `first` to `last` - 1, which must have been filled and not dropped."""
        parts, at = [], self.start
        for batch in self._held:
            low, high = max(first - at, 0), min(last - at, len(batch))
            if low < high:
                parts.append(batch if (low, high) == (0, len(batch)) else batch[low:high])
            at += len(batch)
        return Batch.join(parts)

    def drop(self, before: int) -> None:
        """Remove the batches that lie completely before frame `before`."""
        while self._held and self.start + len(self._held[0]) <= before:
            self.start += len(self._held.popleft())

    def batches(self, border: int = 0) -> Iterator[Batch]:
        """All frames in the batches in which they come, split at the multiples of `border`."""
        at = self.start
        while True:
            self.fill(at + 1)
            if self.end <= at:
                return
            last = min(self.end, (at // border + 1) * border) if border else self.end
            yield self.take(at, last)
            at = last
            self.drop(at)
