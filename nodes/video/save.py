"""Saving a clip: frames stream into an encoder, which works in a thread of its own.

The file is written under a temporary name. After a cancel or an error nothing is left of it.
"""

import errno
import io
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from .. import host
from ..common.files import replacing
from . import codec
from .batch import Batch
from .frame_cache import FrameCache, pixels
from .operation import Operation
from .sources import FileSource, FrameSource, Trim

Target = str | os.PathLike | io.BytesIO
_WAITING = 2  # batches for the encoder


def save(
    op: Operation,
    target: Target,
    container: str = "mp4",
    *,
    bit_depth: int | None = None,
    audio_from: Operation | None = None,
    resume: bool = True,
    label: str = "Saving video",
    **encoding: Any,
) -> None:
    """Write a graph's frames to a file, a folder of PNG frames or a BytesIO.

    `encoding` has the codec, quality, preset and metadata of `codec.Writer`.
    """
    in_memory = isinstance(target, io.BytesIO)
    if in_memory and container == "png":
        raise ValueError("PNG frames need a folder: choose mp4, mkv, webm, mov or gif")
    options = {"container": container, "bit_depth": bit_depth, "audio_from": audio_from, **encoding}
    clip, cache = op.clip, FrameCache(op) if resume and op.cached else None
    with host.progress(clip.frame_count, label) as bar:
        try:
            with nullcontext(target) if in_memory else replacing(target) as path:
                try:
                    _write(op, path, bar, resume=resume, **options)
                except OSError as error:
                    if error.errno != errno.ENOSPC or cache is None or not cache.kept():
                        raise
                    host.log.warning("the disk is full: the kept frames are removed, the clip is saved again")
                    cache.remove()
                    bar.at(0)
                    _write(op, path, bar, resume=False, **options)
        except BaseException:
            kept = min(clip.frame_count, cache.kept()) if cache else 0
            text = f"stopped after {bar.done} of {clip.frame_count} frames"
            if kept:
                text = f"stopped: {kept} of {clip.frame_count} frames are kept, run it again to continue"
            host.show_text(text)
            host.log.info(text)
            raise
    if not in_memory:
        facts = f"{clip.width} x {clip.height}, {bar.done} frames, {float(clip.fps):.4g} fps"
        facts += f", {host.duration(float(bar.done / clip.fps))}"
        host.show_text("\n".join([Path(target).name, facts, *bar.warnings]))


def _write(
    op: Operation,
    path: Target,
    bar: host.Progress,
    *,
    bit_depth: int | None,
    audio_from: Operation | None,
    resume: bool,
    **encoding: Any,
) -> None:
    with pixels([op], resume=resume) as (batches,):
        batch = next(batches, None)
        if batch is None:
            raise ValueError("the clip has no frames")
        height, width, channels = batch.frames.shape[1:]
        depth = bit_depth or op.clip.bit_depth
        info = replace(op.clip, width=width, height=height, alpha=channels == 4, bit_depth=depth)
        file, audio, begin = sound(op, batch.times[0], audio_from=audio_from)
        writer = codec.Writer(
            path,
            info,
            audio_from=file,
            audio=audio,
            audio_range=None if begin is None else (begin, None),
            sound_ends=begin is not None,
            **encoding,
        )
        node = copy_context()  # for warnings
        with writer, ThreadPoolExecutor(1, "reelbrush encode") as pool:
            waiting: deque[Future] = deque()
            while batch is not None:
                waiting.append(pool.submit(node.run, _encode, writer, batch))
                if len(waiting) > _WAITING:
                    waiting.popleft().result()
                bar.step(len(batch), partial(codec.to_float, batch.frames[-1][..., :3]))
                batch = next(batches, None)
            for encoded in waiting:
                encoded.result()


def _encode(writer: codec.Writer, batch: Batch) -> None:
    for frame, time in zip(batch.frames, batch.times, strict=True):
        writer.write(frame, time)


def sound(
    op: Operation, first: Fraction, end: Fraction | None = None, audio_from: Operation | None = None
) -> tuple[codec.Source | None, dict | None, Fraction | None]:
    """The sound of a clip whose frames are shown from `first` to `end` (seconds).

    Gives the file that it is in or its waveform (cut to that part), and the second at which it begins: None
    for all of it, otherwise it also ends with the last frame. `audio_from` is a clip whose sound is used.
    """
    source, frame, trimmed = audio_from or op, 0, False
    while source.sound_from is not None:
        trimmed |= isinstance(source, Trim)
        frame, source = source.input_frame(frame), source.sound_from
    begin = first if trimmed else None
    if audio_from is not None:
        begin = frame / source.clip.fps
    if isinstance(source, FileSource) and source.clip.has_audio:
        return source.source, None, begin
    audio = source.audio if isinstance(source, FrameSource) else None
    if audio is not None and begin is not None:
        rate = audio["sample_rate"]
        part = slice(round(begin * rate), None if end is None else round(end * rate))
        audio = {**audio, "waveform": audio["waveform"][..., part]}
    return None, audio, begin
