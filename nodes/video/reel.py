"""`LazyVideo`: ComfyUI's VIDEO protocol over a chain. Nothing is decoded until somebody saves or looks.

It subclasses the host's VIDEO base where there is one, and speaks the newer hosts' protocol as well
(trim, crop, resize, bit depth, extra options of `save_to`), so that core nodes take it as their own.
"""

import io
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from . import chain, codec
from .chain import Clip, Operation, Window, operation
from .pipeline import Pipeline, rebatch
from .save import Format, Sound, Target, frames_of, save
from .spool import Spool, SpoolStream
from .streams import PixelStream

__all__ = ["Clip", "LazyVideo", "Operation", "Window", "lockstep", "operation"]


class LazyVideo(host.video_base()):
    """A clip that is computed when it is saved or looked at, chunk by chunk."""

    def __init__(self, node: chain.Node):
        self.node = node

    # -- making one

    @classmethod
    def of(cls, video: Any) -> "LazyVideo":
        """A host's VIDEO as a lazy one; a lazy one comes back as it is."""
        if isinstance(video, cls):
            return video
        file = host.video_file(video)
        if file is not None:
            lazy = cls.from_file(file)
            start, duration = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
            trimmed = lazy.as_trimmed(start, duration) if start or duration else lazy
            if trimmed is None:
                raise ValueError(f"the trim begins at {start:g} s, after the end of the clip: begin earlier")
            return trimmed
        if not hasattr(video, "get_components"):
            raise ValueError(
                f"a VIDEO is needed, not {type(video).__name__}: connect Load Video or Create Video"
            )
        parts = video.get_components()
        return cls.from_frames(parts.images, Fraction(parts.frame_rate), parts.audio)

    @classmethod
    def from_file(cls, source: str | os.PathLike | io.BytesIO) -> "LazyVideo":
        """A file, a folder of PNG frames, or the bytes of a file."""
        node = chain.FileSource(source if isinstance(source, io.BytesIO) else os.fspath(source))
        node.clip  # noqa: B018  (a file that cannot be read is said now, not when it is saved)
        return cls(node)

    @classmethod
    def from_frames(cls, frames: Tensor, fps: Fraction | float, audio: dict | None = None) -> "LazyVideo":
        """An IMAGE batch with a frame rate."""
        return cls(chain.FrameSource(frames, Fraction(fps).limit_denominator(100_000), audio))

    def then(
        self,
        name: str,
        params: Mapping[str, Any],
        *,
        tensors: Mapping[str, Tensor] | None = None,
        files: Mapping[str, str | os.PathLike] | None = None,
        objects: Mapping[str, Any] | None = None,
        others: "tuple[LazyVideo, ...]" = (),
        node: str = "",
    ) -> "LazyVideo":
        """This clip through a registered operation. `node` is what a late error is said to come from."""
        context = host.executing_node()
        label = f"{node} (node {context.node_id})" if node and context is not None else node
        step = chain.Step(
            name,
            dict(params),
            (self.node, *(o.node for o in others)),
            dict(tensors or {}),
            {key: os.fspath(f) for key, f in (files or {}).items()},
            label,
            dict(objects or {}),
        )
        step.clip  # noqa: B018  (clips that do not fit together are said now)
        return LazyVideo(step)

    def trim(self, start: int = 0, frames: int = 0, every: int = 1) -> "LazyVideo":
        """Frames start, start + every, ...; at most `frames` of them (0: all)."""
        if start == 0 and frames == 0 and every == 1:
            return self
        node = chain.Trim(self.node, start, frames, every)
        node.clip  # noqa: B018
        return LazyVideo(node)

    def resize(self, width: int, height: int, method: str = "area") -> "LazyVideo":
        """Another size; the same size gives this clip back."""
        if (width, height) == (self.width, self.height):
            return self
        return self.then("video.resize", {"width": width, "height": height, "method": method}, node="Resize")

    def fit(self, max_side: int) -> "LazyVideo":
        """Smaller when the longer side exceeds `max_side` (0: never); even sizes, the shape kept."""
        longer = max(self.width, self.height)
        if not max_side or longer <= max_side:
            return self
        width, height = (
            max(2, round(side * max_side / longer / 2) * 2) for side in (self.width, self.height)
        )
        return self.resize(width, height)

    # -- what it is

    @property
    def clip(self) -> Clip:
        return self.node.clip

    @property
    def width(self) -> int:
        return self.clip.width

    @property
    def height(self) -> int:
        return self.clip.height

    @property
    def fps(self) -> Fraction:
        return self.clip.fps

    @property
    def frame_count(self) -> int:
        """Frames in all; an estimate where the file does not say."""
        return self.clip.frame_count

    # -- its frames

    def chunks(self, size: int = 16) -> Iterator[Tensor]:
        """Frames [n, H, W, 3] in 0..1 as a saved file would hold them, `size` at a time."""
        for (chunk,) in lockstep([self], size):
            yield chunk

    def first_frame(self) -> Tensor:
        """The first frame [1, H, W, 3]: a cheap early check."""
        with Pipeline({self.node: 0}) as run:
            batch = run.feeds[0].next()
        if batch is None:
            raise ValueError("the clip has no frames")
        return batch.frames[:1]

    def frames_at(self, numbers: list[int]) -> Tensor:
        """Chosen frames [len(numbers), H, W, 3] in one pass up to the last of them."""
        wanted, found = set(numbers), {}
        stream, at = frames_of(self.node), 0
        try:
            while len(found) < len(wanted) and (batch := stream.next()) is not None:
                for frame in batch.frames:
                    if at in wanted:
                        found[at] = codec.to_float(frame[..., :3])
                    at += 1
        finally:
            stream.close()
        if not found:
            raise ValueError("the clip has no frames")
        last = max(found)
        return torch.stack([found.get(n, found[last]) for n in numbers])

    # -- the host's protocol

    def get_components(self) -> Any:
        """All frames as one IMAGE batch, with sound. This is where memory grows with the clip."""
        clip = self.clip
        size = clip.frame_count * clip.width * clip.height * 12
        if size > host.free_memory(torch.device("cpu")):
            gigabytes = f"{size / 2**30:.1f} GB"
            raise RuntimeError(
                f"{clip.frame_count} frames of {clip.width}x{clip.height} are {gigabytes} as images, "
                "more than is free: cut the clip with Trim Video, or keep it a VIDEO and save that"
            )
        parts, times = [], []
        with Pipeline({self.node: 0}) as run, host.progress(clip.frame_count, "Reading frames") as bar:
            while (batch := run.feeds[0].next()) is not None:
                parts.append(batch.frames)
                times.extend(batch.times)
                bar.step(len(batch))
        if not parts:
            raise ValueError("the clip has no frames")
        audio = self._audio(times[0], times[-1] + 1 / clip.fps)
        return host.video_components(torch.cat(parts), clip.fps, audio)

    def _audio(self, first: Fraction, end: Fraction) -> dict | None:
        sound = Sound(self.node)
        begin = sound.begin(first)
        if sound.file is None:
            return sound.waveform(begin, end)
        return (
            codec.read_audio(sound.file)
            if begin is None
            else codec.read_audio(sound.file, begin, end - begin)
        )

    def save_to(
        self,
        path: Target,
        format: Any = "auto",
        codec: Any = "auto",
        metadata: dict | None = None,
        *,
        bit_depth: int | None = None,
        crf: int | None = None,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        """Compute and write the clip; core SaveVideo calls this. Options we do not know are ignored."""
        container = _word(format)
        if container == "auto":
            suffix = "" if isinstance(path, io.BytesIO) else Path(path).suffix.lstrip(".")
            container = suffix.lower() or "mp4"
        how = Format(container, _word(codec), crf, preset, bit_depth)
        save(self.node, path, how, metadata=metadata, label="Saving video")

    def get_stream_source(self) -> str | io.BytesIO:
        """A file that nothing was done to is its own stream; anything else is rendered."""
        if isinstance(self.node, chain.FileSource):
            return self.node.source
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
        return not isinstance(self.node, chain.FileSource)

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
        return self.then("video.crop", {"box": [left, top, right, bottom]}, node="Crop")

    def as_resized(self, width: int, height: int, method: str = "area", *_: Any, **__: Any) -> "LazyVideo":
        return self.resize(width, height, method)


def _word(choice: Any) -> str:
    return str(getattr(choice, "value", choice)).lower()


def lockstep(videos: list[LazyVideo], size: int = 16) -> Iterator[tuple[Tensor, ...]]:
    """Several clips, `size` frames at a time, in one pass: what they share is computed once."""
    nodes = {video.node.fingerprint: video.node for video in videos}
    spools = {key: Spool(node) for key, node in nodes.items() if node.costly}
    reads = {key for key, spool in spools.items() if spool.has(0)}
    fresh = {key: node for key, node in nodes.items() if key not in reads}
    border = next((spools[key].chunk for key in fresh if key in spools), 0)
    with Pipeline(dict.fromkeys(fresh.values(), 0), border=border) as run:
        streams = {key: SpoolStream(spools[key]) for key in reads}
        for (key, node), feed in zip(fresh.items(), run.feeds, strict=True):
            spooled = key in spools and spools[key].chunk == border
            streams[key] = SpoolStream(spools[key], run, feed) if spooled else PixelStream(feed, node.clip)
        try:
            order = [streams[video.node.fingerprint] for video in videos]
            distinct = list(dict.fromkeys(order))
            for parts in rebatch(distinct, size):
                frames = {
                    id(s): codec.to_float(p.frames[..., :3]) for s, p in zip(distinct, parts, strict=True)
                }
                yield tuple(frames[id(stream)] for stream in order)
        finally:
            for stream in streams.values():
                stream.close()


@operation("video.resize")
class Resize(Operation):
    """Frames at another size; averaging when they shrink."""

    costly = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.params["width"], self.params["height"]

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        size = (self.params["height"], self.params["width"])
        planes = frames.permute(0, 3, 1, 2)
        if self.params["method"] in ("nearest", "nearest-exact"):
            out = interpolate(planes, size, mode="nearest-exact")
        else:
            mode = "bicubic" if self.params["method"] in ("bicubic", "lanczos") else "bilinear"
            out = interpolate(planes, size, mode=mode, antialias=True).clamp(0, 1)
        return out.permute(0, 2, 3, 1).contiguous()


@operation("video.crop")
class Crop(Operation):
    """A rectangle of every frame."""

    costly = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        left, top, right, bottom = self.params["box"]
        return right - left, bottom - top

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        left, top, right, bottom = self.params["box"]
        return frames[:, top:bottom, left:right].contiguous()
