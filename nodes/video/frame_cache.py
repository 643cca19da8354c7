"""The frame cache: finished frames of a costly graph, kept losslessly on disk by its fingerprint.

It serves two purposes: a save that was interrupted continues where it stopped, and a second reader of the
same graph (another format, the optical-flow error) reads frames instead of computing them.
Frames are stored in chunks in `output/.reelbrush/<fingerprint>/`, with the states of sequential operations
at the last chunk border. They are stored as integers. Readers get integers also for frames that are not from
the cache, so the result is the same with and without a cache.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path

from .. import host
from ..common.files import replacing
from . import codec
from .batch import Batch, Stream
from .operation import Operation
from .run import Run, States

CHUNK = 8  # frames per file
_FORMAT = 4  # of the folder's content


def root() -> Path:
    """The folder of all caches."""
    return host.folder("output") / ".reelbrush"


def limit() -> float:
    """Bytes that all caches may take. The oldest are removed first."""
    former = host.limit_from("REELBRUSH_SPOOL_GB", 8)  # the name in version 0.1
    return host.limit_from("REELBRUSH_CACHE_GB", former) * (1 << 30)


@contextmanager
def pixels(
    operations: Sequence[Operation], *, batch: int = 0, resume: bool = True
) -> Iterator[list[Iterator[Batch]]]:
    """The frames of clips as integers, computed in one pass; with `resume` through their caches."""
    caches = {op: FrameCache(op) for op in operations if resume and op.cached}
    fresh = [op for op in operations if op not in caches or not caches[op].kept()]
    border = CHUNK if any(op in caches for op in fresh) else 0
    with ExitStack() as stack:
        run = stack.enter_context(closing(Run(fresh, batch=batch, border=border)))
        computed = dict(zip(fresh, run.outputs, strict=True))
        streams = [
            caches[op].batches(run, computed.get(op)) if op in caches else _as_pixels(op, computed[op])
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
        self._keeping = limit() > 0

    def kept(self) -> int:
        """The number of frames that need not be computed again, from the first one on."""
        return next(number for number in count() if not self._file(number, "mkv").exists()) * CHUNK

    def batches(self, run: Run | None, output: Stream | None) -> Iterator[Batch]:
        """All frames: from the chunks that are there, then computed, and kept in further chunks.

        `output` of a `run` from frame 0 is used to compute when the first chunk is absent.
        """
        number, size = 0, CHUNK
        while size == CHUNK and (batch := self._read(number)) is not None:
            yield batch
            number, size = number + 1, len(batch)
        if number == 0 and output is not None:
            yield from self._compute(run, output, 0)
        elif size == CHUNK and number * CHUNK < self.op.clip.frame_count:
            states = self._read_states(number)
            with closing(Run([self.op], number * CHUNK, border=CHUNK, states=states)) as own:
                yield from self._compute(own, own.outputs[0], number)

    def _compute(self, run: Run, output: Stream, number: int) -> Iterator[Batch]:
        """The output from chunk `number` on. A thread writes the chunks, at most one of them waits."""
        held: list[Batch] = []
        writing: list[Future] = []
        with ThreadPoolExecutor(1, "reelbrush frame cache") as pool:
            for batch in _as_pixels(self.op, output):
                yield batch
                held.append(batch)
                while sum(map(len, held)) >= CHUNK:
                    joined = Batch.join(held)
                    held = [joined[CHUNK:]]
                    for earlier in writing:
                        earlier.result()
                    states = run.states_before((number + 1) * CHUNK)
                    writing = [pool.submit(self._write, number, joined[:CHUNK], states)]
                    number += 1
            if sum(map(len, held)):
                pool.submit(self._write, number, Batch.join(held), {})

    # -- files

    def _file(self, number: int, kind: str) -> Path:
        return self.path / f"{number:05}.{kind}"

    def _read(self, number: int) -> Batch | None:
        """A chunk; None when it is absent or damaged, so that it is computed again."""
        path = self._file(number, "mkv")
        try:
            return Batch(*codec.read_lossless(path)) if path.exists() else None
        except (OSError, ValueError) as error:
            host.log.warning("cached frames are computed again: %s", error)
            return None

    def _read_states(self, number: int) -> States:
        """The states before a chunk; without them computing begins at frame 0."""
        from safetensors.torch import load

        path, states = self._file(number, "states"), {}
        try:
            data = path.read_bytes()
        except OSError:
            return {}
        if data[:32] != hashlib.sha256(data[32:]).digest():
            host.log.warning("the cached state %s is damaged: computing begins at frame 0", path.name)
            return {}
        for key, tensor in load(data[32:]).items():
            fingerprint, index, name = key.split("/", 2)
            states.setdefault((fingerprint, int(index)), {})[name] = tensor
        return states

    def _write(self, number: int, batch: Batch, states: States) -> None:
        """Write a chunk, and the states before the next one. A render goes on when that fails."""
        from safetensors.torch import save

        if not self._keeping:
            return
        tensors = {
            f"{fingerprint}/{index}/{name}": tensor.contiguous()
            for (fingerprint, index), state in states.items()
            for name, tensor in state.items()
        }
        try:
            if tensors:
                data = save(tensors)
                with replacing(self._file(number + 1, "states")) as temporary:
                    temporary.write_bytes(hashlib.sha256(data).digest() + data)
                for old in self.path.glob("*.states"):
                    if old < self._file(number, "states"):
                        old.unlink(missing_ok=True)
            with replacing(self._file(number, "mkv")) as temporary:
                codec.write_lossless(temporary, batch.frames, batch.times)
            if prune(keep=self.path) < 0:
                raise OSError(f"this clip needs more than {limit() / 2**30:.3g} GB (REELBRUSH_CACHE_GB)")
        except (OSError, RuntimeError, ValueError) as error:
            host.log.warning("frames are no longer kept for resuming: %s", error)
            self._keeping = False


def prune(keep: Path) -> float:
    """Remove the oldest caches until the rest fits the limit. Gives the bytes that are left of it."""
    others = (p for p in root().iterdir() if p.is_dir() and p != keep)
    left = limit() - _bytes(keep)
    for path in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        if _bytes(path) <= left:
            left -= _bytes(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return left


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.glob("*") if f.is_file())
