"""Running a graph: every distinct operation once, in one pass, however many read it.

Sources decode in threads of their own. Operations run on the calling thread, which has the host's
gradient mode, node context and interrupt.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import host
from .batch import Batch, Stream, as_floats, filled
from .operation import Operation, Worker, ordered

States = dict[tuple[str, int], dict[str, Tensor]]
"""The states of sequential operations, by fingerprint and by the number of the frame that comes next."""

_BATCH_BYTES = 12 << 20  # of floats, where no operation asks for a number of frames
_HEAP_TRIM_PAUSE = 1.0  # seconds


def starts(sinks: Iterable[Operation], index: int, states: States) -> dict[str, int]:
    """The frame at which each operation begins, by fingerprint, so that the sinks can begin at `index`.

    A sequential operation begins at its last known state, or at frame 0.
    """
    begin = {sink.fingerprint: index for sink in sinks}
    for op in reversed(ordered(sinks)):
        key = op.fingerprint
        if op.sequential:
            begin[key] = max((i for k, i in states if k == key and i <= begin[key]), default=0)
        for source in op.inputs:
            needed = op.first_input(begin[key])
            begin[source.fingerprint] = min(needed, begin.get(source.fingerprint, needed))
    return begin


class Run:
    """One pass over a graph; close it at the end. `outputs` holds the frames of each sink from `start` on.

    `batch` is the number of frames by which the sinks are read (0: a few). With a `border`, sequential
    operations keep their states at its multiples, for `states_before`.
    """

    def __init__(
        self, sinks: Sequence[Operation], start=0, *, batch=0, border=0, states: States | None = None
    ):
        self._sinks, self._border = sinks, border
        self._states: States = {}
        self._streams: dict[str, Stream] = {}
        operations = {op.fingerprint: op for op in ordered(sinks)}
        states = states or {}
        begin = starts(sinks, start, states)
        workers: dict[str, Worker] = {}
        for key, op in operations.items():
            with errors_named(op):
                workers[key] = worker = op.start()
                if (key, begin[key]) in states:
                    worker.restore(states[key, begin[key]])
        batches = self._batches(operations, workers, batch)
        for key, op in operations.items():
            inputs = [self._streams[source.fingerprint] for source in op.inputs]
            for source in inputs:
                source.need(op.first_input(begin[key]), op)
            frames = op.frames(inputs, begin[key], batches[key])
            if frames is None:
                frames = self._compute(op, workers[key], inputs, begin[key], batches[key])
            self._streams[key] = Stream(frames, begin[key])
        self.outputs = [self._streams[sink.fingerprint] for sink in sinks]
        for output in self.outputs:
            output.need(start)

    def _batches(self, ops: dict[str, Operation], workers: dict[str, Worker], batch: int) -> dict[str, int]:
        """Frames per call of each operation: what it asks for, else what its readers ask for."""
        wanted = dict.fromkeys(ops, 0)
        for sink in self._sinks:
            few = _BATCH_BYTES // (sink.clip.width * sink.clip.height * 12)
            wanted[sink.fingerprint] = batch or max(1, min(16, few))
        for key, op in reversed(ops.items()):
            wanted[key] = workers[key].batch or wanted[key]
            for source in op.inputs:
                wanted[source.fingerprint] = max(wanted[source.fingerprint], wanted[key])
        return wanted

    def _compute(
        self, op: Operation, worker: Worker, inputs: Sequence[Stream], at: int, batch: int
    ) -> Iterator[Batch]:
        """The operation's worker on its inputs, `batch` frames at a time from frame `at` on."""
        key, (before, after) = op.fingerprint, op.neighbours
        border = self._border if op.sequential else 0
        while True:
            last = min(at + batch, (at // border + 1) * border) if border else at + batch
            end = filled(op.label or op.name, inputs, last + after)
            last = min(last, end)
            if last <= at:
                return
            low = max(0, at - before)
            taken = [source.take(low, end) for source in inputs]
            inner = slice(at - low, last - low)
            with errors_named(op), torch.inference_mode():
                floats = (as_floats(t.frames, worker.device, worker.dtype) for t in taken)
                frames = worker(*floats, index=at, inner=inner)
                if len(frames) != last - at:
                    raise RuntimeError(f"gave {len(frames)} frames for the {last - at} of `inner`")
                if border and last % border == 0:
                    state = {name: t.detach().cpu().clone() for name, t in worker.state().items()}
                    self._states[key, last] = state
            made = taken[0][inner].with_frames(frames)
            at = last
            del taken, frames
            for source in inputs:
                source.need(at - before, op)
            host.trim_heap(pause=_HEAP_TRIM_PAUSE)
            yield made

    def states_before(self, border: int) -> States:
        """The states from which a later run can compute the sinks' frames from `border` on."""
        begin = starts(self._sinks, border, self._states)
        self._states = {(key, i): s for (key, i), s in self._states.items() if i >= begin[key]}
        return {(key, i): s for (key, i), s in self._states.items() if i == begin[key]}

    def close(self) -> None:
        for stream in reversed(self._streams.values()):
            stream.batches.close()
        host.trim_heap()


@contextmanager
def errors_named(op: Operation) -> Iterator[None]:
    """Adds the name of the operation's node to an error, because it occurs in the node that saves."""
    label = op.label or op.name
    try:
        yield
    except Exception as error:
        if isinstance(error, host.interrupt_types()) or str(error).startswith(label):
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{label}: {error}") from error
