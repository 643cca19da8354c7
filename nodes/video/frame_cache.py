"""The frame cache: finished frames of a costly graph, kept losslessly on disk by its fingerprint.

It serves two purposes: a save that was interrupted continues where it stopped, and a second reader of the
same graph (another format, the optical-flow error) reads frames instead of computing them.
Frames are stored in chunks in `output/.reelbrush/<fingerprint>/`, with the states of sequential operations
at the last chunk border. They are stored as integers. Readers get integers also for frames that are not from
the cache, so the result is the same with and without a cache.
"""

import json
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

from torch import Tensor

from .. import host
from ..common.files import replacing
from . import codec
from .batch import Batch, FrameBuffer
from .operation import Operation, tensor_digest
from .run import Run, States

_CHUNK_BYTES = 8 << 20
_FORMAT = 3  # of the folder's content


def root() -> Path:
    """The folder of all caches."""
    return host.folder("output") / ".reelbrush"


def limit() -> float:
    """Bytes that all caches may take. The oldest are removed first."""
    return host.limit_from("REELBRUSH_SPOOL_GB", 8) * (1 << 30)


def pixel_batches(op: Operation, *, resume: bool = True) -> Iterator[Batch]:
    """The frames of a graph as integers; through the cache when they are costly and `resume` is on."""
    if resume and op.cached:
        yield from FrameCache(op).batches()
    else:
        with Run({op: 0}) as run:
            for batch in run.outputs[0].batches():
                host.check_interrupt()
                yield batch.as_pixels(op.clip.bit_depth)


class FrameCache:
    """The cached frames of one graph."""

    def __init__(self, op: Operation):
        self.op, clip = op, op.clip
        frame = clip.width * clip.height * 3 * (1 + (clip.bit_depth > 8))
        self.chunk = max(4, min(64, _CHUNK_BYTES // frame))  # frames
        self.path = root() / f"{op.fingerprint[:32]}-{_FORMAT}"
        self._writing: Future | None = None
        self._keeping = limit() > 0

    def total(self) -> int | None:
        """The number of frames, once a run has reached the end."""
        try:
            return int(json.loads((self.path / "done.json").read_text())["frames"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def has(self, number: int) -> bool:
        """Whether a chunk is there."""
        return self._file(number, "mkv").exists()

    def kept(self) -> int:
        """The number of frames that need not be computed again, from the first one on."""
        return next(number for number in count() if not self.has(number)) * self.chunk

    def batches(self, run: Run | None = None, output: FrameBuffer | None = None) -> Iterator[Batch]:
        """All frames: chunks that are there are read, the others are computed and kept.

        `output` of a `run` from frame 0 is used to compute when the first chunk is absent.
        """
        total, number = self.total(), 0
        with ThreadPoolExecutor(1, "reelbrush frame cache") as pool:
            while number is not None and (total is None or number * self.chunk < total):
                batch = self._read(number)
                if batch is not None:
                    yield batch
                    number = number + 1 if len(batch) == self.chunk else None
                elif number == 0 and output is not None:
                    number = yield from self._compute(0, run, output, pool)
                else:
                    states = self._read_states(number)
                    with Run({self.op: number * self.chunk}, border=self.chunk, states=states) as own:
                        number = yield from self._compute(number, own, own.outputs[0], pool)

    def _compute(
        self, number: int, run: Run, output: FrameBuffer, pool: ThreadPoolExecutor
    ) -> Generator[Batch, None, int | None]:
        """Compute from chunk `number` on. Gives the next chunk that is there already, or None at the end."""
        pending: list[Batch] = []

        def keep(states: States) -> None:
            self._wait()
            if self._keeping:
                self._writing = pool.submit(self._write, number, Batch.join(pending), states)

        for batch in output.batches(self.chunk):
            pending.append(batch.as_pixels(self.op.clip.bit_depth))
            yield pending[-1]
            if sum(map(len, pending)) == self.chunk:
                keep(run.states_before((number + 1) * self.chunk))
                number, pending = number + 1, []
                if self.has(number):
                    return number
        if pending:
            keep({})
        self._wait()
        if self._keeping:
            with replacing(self.path / "done.json") as temporary:
                temporary.write_text(json.dumps({"frames": output.end}))
        return None

    def _wait(self) -> None:
        """Wait for the chunk that is being written. A render goes on when its frames cannot be kept."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, RuntimeError, ValueError) as error:
            host.log.warning("frames are no longer kept for resuming: %s", error)
            self._keeping = False

    # -- files

    def _file(self, number: int, kind: str) -> Path:
        return self.path / f"{number:05}.{kind}"

    def _read(self, number: int) -> Batch | None:
        """A chunk; None when it is absent or damaged, so that it is computed again."""
        try:
            return Batch(*codec.read_lossless(self._file(number, "mkv"))) if self.has(number) else None
        except (OSError, ValueError) as error:
            host.log.warning("a cached chunk is computed again: %s", error)
            return None

    def _read_states(self, number: int) -> States:
        """The states before a chunk; without them computing begins at frame 0."""
        from safetensors import SafetensorError, safe_open

        path, states = self._file(number, "safetensors"), {}
        if not path.exists():
            return {}
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
                if (file.metadata() or {}).get("checksum") != _checksum(tensors):
                    raise ValueError("its checksum differs")
        except (OSError, ValueError, SafetensorError) as error:
            host.log.warning("a cached state cannot be read, computing begins at frame 0: %s", error)
            return {}
        for key, tensor in tensors.items():
            fingerprint, index, name = key.split("/", 2)
            states.setdefault(fingerprint, {}).setdefault(int(index), {})[name] = tensor
        return states

    def _write(self, number: int, batch: Batch, states: States) -> None:
        from safetensors.torch import save_file

        tensors = {
            f"{fingerprint}/{index}/{name}": tensor.contiguous()
            for fingerprint, kept in states.items()
            for index, state in kept.items()
            for name, tensor in state.items()
        }
        if tensors:
            with replacing(self._file(number + 1, "safetensors")) as temporary:
                save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})
            for old in self.path.glob("*.safetensors"):
                if old < self._file(number, "safetensors"):
                    old.unlink(missing_ok=True)
        with replacing(self._file(number, "mkv")) as temporary:
            codec.write_lossless(temporary, batch.frames, batch.times)
        if prune(keep=self.path) < 0:
            raise OSError(f"this clip needs more than {limit() / 2**30:.3g} GB (REELBRUSH_SPOOL_GB)")


def _checksum(tensors: dict[str, Tensor]) -> str:
    return " ".join(f"{key} {tensor_digest(tensor)}" for key, tensor in sorted(tensors.items()))


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
