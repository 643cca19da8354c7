"""Where frames come from, and the operations that only choose, cut out or scale them."""

import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import codec
from .batch import Batch, FrameBuffer
from .operation import Clip, Operation, Worker, operation

_Item = TypeVar("_Item")


def read_ahead(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """The same items, computed by a thread that is at most `depth` of them ahead."""

    def compute() -> _Item | None:
        with torch.inference_mode():  # the mode is thread-local
            return next(items, None)

    pool = ThreadPoolExecutor(1, "reelbrush decode")
    node = copy_context()  # for warnings
    try:
        waiting = deque(pool.submit(node.run, compute) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(node.run, compute))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()


@operation("file")
class FileSource(Operation):
    """A video file, a folder of PNG frames, or the bytes of a file."""

    source: Path | io.BytesIO

    costly = False

    @cached_property
    def info(self) -> codec.VideoInfo:
        info = codec.probe(self.source)
        return info if info.exact else codec.probe(self.source, count=True)

    @cached_property
    def clip(self) -> Clip:
        i = self.info
        return Clip(i.width, i.height, i.fps, i.frame_count, i.exact, i.bit_depth, i.alpha)

    def frames(self, inputs: list[FrameBuffer], start: int, batch: int) -> Iterator[Batch]:
        if self.clip.exact and start >= self.clip.frame_count:
            return
        yield from read_ahead(self._decode(start, batch), max(2, 4 // batch))

    def _decode(self, start: int, batch: int) -> Iterator[Batch]:
        frames: list[Tensor] = []
        times: list[Fraction] = []
        with codec.Reader(self.source, start=start, info=self.info) as reader:
            for frame, time in reader:
                frames.append(frame)
                times.append(time)
                if len(frames) == batch:
                    yield Batch.of(torch.stack(frames), tuple(times))
                    frames, times = [], []
        if frames:
            yield Batch.of(torch.stack(frames), tuple(times))


@operation("frames")
class FrameSource(Operation):
    """Frames [N, H, W, 3 or 4] in memory."""

    images: Tensor
    fps: Fraction
    audio: dict | None = field(default=None, compare=False)
    bit_depth: int = 8

    costly = False

    @cached_property
    def clip(self) -> Clip:
        n, h, w, c = self.images.shape
        return Clip(w, h, self.fps, n, True, self.bit_depth, c == 4)

    def frames(self, inputs: list[FrameBuffer], start: int, batch: int) -> Iterator[Batch]:
        for at in range(start, len(self.images), batch):
            part = self.images[at : at + batch]
            yield Batch.of(part, tuple((at + i) / self.fps for i in range(len(part))))


@operation("latents")
class LatentSource(Operation):
    """Latents [N, C, h, w] as frames [n, h, w, C] for a decoder. The sound is that of `like`."""

    latents: Tensor
    fps: Fraction
    like: Operation | None = field(default=None, compare=False)

    costly = False

    @cached_property
    def clip(self) -> Clip:
        n, _, h, w = self.latents.shape
        return Clip(w, h, self.fps, n)

    def frames(self, inputs: list[FrameBuffer], start: int, batch: int) -> Iterator[Batch]:
        for at in range(start, len(self.latents), batch):
            part = self.latents[at : at + batch].permute(0, 2, 3, 1)
            yield Batch(part, tuple((at + i) / self.fps for i in range(len(part))))


@operation("trim")
class Trim(Operation):
    """Frames first, first + every, ... of the source; at most `count` of them (0: to the end)."""

    source: Operation
    first: int = 0
    count: int = 0
    every: int = 1

    costly = False

    @cached_property
    def clip(self) -> Clip:
        source = self.source.clip
        if source.exact and self.first >= source.frame_count:
            raise ValueError(
                f"the clip has {source.frame_count} frames: it cannot start at frame {self.first}"
            )
        count = max(1, -(-(source.frame_count - self.first) // self.every))
        if self.count and self.count <= count:
            count = self.count
        return replace(source, fps=source.fps / self.every, frame_count=count)

    def input_frame(self, index: int) -> int:
        return self.first + index * self.every

    def frames(self, inputs: list[FrameBuffer], start: int, batch: int) -> Iterator[Batch]:
        (source,), at = inputs, start
        while not self.count or at < self.count:
            low, wanted = self.input_frame(at), min(batch, self.count - at) if self.count else batch
            source.fill(low + (wanted - 1) * self.every + 1)
            if source.end <= low:
                if at == 0:
                    raise ValueError(
                        f"the clip ends before frame {self.first}: nothing is left after the trim"
                    )
                return
            chosen = source.take(low, source.end)[:: self.every]
            yield chosen[:wanted]
            at += min(wanted, len(chosen))
            source.drop(self.input_frame(at))


@operation("video.resize")
class Resize(Operation):
    """Frames at another size. Shrinking averages."""

    source: Operation
    width: int
    height: int
    method: str = "area"

    costly = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.width, self.height

    def start(self) -> Worker:
        return Worker(self._resize)

    def _resize(self, frames: Tensor) -> Tensor:
        planes, size = frames.permute(0, 3, 1, 2), (self.height, self.width)
        if self.method in ("nearest", "nearest-exact"):
            out = interpolate(planes, size, mode="nearest-exact")
        else:
            mode = "bicubic" if self.method in ("bicubic", "lanczos") else "bilinear"
            out = interpolate(planes, size, mode=mode, antialias=True).clamp(0, 1)
        return out.permute(0, 2, 3, 1).contiguous()


@operation("video.crop")
class Crop(Operation):
    """A rectangle of every frame, in pixels."""

    source: Operation
    left: int
    top: int
    right: int
    bottom: int

    costly = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top

    def start(self) -> Worker:
        return Worker(self._crop)

    def _crop(self, frames: Tensor) -> Tensor:
        return frames[:, self.top : self.bottom, self.left : self.right].contiguous()
