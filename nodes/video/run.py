"""Running a graph: every distinct operation once, in one pass, however many read it.

Sources decode in threads of their own. Operations run on the calling thread, which has the host's
gradient mode, node context and interrupt.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import host
from .batch import Batch, FrameBuffer, as_floats
from .operation import Operation, Window, Worker, ordered

States = dict[str, dict[int, dict[str, Tensor]]]
"""By fingerprint of a sequential operation: frame numbers, and the state before that frame."""

_BATCH_BYTES = 12 << 20  # of floats, where no operation asks for a number of frames
_HEAP_TRIM_PAUSE = 1.0  # seconds


def batch_size(width: int, height: int) -> int:
    """Frames per batch where no operation asks for a number."""
    return max(1, min(16, _BATCH_BYTES // (width * height * 12)))


def starts(sinks: Mapping[Operation, int], states: States) -> dict[str, int]:
    """The frame at which each operation begins, by fingerprint, so that every sink can give its frame.

    A sequential operation begins at its last known state, or at frame 0.
    """
    begin: dict[str, int] = {}

    def need(op: Operation, index: int) -> None:
        begin[op.fingerprint] = min(index, begin.get(op.fingerprint, index))

    for sink, index in sinks.items():
        need(sink, index)
    for op in reversed(ordered(sinks)):
        if op.sequential:
            known = (i for i in states.get(op.fingerprint, ()) if i <= begin[op.fingerprint])
            begin[op.fingerprint] = max(known, default=0)
        for source in op.inputs:
            need(source, op.first_input(begin[op.fingerprint]))
    return begin


class Run:
    """One pass over a graph. `outputs` holds the frames of each sink, from the frame that it maps to on.

    `batch` is the number of frames by which the sinks are read (0: a few). With a `border`, sequential
    operations keep their states at its multiples, for `states_before`.
    """

    def __init__(
        self, sinks: Mapping[Operation, int], *, batch: int = 0, border: int = 0, states: States | None = None
    ):
        self._sinks, self._border = dict(sinks), border
        self._states: States = {}
        self._workers: dict[str, Worker] = {}
        self._frames: list[Iterator[Batch]] = []
        try:
            self._start(states or {}, batch)
        except BaseException:
            self.close()
            raise

    def _start(self, states: States, batch: int) -> None:
        operations: dict[str, Operation] = {}
        for op in ordered(self._sinks):
            operations.setdefault(op.fingerprint, op)
        begin = starts(self._sinks, states)
        for key, op in operations.items():
            with _errors_named(op):
                self._workers[key] = worker = op.start()
                if begin[key] in states.get(key, {}):
                    worker.restore(states[key][begin[key]])
        batches = self._batches(operations, batch)
        read = [sink.fingerprint for sink in self._sinks]
        read += [source.fingerprint for op in operations.values() for source in op.inputs]
        copies: dict[str, list[Iterator[Batch]]] = {}

        def buffer(op: Operation, start: int) -> FrameBuffer:
            return FrameBuffer(copies[op.fingerprint].pop(), begin[op.fingerprint], start)

        for key, op in operations.items():
            start = begin[key]
            inputs = [buffer(source, op.first_input(start)) for source in op.inputs]
            frames = op.frames(inputs, start, batches[key])
            if frames is None:
                frames = self._compute(op, inputs, start, batches[key])
            self._frames.append(frames)
            copies[key] = _tee(frames, read.count(key))
        self.outputs = [buffer(sink, index) for sink, index in self._sinks.items()]

    def _batches(self, operations: dict[str, Operation], batch: int) -> dict[str, int]:
        """Frames per call of each operation: what it asks for, else what its readers ask for."""
        wanted = dict.fromkeys(operations, 0)
        for sink in self._sinks:
            wanted[sink.fingerprint] = batch or batch_size(sink.clip.width, sink.clip.height)
        for key, op in reversed(operations.items()):
            wanted[key] = self._workers[key].batch or wanted[key]
            for source in op.inputs:
                wanted[source.fingerprint] = max(wanted[source.fingerprint], wanted[key])
        return wanted

    def _compute(
        self, op: Operation, inputs: Sequence[FrameBuffer], start: int, batch: int
    ) -> Iterator[Batch]:
        """The operation's worker on its inputs, `batch` frames at a time."""
        key, (before, after), at = op.fingerprint, op.neighbours, start
        worker, border = self._workers[key], self._border if op.sequential else 0
        while True:
            last = at + batch
            if border:
                last = min(last, (at // border + 1) * border)
            for source in inputs:
                source.fill(last + after)
            _check_lengths(op.label or op.name, inputs)
            last = min(last, *(source.end for source in inputs))
            if last <= at:
                return
            low, high = max(0, at - before), min(last + after, *(source.end for source in inputs))
            taken = [source.take(low, high) for source in inputs]
            window = Window(at, last - at, at - low, high - last)
            host.check_interrupt()
            with _errors_named(op), torch.inference_mode():
                frames = worker(
                    *(as_floats(t.frames, worker.device, worker.dtype) for t in taken), window=window
                )
                if len(frames) != window.count:
                    raise RuntimeError(f"gave {len(frames)} frames for {window.count}")
                if border and last % border == 0:
                    state = {name: t.detach().cpu().clone() for name, t in worker.state().items()}
                    self._states.setdefault(key, {})[last] = state
            made = taken[0][at - low : last - low].with_frames(frames)
            at = last
            del taken, frames
            for source in inputs:
                source.drop(at - before)
            host.trim_heap(pause=_HEAP_TRIM_PAUSE)
            yield made

    def states_before(self, border: int) -> States:
        """The states from which a later run can compute the sinks' frames from `border` on."""
        begin = starts(dict.fromkeys(self._sinks, border), self._states)
        for key, kept in self._states.items():
            for old in [index for index in kept if index < begin[key]]:
                del kept[old]
        return {
            key: {begin[key]: kept[begin[key]]} for key, kept in self._states.items() if begin[key] in kept
        }

    def close(self) -> None:
        for frames in reversed(self._frames):
            frames.close()
        for worker in self._workers.values():
            worker.close()
        host.trim_heap()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tee(batches: Iterator[Batch], count: int) -> list[Iterator[Batch]]:
    """`count` iterators over the same batches. `itertools.tee` would keep up to 57 batches alive."""
    queues: list[deque[Batch]] = [deque() for _ in range(count)]

    def read(queue: deque[Batch]) -> Iterator[Batch]:
        while True:
            if not queue:
                batch = next(batches, None)
                if batch is None:
                    return
                for each in queues:
                    each.append(batch)
            yield queue.popleft()

    return [read(queue) for queue in queues]


def _check_lengths(label: str, inputs: Sequence[FrameBuffer]) -> None:
    ended = [source.end for source in inputs if source.ended]
    longest = max(source.end for source in inputs)
    if ended and longest > min(ended):
        raise ValueError(
            f"{label}: one clip ends after {min(ended)} frames, another has {longest} or more: "
            "give clips of one length (Trim Video cuts)"
        )


@contextmanager
def _errors_named(op: Operation) -> Iterator[None]:
    """Adds the name of the operation's node to an error, because it occurs in the node that saves."""
    label = op.label or op.name
    try:
        yield
    except Exception as error:
        if isinstance(error, host.interrupt_types()) or str(error).startswith(label):
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{label}: {error}") from error


def batches_of(buffers: Sequence[FrameBuffer], size: int) -> Iterator[tuple[Batch, ...]]:
    """Batches of `size` frames (the last may have fewer) from several buffers read in step."""
    at = buffers[0].start
    while True:
        for buffer in buffers:
            buffer.fill(at + size)
        _check_lengths("the clips", buffers)
        last = min(at + size, *(buffer.end for buffer in buffers))
        if last <= at:
            return
        yield tuple(buffer.take(at, last) for buffer in buffers)
        at = last
        for buffer in buffers:
            buffer.drop(at)
