"""Streams: the nodes of a chain at work, giving frames in small batches.

Sources decode in threads of their own, ahead of the computing by a bounded queue; operations run on the
calling thread, which has the host's grad mode, node context and interrupt.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from . import chain, codec

_BATCH_BYTES = 12 << 20
_AHEAD = 2
_TRIM = 1.0  # seconds: trimming takes milliseconds, tens of them where hundreds of MB are given back


@dataclass(frozen=True)
class Batch:
    """Consecutive frames: float [n, H, W, 3] in 0..1, their alpha [n, H, W, 1] or None, their times in s.

    Behind `PixelStream` the frames are what a file holds: integers [n, H, W, 3 or 4], alpha among them.
    """

    frames: Tensor
    times: tuple[Fraction, ...]
    alpha: Tensor | None = None

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, part: slice) -> "Batch":
        alpha = None if self.alpha is None else self.alpha[part]
        return Batch(self.frames[part], self.times[part], alpha)


def batch_size(width: int, height: int) -> int:
    """Frames per batch, so that a batch of floats stays small."""
    return max(1, min(16, _BATCH_BYTES // (width * height * 12)))


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    if len(batches) == 1:
        return batches[0]
    alpha = None if batches[0].alpha is None else torch.cat([b.alpha for b in batches])
    return Batch(torch.cat([b.frames for b in batches]), sum((b.times for b in batches), ()), alpha)


class Stream:
    """Batches of one node, in order, from a start frame on. `None` is the end."""

    def __init__(self, start: int):
        self.start = start

    def next(self) -> Batch | None:
        raise NotImplementedError

    def close(self) -> None:
        """Stop threads, drop device memory. May be called at any point."""


_Pixels = tuple[Tensor, Sequence[Fraction]]


class DecodeStream(Stream):
    """A file, decoded by a thread that keeps a few batches ahead: as pixels, a quarter of their floats."""

    def __init__(self, node: chain.FileSource, start: int):
        super().__init__(start)
        self._node = node
        self._size = batch_size(node.clip.width, node.clip.height)
        self._queue: queue.Queue[_Pixels | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reelbrush decode", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        if self._node.clip.exact and self.start >= self._node.clip.frame_count:
            self._put(None)
            return
        try:
            with torch.inference_mode(), codec.Reader(self._node.source, start=self.start) as reader:
                frames: list[Tensor] = []
                times: list[Fraction] = []
                for frame, time in reader:
                    frames.append(frame)
                    times.append(time)
                    if len(frames) == self._size:
                        if not self._put((torch.stack(frames), times)):
                            return
                        frames, times = [], []
                if frames and not self._put((torch.stack(frames), times)):
                    return
            self._put(None)
        except BaseException as error:  # carried to the computing thread, raised there
            self._put(error)

    def _put(self, item: _Pixels | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self) -> Batch | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            self._queue.put(None)  # the end stays the end
            return None
        return _from_pixels(*item)

    def close(self) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)


def _from_pixels(pixels: Tensor, times: Sequence[Fraction]) -> Batch:
    floats = codec.to_float(pixels)
    alpha = floats[..., 3:] if floats.shape[-1] == 4 else None
    return Batch(floats[..., :3], tuple(times), alpha)


class FrameStream(Stream):
    """Frames that are in memory already."""

    def __init__(self, node: chain.FrameSource, start: int):
        super().__init__(start)
        self._node, self._at = node, start
        self._size = batch_size(node.clip.width, node.clip.height)

    def next(self) -> Batch | None:
        part = self._node.frames[self._at : self._at + self._size].float()
        if not len(part):
            return None
        times = tuple((self._at + i) / self._node.fps for i in range(len(part)))
        self._at += len(part)
        return Batch(part[..., :3], times, part[..., 3:] if part.shape[-1] == 4 else None)


class LatentStream(Stream):
    """Latents as frames [n, h, w, C], few at a time: a decoder makes large frames of them."""

    def __init__(self, node: chain.LatentSource, start: int):
        super().__init__(start)
        self._node, self._at = node, start

    def next(self) -> Batch | None:
        part = self._node.latents[self._at : self._at + 4]
        times = tuple((self._at + i) / self._node.fps for i in range(len(part)))
        self._at += len(part)
        return Batch(part.permute(0, 2, 3, 1), times) if len(part) else None


class Feed(Stream):
    """One reader of a stream that others may read too; starts where this reader needs it."""

    def __init__(self, stream: "Shared", start: int):
        super().__init__(start)
        self._shared, self._skip = stream, start - stream.start
        self.queue: deque[Batch] = deque()

    def next(self) -> Batch | None:
        while True:
            while not self.queue:
                if not self._shared.advance():
                    return None
            batch = self.queue.popleft()
            if self._skip >= len(batch):
                self._skip -= len(batch)
                continue
            batch, self._skip = batch[self._skip :], 0
            return batch


class Shared(Stream):
    """A stream and its readers: computed once, kept only until the slowest reader has it."""

    def __init__(self, stream: Stream):
        super().__init__(stream.start)
        self.stream = stream
        self._feeds: list[Feed] = []

    def feed(self, start: int) -> Feed:
        feed = Feed(self, start)
        self._feeds.append(feed)
        return feed

    def advance(self) -> bool:
        batch = self.stream.next()
        if batch is None:
            return False
        for feed in self._feeds:
            feed.queue.append(batch)
        return True

    def close(self) -> None:
        self.stream.close()


class TrimStream(Stream):
    """Every nth frame of a range."""

    def __init__(self, node: chain.Trim, source: Stream, start: int):
        super().__init__(start)
        self._node, self._source, self._at = node, source, start
        self._next = node.need(start)  # the input frame that comes next

    def next(self) -> Batch | None:
        while not self._node.frames or self._at < self._node.frames:
            batch = self._source.next()
            if batch is None:
                if self._at == 0:
                    raise ValueError(
                        f"the clip ends before frame {self._node.start}: nothing is left after the trim"
                    )
                return None
            offset = (self._node.start - self._next) % self._node.every
            self._next += len(batch)
            kept = batch[offset :: self._node.every]
            if self._node.frames:
                kept = kept[: self._node.frames - self._at]
            if len(kept):
                self._at += len(kept)
                return kept
        return None


class Buffer:
    """The part of one input that an operation may still look at."""

    def __init__(self, source: Stream):
        self.source, self.start, self.end, self.ended = source, source.start, source.start, False
        self._batches: list[Batch] = []

    def pull(self) -> None:
        batch = self.source.next()
        if batch is None:
            self.ended = True
        else:
            self._batches.append(batch)
            self.end += len(batch)

    def cut(self, first: int, last: int) -> Batch:
        parts, at = [], self.start
        for batch in self._batches:
            low, high = max(first - at, 0), min(last - at, len(batch))
            if low < high:
                parts.append(batch if (low, high) == (0, len(batch)) else batch[low:high])
            at += len(batch)
        return join(parts)

    def drop(self, before: int) -> None:
        while self._batches and self.start + len(self._batches[0]) <= before:
            self.start += len(self._batches.pop(0))


class StepStream(Stream):
    """An operation at work, with the neighbours it asks for and its state at the borders of a spool."""

    def __init__(
        self, step: chain.Step, inputs: Sequence[Stream], start: int, marks: Callable[[int], int | None]
    ):
        super().__init__(start)
        self._step, self._operation = step, step.make()
        self._inputs = [Buffer(source) for source in inputs]
        self._at, self._started = start, False
        self._marks = marks  # the next frame at which a state is wanted, after a given one
        self.states: dict[int, dict[str, Tensor]] = {}

    def restore(self, state: dict[str, Tensor]) -> None:
        with self._named():
            self._start()
            self._operation.restore(state)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._operation.start(self._step.inputs[0].clip)

    def next(self) -> Batch | None:
        before, after = self._operation.neighbours
        while True:
            ready = min(b.end if b.ended else b.end - after for b in self._inputs)
            if ready > self._at:
                return self._run(ready, before, after)
            open_inputs = [b for b in self._inputs if not b.ended]
            if not open_inputs:
                return None
            min(open_inputs, key=lambda b: b.end).pull()
            self._check_lengths()

    def _run(self, ready: int, before: int, after: int) -> Batch:
        first, last = self._at, ready
        mark = self._marks(first) if self._operation.sequential else None
        if mark is not None:
            last = min(last, mark)
        low = max(first - before, self._inputs[0].start)
        high = min(last + after, *(b.end for b in self._inputs))
        given = [b.cut(low, high) for b in self._inputs]
        window = chain.Window(first, last - first, first - low, high - last)
        with self._named(), torch.inference_mode():
            self._start()
            frames = self._operation.run(*(g.frames for g in given), window=window)
            if len(frames) != window.count:
                raise RuntimeError(f"gave {len(frames)} frames for {window.count}")
            if last == mark:
                self.states[last] = {key: t.detach().clone() for key, t in self._operation.state().items()}
        self._at = last
        for buffer in self._inputs:
            buffer.drop(last - before)
        host.trim_heap(pause=_TRIM)
        main = given[0][window.wanted]
        alpha = main.alpha
        if alpha is not None and alpha.shape[1:3] != frames.shape[1:3]:
            resized = interpolate(
                alpha.permute(0, 3, 1, 2), frames.shape[1:3], mode="bilinear", antialias=True
            )
            alpha = resized.permute(0, 2, 3, 1)
        return replace(main, frames=frames.to("cpu", torch.float32), alpha=alpha)

    def _check_lengths(self) -> None:
        ended = [b.end for b in self._inputs if b.ended]
        if ended and any(b.end > min(ended) for b in self._inputs):
            more = max(b.end for b in self._inputs)
            name = self._step.label or self._step.name
            raise ValueError(
                f"{name}: one clip ends after {min(ended)} frames, another has {more} or more: "
                "give clips of one length (Trim Video cuts)"
            )

    def _named(self) -> "_Named":
        return _Named(self._step.label or self._step.name)

    def close(self) -> None:
        if self._started:
            self._operation.stop()


class _Named:
    """An error that surfaces late, on the node that saves, names the node it came from."""

    def __init__(self, label: str):
        self._label = label

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, host.interrupt_types()) or not isinstance(error, Exception):
            return
        if not str(error).startswith(self._label):
            plain = ValueError if isinstance(error, ValueError) else RuntimeError
            raise plain(f"{self._label}: {error}") from error


class PixelStream(Stream):
    """Frames rounded to what a file of the clip's bit depth holds: what is saved, and what is measured."""

    def __init__(self, source: Stream, clip: chain.Clip):
        super().__init__(source.start)
        self._source, self._depth = source, clip.bit_depth

    def next(self) -> Batch | None:
        batch = self._source.next()
        if batch is None:
            return None
        floats = batch.frames if batch.alpha is None else torch.cat([batch.frames, batch.alpha], -1)
        return Batch(codec.from_float(floats, self._depth), batch.times)
