"""Reading the frames of a source, one at a time, from any frame on."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import host
from .media import VideoInfo
from .pictures import number as seconds
from .pictures import pictures_of, read_text
from .pixels import ToRGB
from .source import (
    Packets,
    Source,
    decode,
    decoding_errors,
    first_frame,
    is_folder,
    label,
    open_source,
    probe,
    video_stream,
)


class Reader:
    """The frames `start`..`stop` of a source, one at a time. Seeking is frame exact.

    `for picture, time in Reader("clip.mp4", start=100)`: [H, W, 3 or 4], and seconds.
    """

    def __init__(
        self, source: Source, *, start: int = 0, stop: int | None = None, info: VideoInfo | None = None
    ):
        self.source, self.start, self.stop = source, max(0, start), stop
        self.info = info or probe(source)
        self._frames: Iterator[Any] | None = None
        self._to_rgb = ToRGB(self.info)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and ends a running iteration."""
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.close()

    def __iter__(self) -> Iterator[tuple[Tensor, Fraction]]:
        self.close()
        self._frames = self._pictures() if is_folder(self.source) else self._clip()
        return self._frames

    def _clip(self) -> Iterator[tuple[Tensor, Fraction]]:
        wanted = None if self.stop is None else max(0, self.stop - self.start)
        time = Fraction(self.start) / self.info.fps
        done = 0
        for frame, time_base in islice(self._from(self.start), wanted):
            if frame.pts is not None:
                time = frame.pts * time_base - self.info.start_time
            yield torch.from_numpy(self._to_rgb(frame, self.start + done, self.source)), time
            time += 1 / self.info.fps
            done += 1
        if wanted is None or done < wanted:
            self._check_end(self.start + done)

    def _from(self, start: int) -> Iterator[tuple[Any, Fraction]]:
        """Decoded frames from number `start` on.

        The packets give the time of frame `start` and the key frames before it. Decoding starts at the last
        of these (the leading frames of an open GOP are displayed *before* their key frame). If timestamps
        are not reliable, everything is decoded from the beginning.
        """
        if start:
            table = Packets.read(self.source)
            if start >= table.count:
                raise ValueError(
                    f"{label(self.source)} has {table.count} frames, so frame {start} does not exist: "
                    "start earlier"
                )
            target = table.times[start]
            trusted = target is not None and len(set(table.times)) == table.count
            for key in [k for k in table.keys if trusted and k <= target][-1:]:
                frames = self._decoded(key)
                frames = dropwhile(lambda f: f[0].pts is None or f[0].pts < target, frames)
                first = next(frames, None)
                if first is not None and first[0].pts == target and not first[0].is_corrupt:
                    yield from chain([first], frames)
                    return
        yield from islice(self._decoded(None), start, None)

    def _decoded(self, seek: int | None) -> Iterator[tuple[Any, Fraction]]:
        with open_source(self.source) as container:
            stream = video_stream(container, self.source)
            time_base = Fraction(stream.time_base)
            with decoding_errors(self.source):
                if seek is not None:
                    container.seek(seek, stream=stream)
                for frame in decode(container, stream):
                    yield frame, time_base

    def _check_end(self, read: int) -> None:
        """A warning if the file should have more frames."""
        info = self.info
        if not info.complete or (info.exact and read < info.frame_count):
            promised = max(info.promised, info.frame_count if info.exact else 0)
            of = f" of {promised}" if read < promised else ""
            host.warn(
                f"{label(self.source)} is damaged or cut short: {read}{of} frames could be read; "
                "copy or download it again"
            )

    def _pictures(self) -> Iterator[tuple[Tensor, Fraction]]:
        for number, path in list(enumerate(pictures_of(Path(self.source))))[self.start : self.stop]:
            frame = self._picture(path)
            text = read_text(path)
            time = seconds(text, "time")
            time = number / self.info.fps if time is None else time
            yield torch.from_numpy(self._to_rgb(frame, number, path)), time

    def _picture(self, path: Path) -> Any:
        """The frame of a picture file. FFmpeg shows the rest of an incomplete JPEG as grey, silently."""
        for options in ({"err_detect": "explode"}, {}):
            with open_source(path) as container:
                stream = video_stream(container, path)
                stream.codec_context.options = options
                try:
                    frame = first_frame(container, stream, path)
                except ValueError:
                    if not options:
                        raise
                    continue
            if not options:
                host.warn(f"{label(path)} is damaged or cut short: copy or download it again")
            return frame
