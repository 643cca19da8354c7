"""The video engine: decoding, computing and encoding; whole chains; memory."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import torch

from reelbrush.benchmarks.clips import on_clip, rendered, saved
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.codec import formats

ACCURATE = 0x2 | 0x2000 | 0x40000  # swscale's flags for the conversions that the pack uses


def _bare(source: Path, settings: formats.EncoderSettings, flags: int | None) -> dict[str, int]:
    """A loop over PyAV as one writes it by hand."""
    info, number = codec.probe(source), 0
    matrix, other = (1, 5) if info.color.matrix == "bt709" else (5, 1)
    more = {} if flags is None else {"interpolation": flags}
    with av.open(str(source)) as read_from, av.open(io.BytesIO(), "w", format="mp4") as write:
        stream = read_from.streams.video[0]
        out = write.add_stream(settings.encoder, rate=info.fps)
        out.width, out.height, out.pix_fmt = info.width, info.height, "yuv420p"
        stream.thread_type = out.thread_type = "AUTO"
        out.options = formats.encoder_options(settings, "yuv420p", info)
        to_rgb, to_yuv = (av.video.reformatter.VideoReformatter() for _ in range(2))
        for number, frame in enumerate(read_from.decode(stream), 1):
            rgb = to_rgb.reformat(
                frame, format="rgb24", src_colorspace=matrix, dst_colorspace=other,
                src_color_range=1, dst_color_range=2, **more,
            )  # fmt: skip
            floats = torch.from_numpy(rgb.to_ndarray()).float() / 255
            array = (floats * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            back = to_yuv.reformat(
                av.VideoFrame.from_ndarray(array, format="rgb24"), format="yuv420p", src_colorspace=other,
                dst_colorspace=matrix, src_color_range=2, dst_color_range=1, **more,
            )  # fmt: skip
            back.pts, back.time_base = number, 1 / info.fps
            write.mux(out.encode(back))
        write.mux(out.encode(None))
    return {"frames": number}


def _ours(source: Path, settings: formats.EncoderSettings) -> dict[str, int]:
    """The codec package in one thread: Reader, to_float, from_float, Writer."""
    how = {"preset": settings.preset, "quality": settings.quality}
    with codec.Reader(source) as reader:  # noqa: SIM117 - the writer needs the reader's info
        with codec.Writer(io.BytesIO(), reader.info, codec=settings.codec, **how) as writer:
            for frame, time in reader:
                writer.write(codec.from_float(codec.to_float(frame)), time)
    return {"frames": reader.info.frame_count}


def transcode(
    clip: str = "", size: str = "640x360", frames: int = 240, preset: str = "veryfast", quality: int = 20
) -> dict[str, Callable]:
    """Decode -> float -> encode (h264) against a bare PyAV loop with the same conversions.

    The second bare loop uses swscale's fast conversions. Most loops do so; they darken the clip.
    """
    encoder = formats.encoder_of("h264")
    settings = formats.EncoderSettings(formats.CONTAINERS["mp4"], "h264", encoder, quality, preset)
    calls = {
        "bare, same conversions": lambda path: _bare(path, settings, ACCURATE),
        "bare, fast conversions": lambda path: _bare(path, settings, None),
        "ours, one thread": lambda path: _ours(path, settings),
        "ours, a clip saved": lambda path: saved("copy", path, codec="h264", crf=quality, preset=preset),
    }
    return {name: on_clip(size, frames, call, clip) for name, call in calls.items()}


def chains(
    clip: str = "", size: str = "640x360", frames: int = 48, container: str = "mp4"
) -> dict[str, Callable]:
    """Whole chains from file to file: each operation against decoding and encoding alone."""
    names = ("copy", "soften", "stabilize", "stylize", "attnstyle")
    calls = {name: lambda path, name=name: saved(name, path, container, preset="ultrafast") for name in names}
    return {name: on_clip(size, frames, call, clip) for name, call in calls.items()}


def memory(
    short: int = 300,
    long: int = 3000,
    size: str = "640x360",
    operation: str = "soften",
    graph: str = "",
    container: str = "mp4",
) -> dict[str, Callable]:
    """Peak memory of a short and a long clip (--rounds 1 --warm-up 0). The target is within 10%.

    The clip goes through one operation, or through a whole workflow (graph=stya2k_video). Compare clips that
    fill the queues: an encoder holds 40 to 60 frames, the frame cache up to 64.
    """

    def call(path: Path) -> dict:
        return rendered(graph, path) if graph else saved(operation, path, container, preset="ultrafast")

    return {f"{n} frames": on_clip(size, n, call) for n in (short, long)}
