"""Saving a clip: frames stream into an encoder, which works in a thread of its own.

The file is written under a temporary name. After a cancel or an error nothing is left of it.
"""

import io
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from .. import host
from ..common.files import replacing
from . import codec
from .batch import Batch
from .frame_cache import FrameCache, pixel_batches
from .operation import Operation
from .sources import FileSource, FrameSource, LatentSource, Trim

Target = str | os.PathLike | io.BytesIO
_WAITING = 2  # batches for the encoder


@dataclass(frozen=True)
class Format:
    """How a clip is written. `quality` is the codec's constant rate factor."""

    container: str = "mp4"
    codec: str = "auto"
    quality: int | None = None
    preset: str | None = None
    bit_depth: int | None = None


class Sound:
    """The sound that belongs to a graph: where it comes from, and which part of it."""

    def __init__(self, op: Operation, audio_from: Operation | None = None):
        self._replaced, self._trimmed = audio_from is not None, False
        source, frame = audio_from or op, 0
        while True:
            if source.inputs:
                self._trimmed |= isinstance(source, Trim)
                frame = source.input_frame(frame)
                source = source.inputs[0]
            elif isinstance(source, LatentSource) and source.like:
                source = source.like
            else:
                break
        self._from = frame / source.clip.fps
        self.file = source.source if isinstance(source, FileSource) and source.info.has_audio else None
        self._waveform = source.audio if isinstance(source, FrameSource) else None

    def begin(self, first: Fraction) -> Fraction | None:
        """The start of the sound in seconds, for a clip whose first frame is at `first`; None for all of it.

        If it is not None, the sound also ends with the last frame.
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


def save(
    op: Operation,
    target: Target,
    form: Format,
    *,
    metadata: Mapping[str, Any] | None = None,
    audio_from: Operation | None = None,
    resume: bool = True,
    label: str = "Saving",
) -> int:
    """Write a graph's frames to a file, a folder of PNG frames or a BytesIO. Gives the number of frames."""
    in_memory = isinstance(target, io.BytesIO)
    if in_memory and form.container == "png":
        raise ValueError("PNG frames need a folder: choose mp4, mkv, webm, mov or gif")
    done = 0
    try:
        with (
            closing(pixel_batches(op, resume=resume)) as batches,
            nullcontext(target) if in_memory else replacing(target) as path,
            host.progress(op.clip.frame_count, label) as bar,
        ):
            batch = next(batches, None)
            if batch is None:
                raise ValueError("the clip has no frames")
            with (
                _open(path, op, form, batch, metadata, audio_from) as writer,
                ThreadPoolExecutor(1, "reelbrush encode") as pool,
            ):
                waiting: deque[Future] = deque()
                while batch is not None:
                    waiting.append(pool.submit(_encode, writer, batch))
                    if len(waiting) > _WAITING:
                        waiting.popleft().result()
                    done += len(batch)
                    bar.step(len(batch), partial(codec.to_float, batch.frames[-1][..., :3]))
                    batch = next(batches, None)
                for encoded in waiting:
                    encoded.result()
    except BaseException:
        kept = FrameCache(op).kept() if resume and op.cached else 0
        total = op.clip.frame_count
        text = f"stopped after {done} of {total} frames"
        if kept:
            text = f"stopped: {kept} of {total} frames are kept, run it again to continue"
        host.show_text(text)
        host.log.info(text)
        raise
    if not in_memory:
        clip = op.clip
        facts = f"{clip.width} x {clip.height}, {done} frames, {float(clip.fps):.4g} fps"
        host.show_text(f"{Path(target).name}\n{facts}, {host.duration(float(done / clip.fps))}")
    return done


def _encode(writer: codec.Writer, batch: Batch) -> None:
    for frame, time in zip(batch.frames, batch.times, strict=True):
        writer.write(frame, time)


def _open(
    target: Path | io.BytesIO,
    op: Operation,
    form: Format,
    first: Batch,
    metadata: Mapping[str, Any] | None,
    audio_from: Operation | None,
) -> codec.Writer:
    height, width, channels = first.frames.shape[1:]
    sound = Sound(op, audio_from)
    begin = sound.begin(first.times[0])
    info = replace(
        _source_info(op),
        width=width,
        height=height,
        fps=op.clip.fps,
        frame_count=op.clip.frame_count,
        alpha=channels == 4,
        bit_depth=form.bit_depth or op.clip.bit_depth,
    )
    return codec.Writer(
        target,
        info,
        container=form.container,
        codec=form.codec,
        quality=form.quality,
        preset=form.preset,
        metadata=dict(metadata or {}),
        audio_from=sound.file,
        audio=sound.waveform(begin),
        audio_range=None if begin is None else (begin, None),
        sound_ends=begin is not None,
    )


def _source_info(op: Operation) -> codec.VideoInfo:
    """Colour tags, pixel shape and the like come from the file that the graph begins with."""
    while op.inputs:
        op = op.inputs[0]
    if isinstance(op, FileSource):
        return op.info
    clip = op.clip
    return codec.VideoInfo(clip.width, clip.height, clip.fps, clip.frame_count, True)
