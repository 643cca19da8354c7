"""Writing one file: a video track and optionally a sound track."""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from ... import host
from .formats import EncoderSettings, encoder_options, pixel_format
from .media import MATRICES, PRIMARIES, RANGES, TRANSFERS, ColorTags, VideoInfo
from .pixels import FromRGB
from .sound import copied, encoded, samples_from, sound_of
from .source import Source, is_folder, open_source

_FINEST = 60_000  # ticks per second that times are kept in, at least
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_OPUS_RATES = (48000,)


def tick_of(info: VideoInfo, codec: str) -> Fraction:
    """A fine time base in which 1/fps is a whole number; 1/100 s for a GIF."""
    if codec == "gif":
        return Fraction(1, 100)
    rate = info.fps.limit_denominator(100_000).numerator
    return Fraction(1, rate * max(1, -(-_FINEST // rate)))


class FileSink:
    """A muxer with one video track and optionally a sound track."""

    sound_ends = False  # True: no sound after the last frame

    def __init__(self, target: str | os.PathLike | io.BytesIO, info: VideoInfo, how: EncoderSettings):
        self._target, self._info, self._how = target, info, how
        memory = isinstance(target, io.BytesIO)
        options = dict(how.container.options)
        if memory and "movflags" in options:
            options["movflags"] = "use_metadata_tags"  # the second pass of faststart needs a file
        self._file = av.open(
            target if memory else os.path.abspath(target), "w", format=how.container.muxer, options=options
        )
        self._file.metadata.update(how.metadata)
        self._sound: Iterator[tuple[float, Any]] = iter(())
        self._next_sound: tuple[float, Any] | None = None
        self._last = -1
        self._picture = self._add_picture()

    def _add_picture(self) -> Any:
        info, how = self._info, self._how
        pixels = pixel_format(how, info)
        stream = self._file.add_stream(how.encoder, rate=info.fps.limit_denominator(100_000))
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = info.width, info.height, pixels
        context.thread_type, context.thread_count = "AUTO", 0
        context.options = encoder_options(how, pixels, info)
        self._tick = tick_of(info, how.codec)
        context.time_base = stream.time_base = self._tick
        if info.pixel_aspect != 1:
            context.sample_aspect_ratio = info.pixel_aspect
        color = self._colors()
        if pixels.startswith("yuv"):
            context.color_range, context.colorspace = RANGES[color.range], MATRICES[color.matrix]
            context.color_primaries, context.color_trc = PRIMARIES[color.primaries], TRANSFERS[color.transfer]
        if how.codec == "h265" and how.container.muxer in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # QuickTime and Safari refuse hev1
        self._convert = FromRGB(pixels, color)
        try:
            context.open(strict=False)
        except (av.FFmpegError, ValueError) as error:
            self.abandon()
            raise ValueError(
                f"{how.encoder} cannot write {info.width}x{info.height} with quality {how.quality}, "
                f"preset {how.preset}: choose another size, codec, quality or preset"
            ) from error
        return stream

    def _colors(self) -> ColorTags:
        color = self._info.color.as_yuv()
        if self._how.codec == "prores":  # has no full range
            color = color._replace(range="limited")
        return color

    def write(self, array: np.ndarray, time: Fraction) -> None:
        self.encode(self._convert(array), time)

    def encode(self, frame: Any, time: Fraction) -> None:
        frame.pts = self._last = max(round(time / self._tick), self._last + 1)
        frame.time_base = self._tick
        if hasattr(frame, "duration"):
            frame.duration = max(1, round(1 / self._info.fps / self._tick))
        for packet in self._picture.encode(frame):
            self._file.mux(packet)
        self._pump(float(time))

    def close(self) -> None:
        for packet in self._picture.encode(None):
            self._file.mux(packet)
        end = self._last * self._tick + 1 / self._info.fps
        self._pump(float(end) if self.sound_ends else float("inf"))
        self._file.close()

    def abandon(self) -> None:
        """Closes without finishing, and removes the file."""
        self._sound = iter(())
        with suppress(av.FFmpegError, ValueError, OSError):  # writing the trailer may fail
            self._file.close()
        if isinstance(self._target, io.BytesIO):
            self._target.seek(0)
            self._target.truncate()
        else:
            Path(self._target).unlink(missing_ok=True)

    # -- sound

    def _pump(self, until: float) -> None:
        """Write sound packets up to a time, so that pictures and sound are interleaved."""
        while True:
            try:
                if self._next_sound is None:
                    self._next_sound = next(self._sound, None)
                if self._next_sound is None or self._next_sound[0] > until:
                    return
                self._file.mux(self._next_sound[1])
            except (av.FFmpegError, ValueError) as error:
                self._sound = iter(())
                host.warn(f"the sound ends early: {error}")
            self._next_sound = None

    def add_sound(self, pieces: Iterator[np.ndarray], rate: int) -> None:
        """Encode samples [C, n] as the sound track."""
        first = next(pieces, None)
        if first is None or not self._how.container.sounds:
            return
        channels = first.shape[0]
        layout = _LAYOUTS.get(channels)
        if layout is None:
            host.warn(f"sound with {channels} channels cannot be written and is left out: give 1 to 8")
            return
        kept = channels if channels in (1, 2, 6, 8) else 2  # layouts that every player supports
        opus = self._how.container.sounds[0] == "opus"
        rates = _OPUS_RATES if opus else _AAC_RATES
        stream = self._file.add_stream(
            "libopus" if opus else "aac",
            rate=rate if rate in rates else 48000,
            layout=layout if kept == channels else "stereo",
        )
        stream.bit_rate = 96_000 * min(kept, 6)
        self._sound = encoded(stream, chain([first], pieces), rate, layout)

    def add_sound_of(self, source: Source, span: tuple[Fraction, Fraction | None] | None) -> None:
        """Use the sound of a source, if it has any."""
        start, stop = span or (Fraction(0), None)
        if is_folder(source):
            return
        with open_source(source) as container:
            sound = sound_of(container, source)
            if sound is None:
                return
            name, rate = sound.codec_context.name, sound.codec_context.sample_rate
            name = {"mp3float": "mp3", "libopus": "opus"}.get(name, name)
            if start == 0 and name in self._how.container.sounds:
                stream = self._file.add_stream_from_template(sound)
                self._sound = copied(stream, source, stop)
                return
        self.add_sound(samples_from(source, start, stop), rate)
