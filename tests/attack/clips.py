"""Unusual clips and sounds: each is saved in every container, read as pictures and trimmed."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch
from outcomes import Log, outcome
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

FRAMES, WIDTH, HEIGHT = 8, 64, 48
TARGETS = (("mkv", "ffv1"), ("mp4", "h264"), ("webm", "vp9"), ("gif", "auto"), ("mov", "auto"))


def pictures(count: int = FRAMES, width: int = WIDTH, height: int = HEIGHT) -> Iterator[np.ndarray]:
    ramp = np.arange(width)[None, :, None] * np.ones((height, 1, 4))
    for number in range(count):
        frame = (ramp * 3 + number * 9) % 256
        frame[..., 3] = 255
        yield frame.astype(np.uint8)


def write_clip(
    path: Path,
    encoder: str = "ffv1",
    pixels: str = "bgr0",
    *,
    count: int = FRAMES,
    rate: Any = 25,
    times: list[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    tags: dict[str, str] | None = None,
    sound: tuple[str, str, int, int, float] | None = None,
) -> Path:
    """`times` are in milliseconds; `sound`: encoder, layout, rate, first sample, seconds."""
    with av.open(str(path), "w") as file:
        video = file.add_stream(encoder, rate=Fraction(rate))
        video.width, video.height, video.pix_fmt = *size, pixels
        video.metadata.update(tags or {})
        if times:
            video.codec_context.time_base = video.time_base = Fraction(1, 1000)
        heard = sound and file.add_stream(sound[0], rate=sound[2], layout=sound[1])
        for number, array in enumerate(pictures(count, *size)):
            frame = av.VideoFrame.from_ndarray(array, format="rgba").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if heard:
            _, layout, rate, first, seconds = sound
            channels = av.AudioLayout(layout).nb_channels
            for at in range(0, int(seconds * rate), 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.full((1, 1024 * channels), 900, np.int16), format="s16", layout=layout
                )
                frame.sample_rate, frame.pts, frame.time_base = rate, first + at, Fraction(1, rate)
                file.mux(heard.encode(frame))
            file.mux(heard.encode(None))
    return path


def write_folder(
    path: Path, ending: str = "png", texts: dict[str, str] | None = None, exif: int = 0, cut: bool = False
) -> Path:
    path.mkdir()
    for number, array in enumerate(pictures()):
        info, data = PngInfo(), Image.Exif()
        for key, value in (texts or {}).items():
            info.add_text(key, value)
        if exif:
            data[0x0112] = exif
        file = path / f"{number}.{ending}"
        options = {"pnginfo": info} if ending == "png" else {}
        Image.fromarray(array[..., :3]).save(file, exif=data, **options)
        if cut and number == 3:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def sound_of(waveform: Any, rate: Any = 44100, fps: Any = 25) -> LazyVideo:
    audio = {"waveform": waveform, "sample_rate": rate}
    return LazyVideo.from_frames(torch.rand(FRAMES, HEIGHT, WIDTH, 3), fps, audio)


def _clips() -> dict[str, Callable[[Path], Any]]:
    """What makes a clip below a folder, by a name."""
    cases: dict[str, Callable[[Path], Any]] = {}
    for pixels in (
        "gray",
        "gray10le",
        "gray16le",
        "ya8",
        "yuv410p",
        "yuv420p9le",
        "yuva444p16le",
        "gbrap16le",
    ):
        cases[pixels] = lambda f, p=pixels: write_clip(f / "a.nut", pixels=p)
    for pixels in (
        "rgb4_byte",
        "monow",
        "nv12",
        "uyvy422",
        "rgb565be",
        "xyz12le",
        "gbrpf32le",
        "p010le",
        "vuya",
    ):
        cases[f"raw {pixels}"] = lambda f, p=pixels: write_clip(f / "a.nut", "rawvideo", p)
    for ending, encoder in (
        ("ts", "mpeg2video"),
        ("flv", "flv"),
        ("asf", "wmv2"),
        ("avi", "mjpeg"),
        ("mp4", "mpeg4"),
    ):
        pixels = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        cases[ending] = lambda f, e=ending, c=encoder, p=pixels: write_clip(f / f"a.{e}", c, p)
    for layout in ("mono", "2.1", "quad", "6.1", "7.1", "hexadecagonal", "22.2"):
        sound = ("pcm_s16le", layout, 48000, 0, 0.3)
        cases[f"sound {layout}"] = lambda f, s=sound: write_clip(f / "a.mkv", sound=s)
    for encoder in ("flac", "aac", "libopus"):
        sound = (encoder, "7.1", 48000, 0, 0.3)
        cases[f"sound 7.1 {encoder}"] = lambda f, s=sound: write_clip(f / "a.mkv", sound=s)
    for name, rate, first, seconds in (
        ("8 kHz", 8000, 0, 0.3), ("192 kHz", 192000, 0, 0.3), ("longer", 48000, 0, 20),
        ("empty", 48000, 0, 0), ("before", 48000, -48000, 0.3), ("10 hours later", 48000, 48000 * 36000, 0.1),
    ):  # fmt: skip
        sound = ("pcm_s16le", "stereo", rate, first, seconds)
        cases[f"sound {name}"] = lambda f, s=sound: write_clip(f / "a.mkv", sound=s)
    for name, times in {
        "negative times": [-1000 + 40 * i for i in range(FRAMES)],
        "late": [36_000_000 + 40 * i for i in range(FRAMES)],
        "irregular": [0, 1, 2, 500, 501, 2000, 9000, 9001],
        "a gap of 100 hours": [0, 40, 80, 120, 160, 200, 240, 360_000_000],
    }.items():
        cases[name] = lambda f, t=times: write_clip(f / "a.mkv", times=t)
    for rate in (1000, "1/2", "1/3600"):
        cases[f"{rate} fps"] = lambda f, r=rate: write_clip(f / "a.mkv", rate=r)
    for size in ((1, 1), (4096, 2), (2, 1024)):
        cases[f"size {size}"] = lambda f, s=size: write_clip(f / "a.mkv", size=s)
    for tag in ("x", "1:2:3:4", "0:0:1/0", "0:0:1e999999999"):
        cases[f"DURATION {tag}"] = lambda f, t=tag: write_clip(f / "a.nut", tags={"DURATION": t})
    cases["one frame"] = lambda f: write_clip(f / "a.mkv", count=1)
    cases["no frames"] = lambda f: write_clip(f / "a.mkv", count=0)
    for text in ("x", "0", "-1", "1/0", "nan", "1e400", "1e999999999"):
        cases[f"pictures, fps {text}"] = lambda f, t=text: write_folder(f / "p", texts={"fps": t})
        cases[f"pictures, time {text}"] = lambda f, t=text: write_folder(f / "p", texts={"time": t})
    for ending in ("png", "jpg", "webp", "tiff", "bmp"):
        cases[f"pictures {ending}"] = lambda f, e=ending: write_folder(f / "p", e)
        cases[f"pictures {ending}, cut"] = lambda f, e=ending: write_folder(f / "p", e, cut=True)
    for exif in (2, 6):
        cases[f"pictures, EXIF {exif}"] = lambda f, x=exif: write_folder(f / "p", "jpg", exif=x)
    for name, waveform in {
        "no samples": torch.zeros(1, 2, 0), "no batch": torch.zeros(2, 99), "one dimension": torch.zeros(99),
        "NaN": torch.full((1, 2, 999), torch.nan), "nothing": None, "half": torch.zeros(1, 2, 999).half(),
        "16 channels": torch.zeros(1, 16, 999), "8 channels": torch.zeros(1, 8, 9999),
        "numbers": torch.zeros(1, 2, 999).int(),
    }.items():  # fmt: skip
        cases[f"waveform {name}"] = lambda f, w=waveform: sound_of(w)
    for rate in (0, -1, 1, 2**31, float("nan"), "x", None, 44100.5):
        cases[f"sample rate {rate}"] = lambda f, r=rate: sound_of(torch.zeros(1, 2, 99), r)
    for fps in (0, -5, 1e-9, 1e300, float("inf"), float("nan"), "x", None, 0.001):
        cases[f"frame rate {fps}"] = lambda f, r=fps: sound_of(torch.zeros(1, 2, 99), fps=r)
    return cases


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    return SimpleNamespace(folder=folder, cases=list(_clips().items()), log=Log())


def count(state: SimpleNamespace) -> int:
    return len(state.cases)


def case(state: SimpleNamespace, number: int) -> str:
    name, make = state.cases[number]
    folder = state.folder / str(number)
    folder.mkdir()

    def render() -> list[int]:
        made = make(folder)
        video = made if isinstance(made, LazyVideo) else LazyVideo.from_file(made)
        counts = [len(video.get_components().images)]
        for container, name in TARGETS:
            target = io.BytesIO()
            video.save_to(target, format=container, codec=name)
            with codec.Reader(target) as reader:
                counts.append(sum(1 for _ in reader))
        video.trim(video.frame_count // 2).save_to(io.BytesIO(), format="mp4")
        return counts

    text, counts = outcome(render, state.log)
    wanted = 1 if name == "one frame" else FRAMES
    if counts and {*counts[:4], *counts[5:]} != {wanted}:  # fast frames are left out of a GIF
        return f"failure: {name}: {counts} frames"
    if name.endswith(", cut") and text == "result":
        return f"silent: {name}"
    return text.replace("failure: ", f"failure: {name}: ", 1)
