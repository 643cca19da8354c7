"""Small clips: made with PyAV directly, to test the codec against, or written by the codec."""

import io
from fractions import Fraction

import av
import numpy as np
import torch

from reelbrush.nodes.video.codec import VideoInfo, Writer, from_float

RATE = Fraction(24)


def numbered(count, width=64, height=48):
    """Frames that know their number: a moving gradient, and the number in black and white bits on top."""
    yy, xx = np.mgrid[:height, :width]
    for number in range(count):
        frame = np.stack([(xx * 3 + number * 5) % 256, (yy * 4) % 256, (xx + yy) % 256], -1).astype(np.uint8)
        for bit in range(8):
            frame[:8, bit * 8 : bit * 8 + 8] = 255 * (number >> bit & 1)
        yield frame


def number_of(picture):
    """The number that `numbered` wrote into a frame."""
    return sum(int(picture[4, bit * 8 + 4, :3].float().mean() > 127) << bit for bit in range(8))


def encode(
    frames, codec="libx264", container="mp4", *, times=None, rate=25, tick=None, target=None, **options
):
    """A clip as bytes (or at a path); `times` in seconds, options with _ for -."""
    target = io.BytesIO() if target is None else target
    muxing = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    pixels = options.pop("pixels", "yuv420p")
    setup = options.pop("setup", None)
    opened = av.open(
        target if isinstance(target, io.BytesIO) else str(target), "w", format=container, options=muxing
    )
    with opened as file:
        stream = file.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        tick = tick or 1 / Fraction(rate)
        for number, array in enumerate(frames):
            if number == 0:
                stream.height, stream.width = array.shape[:2]
                stream.pix_fmt = pixels
                stream.codec_context.time_base = stream.time_base = tick
                if setup:
                    setup(stream)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24" if array.shape[2] == 3 else "rgba")
            frame = frame.reformat(format=pixels)
            frame.pts = number if times is None else round(times[number] / tick)
            frame.time_base = tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    if isinstance(target, io.BytesIO):
        target.seek(0)
    return target


def tone(seconds, rate=44100, channels=2, hertz=440.0):
    """A sine as a ComfyUI AUDIO's samples [C, n], louder as it goes: every place in it is different."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time) * time / seconds
    return np.stack([wave] * channels).astype(np.float32)


def with_sound(frames, sound, rate=44100, codec="aac", container="mp4", picture="libx264", fps=25):
    """A clip with a sound track beside the frames."""
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        video = file.add_stream(picture, rate=fps)
        layout = {1: "mono", 2: "stereo"}[sound.shape[0]]
        audio = file.add_stream(codec, rate=rate, layout=layout)
        for number, array in enumerate(frames):
            if number == 0:
                video.height, video.width = array.shape[:2]
                video.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        for start in range(0, sound.shape[1], 1024):
            block = np.ascontiguousarray(sound[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    target.seek(0)
    return target


def packets(source, kind="audio"):
    """(pts in seconds, bytes) of a track's packets."""
    source.seek(0)
    with av.open(source) as file:
        stream = getattr(file.streams, kind)[0]
        return [
            (float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.size and p.pts is not None
        ]


def gradient(count, width, height, channels=3, dtype=torch.uint8):
    """Smooth moving frames; the alpha goes from opaque to clear, left to right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    for n in range(count):
        planes = [x, y, (x + y) / 2 * (0.5 + 0.5 * n / count), 1 - x]
        yield from_float(torch.stack(planes[:channels], -1), 8 if dtype == torch.uint8 else 16)


def write(target, frames, *, times=None, info=None, **how):
    """The target, after our writer wrote the frames to it."""
    frames = list(frames)
    height, width, channels = frames[0].shape
    info = info or VideoInfo(
        width, height, RATE, len(frames), bit_depth=8 * frames[0].dtype.itemsize, alpha=channels == 4
    )
    with Writer(target, info, **how) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, None if times is None else times[number])
    if isinstance(target, io.BytesIO):
        target.seek(0)
    return target
