"""GIF with one palette for the whole clip, in bounded memory."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ... import host
from .formats import CONTAINERS, EncoderSettings
from .media import ColorTags, VideoInfo
from .muxer import FileSink
from .pixels import FromRGB
from .source import decode, open_source, video_stream


class GifSink(FileSink):
    """Writes a GIF.

    The best 256 colours are known only after the last frame. So the frames are first written to a temporary
    lossless file while their colours are counted, and then mapped to the palette. GIF times are hundredths
    of a second, and viewers slow down clips above 50 frames per second, so faster frames are left out.
    """

    def __init__(self, target: str | os.PathLike | io.BytesIO, info: VideoInfo, recipe: EncoderSettings):
        super().__init__(target, info, recipe)
        beside = None if isinstance(target, io.BytesIO) else Path(target).parent
        suffix = host.temporary_path(Path("frames")).name  # a later save removes it if this one is killed
        self._folder = Path(tempfile.mkdtemp(prefix=".palette-", suffix=suffix, dir=beside))
        plain = replace(info, bit_depth=8)
        waiting = replace(recipe, container=CONTAINERS["mkv"], codec="ffv1", encoder="ffv1", metadata=())
        self._temporary = FileSink(self._folder / "frames.mkv", plain, waiting)
        self._packed = "bgra" if info.alpha else "bgr0"
        self._to_packed = FromRGB(self._packed, ColorTags())
        self._times: list[Fraction] = []
        self._counting, (self._counted,) = _graph(
            info, self._packed, self._tick, "palettegen", f"reserve_transparent={int(info.alpha)}", inputs=1
        )

    def write(self, array: np.ndarray, time: Fraction) -> None:
        if self._times and time - self._times[-1] < Fraction(19, 1000):
            return
        if array.dtype == np.uint16:
            array = (array >> 8).astype(np.uint8)
        self._temporary.write(array, time)
        self._times.append(time)
        self._counted.push(self._timed(self._to_packed(array), time))

    def _timed(self, frame: Any, time: Fraction) -> Any:
        frame.pts, frame.time_base = round(time / self._tick), self._tick
        return frame

    def close(self) -> None:
        self._temporary.close()
        self._counting.push(None)
        dither = "dither=bayer:bayer_scale=4:diff_mode=rectangle"
        graph, (pictures, palette) = _graph(
            self._info, self._packed, self._tick, "paletteuse", dither, inputs=2
        )
        palette.push(self._counting.pull())
        palette.push(None)
        with open_source(self._folder / "frames.mkv") as container:
            frames = decode(container, video_stream(container, "the gif's frames"))
            for time, frame in zip(self._times, frames, strict=True):
                pictures.push(self._timed(frame.reformat(format=self._packed), time))
                self.encode(graph.pull(), time)
        super().close()
        if self._how.metadata:
            _add_comment(self._target, json.dumps(dict(self._how.metadata)).encode())
        shutil.rmtree(self._folder, ignore_errors=True)

    def abandon(self) -> None:
        self._temporary.abandon()
        super().abandon()
        shutil.rmtree(self._folder, ignore_errors=True)


def _add_comment(target: str | os.PathLike | io.BytesIO, comment: bytes) -> None:
    """Puts a comment before the end mark, because FFmpeg writes none. source.py and web/drop.js read it."""
    blocks = (comment[at : at + 255] for at in range(0, len(comment), 255))
    data = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00\x3b"
    with contextlib.nullcontext(target) if isinstance(target, io.BytesIO) else open(target, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(data)


def _graph(
    info: VideoInfo, pixels: str, tick: Fraction, name: str, arguments: str, *, inputs: int
) -> tuple[Any, list[Any]]:
    """A filter with its sources: the clip's frames, then (two inputs) a 16x16 palette."""
    graph = av.filter.Graph()
    step, sink = graph.add(name, arguments), graph.add("buffersink")
    sizes = [(info.width, info.height, pixels), (16, 16, "bgra")][:inputs]
    sources = []
    for number, (width, height, format_) in enumerate(sizes):
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat(format_), time_base=tick)
        source.link_to(step, 0, number)
        sources.append(source)
    step.link_to(sink)
    graph.configure()
    return graph, sources
