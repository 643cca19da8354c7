"""Saving a clip: the chain's frames stream into an encoder that works in a thread of its own.

What is written stands under a dot-named temporary until it is whole; an interrupt or a fault leaves
nothing under the final name.
"""

import io
import os
import queue
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from .. import host
from . import chain, codec
from .pipeline import Pipeline
from .spool import Spool, SpoolStream
from .streams import Batch, PixelStream, Stream

Target = str | os.PathLike | io.BytesIO


@dataclass(frozen=True)
class Format:
    """How a clip is written; `quality` is the codec's constant rate factor."""

    container: str = "mp4"
    codec: str = "auto"
    quality: int | None = None
    preset: str | None = None
    bit_depth: int | None = None


class Sound:
    """The sound that goes with a chain: where it comes from, and which part of it."""

    def __init__(self, node: chain.Node, audio_from: chain.Node | None = None):
        self._replaced = audio_from is not None
        node, self._trimmed, frame = audio_from or node, False, 0
        while node.inputs or (isinstance(node, chain.LatentSource) and node.like):
            self._trimmed |= isinstance(node, chain.Trim)
            frame = node.input_index(frame)
            node = node.inputs[0] if node.inputs else node.like
        self._from = frame / node.clip.fps
        self.file = node.source if isinstance(node, chain.FileSource) and node.info.has_audio else None
        self._waveform = node.audio if isinstance(node, chain.FrameSource) else None

    def begin(self, first: Fraction) -> Fraction | None:
        """Where it begins, in seconds, for a clip whose first frame is at `first`; None: it is untouched.

        Sound that has a beginning of its own also ends with the last frame.
        """
        if self._replaced:
            return self._from
        return first if self._trimmed else None

    def waveform(self, begin: Fraction | None, end: Fraction | None = None) -> dict | None:
        """Sound that is in memory, cut to its part."""
        if self._waveform is None or begin is None:
            return self._waveform
        rate = self._waveform["sample_rate"]
        part = slice(round(begin * rate), None if end is None else round(end * rate))
        return {**self._waveform, "waveform": self._waveform["waveform"][..., part]}


def frames_of(node: chain.Node, *, resume: bool = True) -> Stream:
    """The frames of a chain as pixels; through the spool when they are costly and `resume` is on."""
    if resume and node.costly:
        return SpoolStream(Spool(node))
    return _Owning(Pipeline({node: 0}), node.clip)


class _Owning(PixelStream):
    """Pixels of a run of their own."""

    def __init__(self, pipeline: Pipeline, clip: chain.Clip):
        super().__init__(pipeline.feeds[0], clip)
        self._pipeline = pipeline

    def close(self) -> None:
        self._pipeline.close()


class _Encoder:
    """A writer that works in a thread, behind a short queue."""

    def __init__(self, writer: codec.Writer):
        self._writer = writer
        self._queue: queue.Queue[Batch | None] = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="reelbrush encode", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                try:
                    for frame, time in zip(batch.frames, batch.times, strict=True):
                        self._writer.write(frame, time)
                except BaseException as error:  # raised on the computing thread, which goes on feeding
                    self._error = error

    def put(self, batch: Batch) -> None:
        self._queue.put(batch)
        self._raise()

    def finish(self) -> None:
        self.stop()
        self._raise()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def save(
    node: chain.Node,
    target: Target,
    how: Format,
    *,
    metadata: Mapping[str, Any] | None = None,
    audio_from: chain.Node | None = None,
    resume: bool = True,
    label: str = "Saving",
) -> int:
    """Write a chain to a file, a folder of PNG frames or a BytesIO; the number of frames."""
    clip = node.clip
    done = 0
    if isinstance(target, io.BytesIO) and how.container == "png":
        raise ValueError(
            "png frames are a folder, which bytes cannot hold: choose mp4, mkv, webm, mov or gif"
        )
    frames = frames_of(node, resume=resume)
    temporary: Path | io.BytesIO = target if isinstance(target, io.BytesIO) else _temporary(Path(target))
    try:
        first = frames.next()
        if first is None:
            raise ValueError("the clip has no frames")
        with (
            host.progress(clip.frame_count, label) as bar,
            _open(temporary, node, how, first, metadata, audio_from) as writer,
        ):
            encoder = _Encoder(writer)
            try:
                batch: Batch | None = first
                while batch is not None:
                    encoder.put(batch)
                    done += len(batch)
                    bar.step(len(batch), partial(codec.to_float, batch.frames[-1][..., :3]))
                    batch = frames.next()
                encoder.finish()
            finally:
                encoder.stop()
        if isinstance(temporary, Path):
            _into_place(temporary, Path(target))
        return done
    except BaseException:
        kept = "; finished ones are kept: run it again to go on" if resume and node.costly else ""
        host.log.info("stopped after %d of %d frames%s", done, clip.frame_count, kept)
        if isinstance(temporary, Path):
            _remove(temporary)
        raise
    finally:
        frames.close()


def _open(
    target: Path | io.BytesIO,
    node: chain.Node,
    how: Format,
    first: Batch,
    metadata: Mapping[str, Any] | None,
    audio_from: chain.Node | None,
) -> codec.Writer:
    height, width, channels = first.frames.shape[1:]
    clip, sound = node.clip, Sound(node, audio_from)
    begin = sound.begin(first.times[0])
    info = replace(
        _template(node),
        width=width,
        height=height,
        fps=clip.fps,
        frame_count=clip.frame_count,
        alpha=channels == 4,
        bit_depth=how.bit_depth or clip.bit_depth,
    )
    return codec.Writer(
        target,
        info,
        container=how.container,
        codec=how.codec,
        quality=how.quality,
        preset=how.preset,
        metadata=dict(metadata or {}),
        audio_from=sound.file,
        audio=sound.waveform(begin),
        audio_range=None if begin is None else (begin, None),
        sound_ends=begin is not None,
    )


def _template(node: chain.Node) -> codec.VideoInfo:
    """Colour tags, pixel shape and the like come from the file at the chain's root."""
    while node.inputs:
        node = node.inputs[0]
    if isinstance(node, chain.FileSource):
        return node.info
    clip = node.clip
    return codec.VideoInfo(clip.width, clip.height, clip.fps, clip.frame_count, True)


def _temporary(target: Path) -> Path:
    """A dot-named sibling, so that no counter and no listing ever sees it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def _into_place(temporary: Path, target: Path) -> None:
    if temporary.is_dir() and target.is_dir():
        shutil.rmtree(target)
    temporary.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
