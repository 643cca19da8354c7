"""Where frames come from, and the operations that only choose, cut out or scale them."""

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import field, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from stat import S_ISREG

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from . import codec
from .batch import Batch, Stream
from .operation import Operation, Worker


def read_ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, computed by a thread that is at most `depth` of them ahead."""

    def compute() -> Batch | None:
        with torch.inference_mode():  # the mode is thread-local
            return next(batches, None)

    pool = ThreadPoolExecutor(1, "reelbrush decode")
    node = copy_context()  # for warnings
    try:
        waiting = deque(pool.submit(node.run, compute) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(node.run, compute))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        batches.close()


class FileSource(Operation, name="file"):
    """A video file, a folder of PNG frames, or the bytes of a file."""

    source: Path | io.BytesIO

    costly = False

    def __post_init__(self) -> None:
        self._first_state  # noqa: B018  (what the fingerprint is of)
        super().__post_init__()

    @cached_property
    def _first_state(self) -> tuple[int, ...]:
        return self._state()

    def _state(self) -> tuple[int, ...]:
        """What changes when the file is written or replaced; empty without a file."""
        try:
            about = os.stat(self.source)
        except (OSError, TypeError):
            return ()
        return (about.st_ino, about.st_mtime_ns, about.st_size) if S_ISREG(about.st_mode) else ()

    @property
    def is_stale(self) -> bool:
        return self._state() not in ((), self._first_state)

    @cached_property
    def clip(self) -> codec.VideoInfo:
        info = codec.probe(self.source)
        return info if info.exact else codec.probe(self.source, count=True)

    def frames(self, inputs: list[Stream], start: int, batch: int) -> Iterator[Batch]:
        return read_ahead(self._decode(start, batch), max(2, 4 // batch))

    def _decode(self, start: int, batch: int) -> Iterator[Batch]:
        with codec.Reader(self.source, start=start, info=self.clip) as reader:
            decoded = iter(reader)
            while group := list(islice(decoded, batch)):
                frames, times = zip(*group, strict=True)
                yield Batch.of(torch.stack(frames), times)
        if self.is_stale:
            host.warn(f"{self.source.name!r} was changed while it was read: its frames may be wrong")


class FrameSource(Operation, name="frames"):
    """Frames [N, H, W, 3 or 4] in memory."""

    images: Tensor
    fps: Fraction
    audio: dict | None = field(default=None, compare=False)
    bit_depth: int = 8

    costly = False

    @cached_property
    def clip(self) -> codec.VideoInfo:
        n, h, w, c = self.images.shape
        return codec.VideoInfo(w, h, self.fps, n, True, bit_depth=self.bit_depth, alpha=c == 4)

    def frames(self, inputs: list[Stream], start: int, batch: int) -> Iterator[Batch]:
        for at in range(start, len(self.images), batch):
            part = self.images[at : at + batch]
            yield Batch.of(part, tuple((at + i) / self.fps for i in range(len(part))))


class Trim(Operation, name="trim"):
    """Frames first, first + every, ... of the source; at most `count` of them (0: to the end)."""

    source: Operation
    first: int = 0
    count: int = 0
    every: int = 1

    costly = False

    @cached_property
    def clip(self) -> codec.VideoInfo:
        source, total = self.source.clip, self.source.clip.frame_count
        if self.first >= total:
            raise ValueError(f"the clip has {total} frames: it cannot start at frame {self.first}")
        count = -(-(total - self.first) // self.every)
        return replace(source, fps=source.fps / self.every, frame_count=min(count, self.count or count))

    def input_frame(self, index: int) -> int:
        return self.first + index * self.every

    def frames(self, inputs: list[Stream], start: int, batch: int) -> Iterator[Batch]:
        (source,), count = inputs, self.clip.frame_count
        for at in range(start, count, batch):
            low, high = self.input_frame(at), self.input_frame(min(at + batch, count) - 1) + 1
            source.fill(high)
            if source.end <= low:
                if at == 0:
                    raise ValueError(f"the clip ends before frame {self.first}: nothing is left of it")
                return
            yield source.take(low, high)[:: self.every]
            source.need(high, self)


class Resize(Operation, name="video.resize"):
    """A rectangle of every frame at another size. Shrinking averages."""

    source: Operation
    width: int
    height: int
    method: str = "area"
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom; None: the whole frame

    costly = False

    @cached_property
    def clip(self) -> codec.VideoInfo:
        return replace(self.source.clip, width=self.width, height=self.height)

    def start(self) -> Worker:
        return Worker(self._resize)

    def _resize(self, frames: Tensor) -> Tensor:
        left, top, right, bottom = self.box or (0, 0, frames.shape[2], frames.shape[1])
        size, frames = (self.height, self.width), frames[:, top:bottom, left:right]
        if frames.shape[1:3] == size:
            return frames.contiguous()
        planes = frames.permute(0, 3, 1, 2)
        if self.method in ("nearest", "nearest-exact"):
            out = interpolate(planes, size, mode="nearest-exact")
        else:
            mode = "bicubic" if self.method in ("bicubic", "lanczos") else "bilinear"
            out = interpolate(planes, size, mode=mode, antialias=True).clamp(0, 1)
        return out.permute(0, 2, 3, 1).contiguous()
