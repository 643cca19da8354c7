"""Saving a clip: frames stream into an encoder in a thread of its own. A cancel leaves no file."""

import errno
import io
import os
import shutil
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
from .frame_cache import CHUNK, FrameCache, pixel_streams
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
    clip, cache = op.clip, FrameCache(op) if resume and op.cached else None
    with host.progress(clip.frame_count, label) as bar:
        try:
            with (
                nullcontext(target) if in_memory else replacing(target) as path,
                pixel_streams([op], resume=resume) as (batches,),
            ):
                batch = next(batches, None)
                if batch is None:
                    raise ValueError("the clip has no frames")
                height, width, channels = batch.frames.shape[1:]
                depth = bit_depth or clip.bit_depth
                info = replace(clip, width=width, height=height, alpha=channels == 4, bit_depth=depth)
                heard = sound(op, batch.times[0], audio_from=audio_from)
                if audio_from is not None and not (heard.get("audio") or heard.get("audio_from")):
                    host.warn("audio_from has no sound, so the clip is saved without sound")
                node = copy_context()  # for warnings
                with (
                    codec.Writer(path, info, container=container, **heard, **encoding) as writer,
                    ThreadPoolExecutor(1, "reelbrush encode") as pool,
                ):
                    waiting: deque[Future] = deque()
                    while batch is not None:
                        waiting.append(pool.submit(node.run, _encode, writer, batch))
                        if len(waiting) > _WAITING:
                            waiting.popleft().result()
                        bar.step(len(batch), partial(codec.to_float, batch.frames[-1][..., :3]))
                        batch = next(batches, None)
                    for encoded in waiting:
                        encoded.result()
        except BaseException as error:
            kept = min(clip.frame_count, cache.frames_kept()) if cache else 0
            if kept and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                host.log.warning("the disk is full: the kept frames are removed, the clip is saved again")
                shutil.rmtree(cache.path, ignore_errors=True)
                options = {"bit_depth": bit_depth, "audio_from": audio_from, "label": label, **encoding}
                return save(op, target, container, resume=False, **options)
            text = f"stopped after {bar.done} of {clip.frame_count} frames"
            if cache and not kept:
                text = f"stopped: no frames are kept yet, because they are kept in groups of {CHUNK}"
            elif kept:
                text = f"stopped: {kept} of {clip.frame_count} frames are kept, run it again to continue"
            host.show_text(text)
            host.log.info(text)
            raise
    if not in_memory:
        facts = f"{clip.width} x {clip.height}, {bar.done} frames, {float(clip.fps):.4g} fps"
        facts += f", {host.duration(float(bar.done / clip.fps))}"
        host.show_text("\n".join([f"{Path(target).name}: {facts}", *bar.warnings]))


def _encode(writer: codec.Writer, batch: Batch) -> None:
    for frame, time in zip(batch.frames, batch.times, strict=True):
        writer.write(frame, time)


def sound(
    op: Operation, first: Fraction, end: Fraction | None = None, audio_from: Operation | None = None
) -> dict[str, Any]:
    """The sound of a clip whose frames are shown from `first` to `end` (seconds), for `codec.Writer`.

    Of a clip that is not trimmed, it is the whole sound. `audio_from` is a clip whose sound is used instead.
    """
    source, frame, trimmed = audio_from or op, 0, False
    while source.sound_from is not None:
        trimmed |= isinstance(source, Trim)
        frame, source = source.input_frame(frame), source.sound_from
    begin = first if trimmed else None
    if audio_from is not None:
        begin = frame / source.clip.fps
    part = {} if begin is None else {"audio_range": (begin, end), "sound_ends": True}
    if isinstance(source, FileSource) and source.clip.has_audio:
        return {"audio_from": source.source, **part}
    audio = source.audio if isinstance(source, FrameSource) else None
    if audio is not None and part:
        rate = audio["sample_rate"]
        samples = slice(round(begin * rate), None if end is None else round(end * rate))
        audio = {**audio, "waveform": audio["waveform"][..., samples]}
    return {"audio": audio, **part}
