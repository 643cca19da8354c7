"""`LazyVideo`: ComfyUI's VIDEO type over a graph of operations. Frames are computed when it is saved.

It subclasses the host's VIDEO base class where there is one, and has the methods that newer versions of
ComfyUI call (trim, crop, resize, bit depth, more options of `save_to`), so core nodes accept it.
"""

import io
import os
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..common import checks
from . import codec
from .batch import Stream, as_floats, filled
from .frame_cache import pixel_streams
from .operation import Operation
from .run import Run
from .save import Target, save, sound
from .sources import FileSource, FrameSource, Resize, Trim


class LazyVideo(host.video_base()):
    """A clip that is computed when it is saved or looked at, a few frames at a time."""

    def __init__(self, operation: Operation):
        self.operation = operation

    @classmethod
    def of(cls, video: Any) -> "LazyVideo":
        """A host's VIDEO as a lazy one. A lazy one comes back as it is."""
        if isinstance(video, cls):
            return video
        file = host.video_file(video)
        if file is not None:
            start, duration = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
            trimmed = cls.from_file(file).as_trimmed(start, duration)
            if trimmed is None:
                raise ValueError(f"the trim begins at {start:g} s, after the end of the clip: begin earlier")
            return trimmed
        if not hasattr(video, "get_components"):
            raise ValueError(f"a VIDEO is needed, not {type(video).__name__}: connect Load Video to it")
        components = video.get_components()
        return cls.from_frames(components.images, components.frame_rate, components.audio)

    @classmethod
    def from_file(cls, source: str | os.PathLike | io.BytesIO) -> "LazyVideo":
        """A file, a folder of PNG frames, or the bytes of a file."""
        return cls(FileSource(source if isinstance(source, io.BytesIO) else Path(source)))

    @classmethod
    def from_frames(
        cls, frames: Tensor, fps: Fraction | float, audio: dict | None = None, bit_depth: int = 8
    ) -> "LazyVideo":
        """An IMAGE batch with a frame rate."""
        rate = checks.frame_rate("the clip", fps)
        sound = None if audio is None else checks.audio("the sound", audio)
        return cls(FrameSource(checks.image("the clip", frames), rate, sound, bit_depth))

    def then(self, operation: type[Operation], *fields: Any, node: str = "", **named: Any) -> "LazyVideo":
        """This clip through an operation. `node` is the node's name, for errors during a save."""
        return LazyVideo(operation(self.operation, *fields, **named, label=running_node(node)))

    def trim(self, start: int = 0, frames: int = 0, every: int = 1) -> "LazyVideo":
        """Frames start, start + every, ...; at most `frames` of them (0: all)."""
        if start == 0 and frames == 0 and every == 1:
            return self
        before = self.operation
        if isinstance(before, Trim) and start < self.frame_count:  # one Trim does what both would do
            left = -(-(self.frame_count - start) // every)
            fields = (before.first + start * before.every, min(left, frames or left), before.every * every)
            return LazyVideo(before.source).then(Trim, *fields)
        return self.then(Trim, start, frames, every)

    def resize(self, width: int, height: int, method: str = "area", *_: Any, **__: Any) -> "LazyVideo":
        """Another size. The same size gives this clip back. Options of newer hosts are ignored."""
        if (width, height) == (self.width, self.height):
            return self
        return self.then(Resize, width, height, method, node="Resize")

    def fit(self, max_side: int) -> "LazyVideo":
        """Smaller when the longer side exceeds `max_side` (0: never). Sizes are even, the shape is kept."""
        longer = max(self.width, self.height)
        if not max_side or longer <= max_side:
            return self
        if max_side < 16:
            raise ValueError(f"max_side {max_side} leaves no picture: give 16 or more, or 0 to keep the size")
        return self.resize(*(max(2, round(s * max_side / longer / 2) * 2) for s in self.get_dimensions()))

    clip: codec.VideoInfo = property(attrgetter("operation.clip"))
    width: int = property(attrgetter("clip.width"))
    height: int = property(attrgetter("clip.height"))
    fps: Fraction = property(attrgetter("clip.fps"))
    frame_count: int = property(attrgetter("clip.frame_count"))

    def chunks(self, size: int = 16) -> Iterator[Tensor]:
        """Frames [n, H, W, 3] in 0..1 as a saved file holds them, `size` at a time."""
        for (chunk,) in in_step([self], size):
            yield chunk

    def frames_at(self, numbers: list[int]) -> Tensor:
        """Chosen frames [len(numbers), H, W, 3], in one pass up to the last of them."""
        wanted, frames = set(numbers), {}
        with pixel_streams([self.operation]) as (batches,):
            for at, frame in enumerate(f for batch in batches for f in batch.frames):
                if at in wanted:
                    frames[at] = codec.to_float(frame[..., :3])
                if len(frames) == len(wanted):
                    break
        last = codec.to_float(frame[..., :3])  # a damaged clip ends before its time
        return torch.stack([frames.get(n, last) for n in numbers])

    # -- the host's VIDEO methods

    def get_components(self) -> Any:
        """All frames as one IMAGE batch, with sound. Here memory grows with the clip."""
        clip = self.clip
        size = clip.frame_count * clip.width * clip.height * 12
        if size > host.free_memory(torch.device("cpu")):
            raise RuntimeError(
                f"{clip.frame_count} frames of {clip.width}x{clip.height} take {size / 2**30:.1f} GB as "
                "images, more than is free: shorten it with Trim Video, or keep it a VIDEO and save that"
            )
        frames, times = [], []
        with closing(Run([self.operation])) as run, host.progress(clip.frame_count, "Reading frames") as bar:
            for batch in run.outputs[0]:
                frames.append(as_floats(batch.frames))
                times.extend(batch.times)
                bar.step(len(batch))
        heard = sound(self.operation, times[0], times[-1] + 1 / clip.fps)
        if "audio_from" in heard:
            begin, end = heard.get("audio_range", (0, None))
            heard["audio"] = codec.read_audio(heard["audio_from"], begin, end and end - begin)
        return host.video_components(torch.cat(frames), clip.fps, heard["audio"])

    def save_to(
        self, path: Target, format: Any = "auto", codec: Any = "auto", metadata: dict | None = None, **options
    ) -> None:
        """Compute and write the clip. Of a host's options, `crf`, `preset` and `bit_depth` count."""
        container = _name(format)
        if container == "auto":
            suffix = "" if isinstance(path, io.BytesIO) else Path(path).suffix.lstrip(".")
            container = suffix.lower() or "mp4"
        chosen = {"quality": options.get("crf"), **{k: options.get(k) for k in ("preset", "bit_depth")}}
        save(self.operation, path, container, codec=_name(codec), metadata=metadata, **chosen)

    def get_stream_source(self) -> str | io.BytesIO:
        """A file without operations is its own stream. Anything else is rendered."""
        if isinstance(self.operation, FileSource):
            source = self.operation.source
            return source if isinstance(source, io.BytesIO) else str(source)
        buffer = io.BytesIO()
        self.save_to(buffer)
        buffer.seek(0)
        return buffer

    def get_dimensions(self) -> tuple[int, int]:
        return self.width, self.height

    get_display_dimensions = get_dimensions

    def get_duration(self) -> float:
        return float(self.frame_count / self.fps)

    def get_container_format(self) -> str:
        return "mp4"

    def get_frame_rate(self) -> Fraction:
        return self.fps

    def get_frame_count(self) -> int:
        return self.frame_count

    def get_bit_depth(self) -> int:
        return self.clip.bit_depth

    def get_color_space(self) -> str:
        return "auto"

    def get_active_trim_window(self) -> tuple[float, float]:
        return 0.0, 0.0

    def has_pending_frame_edits(self) -> bool:
        return not isinstance(self.operation, FileSource)

    def as_trimmed(
        self, start_time: float | None = None, duration: float | None = None, strict_duration: bool = False
    ) -> "LazyVideo | None":
        """`duration` seconds (0: to the end) from `start_time` on; None when nothing is left."""
        total = self.get_duration()
        start = (start_time or 0.0) + (total if (start_time or 0.0) < 0 else 0.0)
        if start >= total or (strict_duration and duration and start + duration > total + 1e-6):
            return None
        frames = max(1, round(duration * self.fps)) if duration else 0
        return self.trim(max(0, min(round(start * self.fps), self.frame_count - 1)), frames)

    def as_cropped(self, x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> "LazyVideo":
        """A rectangle of every frame, clamped to the frame."""
        left, top = min(max(x, 0), self.width - 1), min(max(y, 0), self.height - 1)
        right, bottom = min(left + width, self.width), min(top + height, self.height)
        if right <= left or bottom <= top or (right - left, bottom - top) == (self.width, self.height):
            return self
        return self.then(Resize, right - left, bottom - top, "area", (left, top, right, bottom), node="Crop")

    as_resized = resize


def _name(choice: Any) -> str:
    return str(getattr(choice, "value", choice)).lower()


def running_node(name: str) -> str:
    """The name of the node that runs, with its id in ComfyUI."""
    context = host.executing_node()
    return f"{name} (node {context.node_id})" if name and context is not None else name


def in_step(videos: list[LazyVideo], size: int = 16) -> Iterator[tuple[Tensor, ...]]:
    """Frames of several clips, `size` at a time, in one pass: what they share is computed once."""
    operations = {video.operation.fingerprint: video.operation for video in videos}
    with pixel_streams(list(operations.values()), batch=size) as streams:
        buffers = {key: Stream(batches, 0) for key, batches in zip(operations, streams, strict=True)}
        at, frames = 0, {}
        while (last := filled("the clips", list(buffers.values()), at + size)) > at:
            for key, buffer in buffers.items():
                frames[key] = codec.to_float(buffer.take(at, last).frames[..., :3])
                buffer.need(last)
            at = last
            yield tuple(frames[video.operation.fingerprint] for video in videos)
