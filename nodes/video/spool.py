"""The spool: finished frames of a costly chain, kept losslessly on disk, keyed by its fingerprint.

It serves two ends with one mechanism: an interrupted save goes on where it stopped, and a second
consumer of the same chain (another format, the optical-flow error) reads instead of computing.
Chunks live in `output/.reelbrush/<fingerprint>/`, with the state of the sequential operations at the
last border. What is kept are the frames as a file of the clip's bit depth holds them, which is also what
every consumer at the end of a chain gets, so that a result never depends on what the spool holds.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from .. import host
from . import chain, codec
from .pipeline import Pipeline, state_key
from .streams import Batch, PixelStream, Stream, join

_CHUNK_BYTES = 8 << 20
_FORMAT = 1


def root() -> Path:
    """Where all spools live."""
    return host.folder("output") / ".reelbrush"


def budget() -> int:
    """Bytes that all spools may take (REELBRUSH_SPOOL_GB, 8 unless set); the oldest go first."""
    said = os.environ.get("REELBRUSH_SPOOL_GB", "8")
    try:
        return int(float(said) * (1 << 30))
    except ValueError:
        raise ValueError(f"REELBRUSH_SPOOL_GB is {said!r}: give a number of gigabytes, such as 8") from None


class Spool:
    """The chunks of one chain."""

    def __init__(self, node: chain.Node):
        self.node = node
        clip = node.clip
        self.chunk = max(
            4, min(64, _CHUNK_BYTES // (clip.width * clip.height * 3 * (1 + (clip.bit_depth > 8))))
        )
        self.path = root() / f"{node.fingerprint[:32]}-{_FORMAT}"

    def total(self) -> int | None:
        """Frames in all, once a run has reached the end."""
        try:
            return json.loads((self.path / "done.json").read_text())["frames"]
        except (OSError, ValueError, KeyError):
            return None

    def has(self, number: int) -> bool:
        return self._file(number, "mkv").exists() and self._file(number, "json").exists()

    def finished(self) -> int:
        """Frames that need not be computed again (the unbroken run of chunks from the first)."""
        number = 0
        while self.has(number):
            number += 1
        total = self.total()
        return number * self.chunk if total is None else min(number * self.chunk, total)

    def read(self, number: int) -> Batch | None:
        """A chunk; None when it is absent or damaged (it is then computed again)."""
        if not self.has(number):
            return None
        try:
            times = json.loads(self._file(number, "json").read_text())
            frames = codec.read_lossless(self._file(number, "mkv"))
        except (OSError, ValueError, RuntimeError) as error:
            host.log.warning("a spooled chunk cannot be read and is computed again: %s", error)
            return None
        return Batch(frames, tuple(map(Fraction, times))) if len(frames) == len(times) else None

    def write(self, number: int, batch: Batch, states: dict[str, dict[str, Tensor]]) -> None:
        """Keep a chunk and, in place of the last one, the state at its end."""
        from safetensors.torch import save_file

        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f".{number:05}.part.mkv"
        codec.write_lossless(part, batch.frames)
        if states:
            flat = {f"{key}/{name}": t.contiguous() for key, s in states.items() for name, t in s.items()}
            state = self.path / ".state.part"
            save_file(flat, state)
            state.replace(self.path / f"state-{number + 1:05}.safetensors")
            for old in self.path.glob("state-*.safetensors"):
                if old.name < f"state-{number:05}":
                    old.unlink()
        part.replace(self._file(number, "mkv"))
        self._file(number, "json").write_text(json.dumps([str(t) for t in batch.times]))
        if prune(keep=self.path) < 0:
            raise OSError(f"they take all of the {budget() / 2**30:.3g} GB of REELBRUSH_SPOOL_GB")

    def finish(self, frames: int) -> None:
        """All frames are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "done.json").write_text(json.dumps({"frames": frames}))

    def states(self, number: int) -> dict[str, dict[str, Tensor]] | None:
        """The states with which computing can begin at a chunk; None where one is needed and absent."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if number == 0:
            return {}
        path = self.path / f"state-{number:05}.safetensors"
        found: dict[str, dict[str, Tensor]] = {}
        try:
            tensors = load_file(path) if path.exists() else {}
        except (OSError, SafetensorError) as error:
            host.log.warning("a kept state cannot be read, computing begins earlier: %s", error)
            return None
        for name, tensor in tensors.items():
            key, _, field = name.partition("/")
            found.setdefault(key, {})[field] = tensor
        begin = chain.starts({self.node: number * self.chunk})
        needed = (n for n in chain.walk([self.node]) if isinstance(n, chain.Step) and n.sequential)
        return found if all(state_key(n.fingerprint, begin[n.fingerprint]) in found for n in needed) else None

    def _file(self, number: int, kind: str) -> Path:
        return self.path / f"{number:05}.{kind}"


def prune(keep: Path) -> int:
    """Remove the oldest spools until the rest fits the budget; the bytes that are left of it."""
    others = (p for p in root().iterdir() if p.is_dir() and p != keep)
    left = budget() - _bytes(keep)
    for path in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        if _bytes(path) <= left:
            left -= _bytes(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return left


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.glob("*") if f.is_file())


class SpoolStream(Stream):
    """A chain's frames as pixels: read where the spool has them, computed and kept where it has not."""

    def __init__(self, spool: Spool, shared: Pipeline | None = None, feed: Stream | None = None):
        """`feed` of a `shared` pipeline gives the frames from the first on, if those are to be computed."""
        super().__init__(0)
        self._spool, self._shared = spool, (shared, feed)
        self._worker = ThreadPoolExecutor(1, "reelbrush spool")
        self._writing: Future | None = None
        self._keeping = budget() > 0
        self._batches = self._read_or_compute()

    def next(self) -> Batch | None:
        return next(self._batches, None)

    def _read_or_compute(self) -> Iterator[Batch]:
        total, number, chunk = self._spool.total(), 0, self._spool.chunk
        while total is None or number * chunk < total:
            batch = self._spool.read(number)
            if batch is None:
                number = yield from self._compute(number)
                if number is None:
                    return
            else:
                yield batch
                number += 1
                if len(batch) < chunk:
                    return

    def _compute(self, number: int) -> Generator[Batch, None, int | None]:
        """Compute from chunk `number` on; the next chunk that is there already, or None at the end."""
        chunk = self._spool.chunk
        pipeline, source = self._open(number)
        at, pending = source.start, []
        try:
            while (batch := source.next()) is not None:
                batch, at = batch[max(0, number * chunk - at) :], at + len(batch)
                if not len(batch):
                    continue
                pending.append(batch)
                yield batch
                while sum(map(len, pending)) >= chunk:
                    whole = join(pending)
                    pending = [whole[chunk:]] if len(whole) > chunk else []
                    self._keep(number, whole[:chunk], pipeline.states_at((number + 1) * chunk))
                    number += 1
                if not pending and self._spool.has(number):
                    return number
            if pending:
                self._keep(number, join(pending), {})
            self._wait()
            if self._keeping:
                self._spool.finish(at)
            return None
        finally:
            if pipeline is not self._shared[0]:
                pipeline.close()

    def _open(self, number: int) -> tuple[Pipeline, Stream]:
        """A run that reaches chunk `number` from the nearest border with known states."""
        node, chunk = self._spool.node, self._spool.chunk
        pipeline, feed = self._shared
        if number == 0 and pipeline is not None:
            return pipeline, PixelStream(feed, node.clip)
        first, states = number, self._spool.states(number)
        while states is None:
            first -= 1
            states = self._spool.states(first)
        pipeline = Pipeline({node: first * chunk}, border=chunk, states=states)
        return pipeline, PixelStream(pipeline.feeds[0], node.clip)

    def _keep(self, number: int, batch: Batch, states: dict[str, dict[str, Tensor]]) -> None:
        self._wait()
        if self._keeping:
            self._writing = self._worker.submit(self._spool.write, number, batch, states)

    def _wait(self) -> None:
        """For the chunk being written; that frames cannot be kept must not cost the person the render."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, RuntimeError, ValueError) as error:
            host.log.warning("frames are no longer kept for resuming: %s", error)
            self._keeping = False

    def close(self) -> None:
        self._batches.close()
        try:
            self._wait()
        finally:
            self._worker.shutdown()
