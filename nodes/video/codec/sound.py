"""Sound: copied packet by packet, decoded, or encoded. Times count from the first frame of the source."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch

from ... import host
from .media import contiguous
from .source import Source, decoding_errors, is_cover, is_folder, label, open_source, probe

_LONGEST_SILENCE = 3600  # seconds that gaps of a track may have


def origin_of(container: Any, source: Source) -> Fraction:
    """The time of the first frame in the file's own times; 0 for a file without video."""
    if not [s for s in container.streams.video if not is_cover(s)]:
        return Fraction(0)
    return probe(source).start_time


def sound_of(container: Any, source: Source) -> Any:
    """The sound track of a container that was just opened; None if there is none that can be decoded."""
    for sound in container.streams.audio[:1]:
        try:
            if sound.codec_context is not None:
                next(container.decode(sound), None)
                return sound
        except av.FFmpegError:
            pass
        host.warn(f"the sound of {label(source)} cannot be read and is left out: copy or download it again")
    return None


def copied(stream: Any, source: Source, stop: Fraction | None) -> Iterator[tuple[float, Any]]:
    """The packets of a source's sound, with times from its first frame on."""
    with open_source(source) as container, decoding_errors(source):
        sound, origin = container.streams.audio[0], origin_of(container, source)
        shift = round(origin / sound.time_base)
        for packet in container.demux(sound):
            if packet.dts is None:
                continue
            if packet.pts is None:
                packet.pts = packet.dts
            time = packet.pts * sound.time_base - origin
            if stop is not None and time >= stop:
                return
            if origin and time + (packet.duration or 0) * sound.time_base <= 0:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            yield float(time), packet


def encoded(stream: Any, pieces: Iterator[np.ndarray], rate: int, layout: str) -> Iterator[tuple[float, Any]]:
    """Encode samples to packets."""
    at = 0
    for piece in pieces:
        for block in np.array_split(piece, max(1, piece.shape[1] // rate), axis=1) if piece.size else ():
            packed = np.ascontiguousarray(block.T, np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            at += block.shape[1]
            for packet in stream.encode(frame):
                yield float(packet.pts * packet.time_base), packet
    for packet in stream.encode(None):
        yield float(packet.pts * packet.time_base), packet


def samples_of(audio: dict) -> Iterator[np.ndarray]:
    """The samples of a ComfyUI AUDIO; of a batch, the first item."""
    yield audio["waveform"][0].detach().to("cpu", torch.float32).numpy()


def samples_from(source: Source, start: Fraction, stop: Fraction | None) -> Iterator[np.ndarray]:
    """Decoded samples [C, n] between two times since the first frame. Gaps become silence."""
    with open_source(source) as container:
        sound = container.streams.audio[0]
        rate, origin = sound.codec_context.sample_rate, origin_of(container, source)
        channels = sound.codec_context.channels
        resampler = av.AudioResampler(format="flt", layout=sound.codec_context.layout, rate=rate)
        if start > 1:  # decode from a little earlier: the first packets after a seek are incomplete
            container.seek(int((start + origin - Fraction(1, 2)) / sound.time_base), stream=sound)

        def pieces() -> Iterator[tuple[int, np.ndarray]]:
            at, silence = round(start * rate), 0
            for frame in container.decode(sound):
                if frame.pts is not None:
                    end, at = at, round((frame.pts * Fraction(frame.time_base) - origin) * rate)
                    silence += max(0, at - end)
                if silence > _LONGEST_SILENCE * rate:
                    host.warn(f"the sound of {label(source)} ends early: its times are damaged")
                    return
                for part in resampler.resample(frame):
                    yield at, part.to_ndarray().reshape(-1, channels).T
                at += frame.samples

        last = None if stop is None else round(stop * rate)
        with decoding_errors(source):
            yield from contiguous(pieces(), round(start * rate), last, slack=rate // 50)


def read_audio(source: Source, start_s: float = 0, duration_s: float | None = None) -> dict | None:
    """The sound of a source as a ComfyUI AUDIO, from `start_s` seconds after its first frame on."""
    if is_folder(source):
        return None
    start = Fraction(start_s).limit_denominator(10**6)
    stop = None if duration_s is None else start + Fraction(duration_s).limit_denominator(10**6)
    with open_source(source) as container:
        sound = sound_of(container, source)
        if sound is None:
            return None
        rate, channels = sound.codec_context.sample_rate, sound.codec_context.channels
    pieces = list(samples_from(source, start, stop)) or [np.zeros((channels, 0), np.float32)]
    waveform = torch.from_numpy(np.concatenate(pieces, axis=1))[None]
    return {"waveform": waveform, "sample_rate": rate}
