"""The frame cache: finished frames of a costly graph, kept losslessly on disk by its fingerprint.

A save that was interrupted continues where it stopped, and a second reader of the same graph does not compute
it again. Chunks of integer frames are in `output/.reelbrush/<fingerprint>/`, with the states of sequential
operations at the last border. Readers get integers without a cache too, so the result is the same.
"""

import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import torch

from .. import host
from ..common.files import file_error, replacing
from . import codec
from .batch import Batch, Stream
from .operation import Operation, ordered
from .run import Run, States

CHUNK = 8  # frames per file
_FORMAT = 5  # of the folder's content
_RESERVE = 1 << 30  # bytes of the disk that are left free
_PAUSE = 0.1  # seconds between looks for a chunk of another process
_claims: set[Path] = set()  # the clips that this process computes now


def root() -> Path:
    """The folder of all caches."""
    return host.folder("output") / ".reelbrush"


def limit() -> float:
    """Bytes that all caches may take. The oldest are removed first."""
    former = host.limit_from("REELBRUSH_SPOOL_GB", 8)  # the name in version 0.1
    wanted = host.limit_from("REELBRUSH_CACHE_GB", former) * (1 << 30)
    disk = next(path for path in (root(), *root().parents) if os.path.exists(path))
    possible = shutil.disk_usage(disk).free - _RESERVE + sum(map(_bytes, root().glob("*")))
    return max(0, min(wanted, possible))


@contextmanager
def pixel_streams(
    operations: Sequence[Operation], *, batch: int = 0, resume: bool = True
) -> Iterator[list[Iterator[Batch]]]:
    """The frames of clips as integers, computed in one pass; with `resume` through their caches."""
    caches = {op: FrameCache(op) for op in operations if resume and op.cached}
    fresh = [op for op in operations if op not in caches or not caches[op].frames_kept()]
    border = CHUNK if any(op in caches for op in fresh) else 0
    with ExitStack() as stack:
        run = stack.enter_context(closing(Run(fresh, batch=batch, border=border)))
        computed = dict(zip(fresh, run.outputs, strict=True))
        streams = [
            caches[op].batches(run, computed.get(op), wait=len(operations) == 1)
            if op in caches
            else _as_pixels(op, computed[op])
            for op in operations
        ]
        yield [stack.enter_context(closing(stream)) for stream in streams]


def _as_pixels(op: Operation, batches: Iterable[Batch]) -> Iterator[Batch]:
    return (batch.as_pixels(op.clip.bit_depth) for batch in batches)


class FrameCache:
    """The cached frames of one graph."""

    def __init__(self, op: Operation):
        self.op = op
        self.path = root() / f"{op.fingerprint[:32]}-{_FORMAT}"
        self._writing = limit() > 0
        self._claim = ExitStack()
        self._waits = False

    def frames_kept(self) -> int:
        """The number of frames that need not be computed again, from the first one on."""
        return next(number for number in count() if not self._has(number, "mkv")) * CHUNK

    def batches(self, run: Run | None, output: Stream | None, wait: bool) -> Iterator[Batch]:
        """All frames: from the chunks that are there, then computed, and kept in further chunks.

        `output` of a `run` from frame 0 is used to compute when the first chunk is absent. With `wait`,
        the chunks of another process that computes this clip are awaited.
        """
        if output is not None and not wait:  # others read the run too: it must be read to its end
            return (yield from self._compute(run, output, 0))
        number, size, mine = 0, CHUNK, not (wait and self._writing)
        with self._claim:
            while size == CHUNK and not self._has(number, "end"):
                if number * CHUNK >= self.op.clip.frame_count and not self._has(number, "mkv"):
                    break
                if (batch := self._read(number)) is not None:
                    yield batch
                    number, size = number + 1, len(batch)
                elif not mine:
                    mine = self._claimed()
                elif number == 0 and output is not None:
                    return (yield from self._compute(run, output, 0))
                else:
                    states = self._read_states(number)
                    with closing(Run([self.op], number * CHUNK, border=CHUNK, states=states)) as own:
                        return (yield from self._compute(own, own.outputs[0], number))

    def _claimed(self) -> bool:
        """Whether this process computes the clip now. Readers in one process do not wait for each other."""
        if self.path in _claims:
            return True
        if self._claim.enter_context(host.locked(self.path / "lock", wait=False)):
            _claims.add(self.path)
            self._claim.callback(_claims.discard, self.path)
            return True
        self._claim.close()
        if not self._waits:
            host.log.info("another process computes this clip: waiting for its frames")
            self._waits = True
        host.show_text("another process computes this clip: waiting")
        host.check_interrupt()
        time.sleep(_PAUSE)
        return False

    def _compute(self, run: Run, output: Stream, number: int) -> Iterator[Batch]:
        """The output from chunk `number` on. A thread writes the chunks, at most one of them waits."""
        held: list[Batch] = []
        writing: list[Future] = []
        with ThreadPoolExecutor(1, "reelbrush frame cache") as pool:
            for batch in _as_pixels(self.op, output):
                held.append(batch)
                while sum(map(len, held)) >= CHUNK:
                    joined = Batch.join(held)
                    held = [joined[CHUNK:]]
                    for earlier in writing:
                        earlier.result()
                    states = run.states_before((number + 1) * CHUNK)
                    writing = [pool.submit(self._write, number, joined[:CHUNK], states)]
                    number += 1
                yield batch  # what its reader stops at is kept
            if sum(map(len, held)):
                pool.submit(self._write, number, Batch.join(held), {})
            elif self._writing and not self._is_stale():
                pool.submit(self._file(number, "end").touch)

    def _is_stale(self) -> bool:
        return any(op.is_stale for op in ordered([self.op]))

    def _file(self, number: int, kind: str) -> Path:
        return self.path / f"{number:05}.{kind}"

    def _has(self, number: int, kind: str) -> bool:
        return os.path.exists(self._file(number, kind))  # False, too, in a folder without permissions

    def _read(self, number: int) -> Batch | None:
        """A chunk; None when it is absent or damaged, so that it is computed again."""
        path = self._file(number, "mkv")
        if not self._has(number, "mkv"):
            return None
        try:
            return Batch(*codec.read_lossless(path, f"{self.op.fingerprint} {number}"))
        except Exception as error:  # whatever damage does to the decoder
            host.log.warning("cached frames are computed again: %s", file_error(error))
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return None

    def _read_states(self, number: int) -> States:
        """The states before a chunk; without them computing begins at frame 0."""
        path = self._file(number, "states")
        try:
            data = path.read_bytes()
        except OSError:
            return {}
        if data[:32] == hashlib.sha256(data[32:]).digest():
            return torch.load(io.BytesIO(data[32:]), weights_only=True)
        host.log.warning("the cached state %s is damaged: computing begins at frame 0", path.name)
        return {}

    def _write(self, number: int, batch: Batch, states: States) -> None:
        """Write a chunk, and the states before the next one. A render goes on when that fails."""
        if not self._writing:
            return
        try:
            if self._is_stale():
                raise ValueError("the clip was changed while it was read")
            if states:
                torch.save(states, buffer := io.BytesIO())
                with replacing(self._file(number + 1, "states")) as temporary:
                    temporary.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
                for old in self.path.glob("*.states"):
                    if old < self._file(number, "states"):
                        old.unlink(missing_ok=True)
            with replacing(self._file(number, "mkv")) as temporary:
                codec.write_lossless(temporary, batch.frames, batch.times, f"{self.op.fingerprint} {number}")
            if prune(keep=self.path) < 0:
                size = f"{limit() / 2**30:.3g} GB"
                raise OSError(f"no room (REELBRUSH_CACHE_GB and the disk, less 1 GB, leave {size})")
        except Exception as error:  # keeping is best effort
            host.log.warning("frames are no longer kept for resuming: %s", file_error(error))
            self._writing = False
            self._claim.close()


def prune(keep: Path) -> float:
    """Remove the oldest caches until the rest fits the limit. Gives the bytes that are left of it."""
    others, left = [], limit() - _bytes(keep)
    for path in root().iterdir():
        with suppress(OSError):  # another process removed it
            host.remove_leftovers(path)
            others += [(path.stat().st_mtime, path)] if path.is_dir() and path != keep else []
    for _, path in sorted(others, reverse=True):
        if _bytes(path) <= left:
            left -= _bytes(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return left


def _bytes(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with suppress(OSError):  # another process removed it
            total += file.stat().st_size
    return total
