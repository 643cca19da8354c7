"""Decode, float32, encode: our Reader and Writer against a bare PyAV loop that does the same.

Both sides use one codec, one preset, one quality and automatic threads, on one clip, in turns; medians of
the rounds are compared, and the worst round of each side stands beside it. Two bare loops: one with the
same conversions as ours (accurate rounding, interpolated chroma), and one with swscale's quick path, which
most loops take without knowing and which darkens the clip.

    python benchmarks/codec_speed.py [--clip FILE] [--codec h264] [--preset veryfast] [--rounds 3]

The ratio is ours over bare, in frames per second: above 1 we are faster. Run it alone on the machine.
"""

import argparse
import io
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.codec import formats
from reelbrush.nodes.video.lazy_video import LazyVideo

ACCURATE = 0x2 | 0x2000 | 0x40000  # the flags of ours


def bare(source: Path, recipe: formats.EncoderSettings, frames: int, flags: int | None) -> None:
    """A loop over PyAV as one writes it by hand."""
    info = codec.probe(source)
    matrix = 1 if info.color.matrix == "bt709" else 5
    other = 5 if matrix == 1 else 1
    in_flags = {} if flags is None else {"interpolation": flags}
    with av.open(str(source)) as read, av.open(io.BytesIO(), "w", format="mp4") as write:
        stream = read.streams.video[0]
        stream.thread_type = "AUTO"
        out = write.add_stream(recipe.encoder, rate=info.fps)
        out.width, out.height, out.pix_fmt = info.width, info.height, "yuv420p"
        out.thread_type = "AUTO"
        out.options = formats.encoder_options(recipe, "yuv420p")
        to_rgb, to_yuv = (av.video.reformatter.VideoReformatter() for _ in range(2))
        for number, frame in zip(range(frames), read.decode(stream), strict=False):
            rgb = to_rgb.reformat(
                frame, format="rgb24", src_colorspace=matrix, dst_colorspace=other,
                src_color_range=1, dst_color_range=2, **in_flags,
            )  # fmt: skip
            floats = torch.from_numpy(rgb.to_ndarray()).float() / 255
            array = (floats * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            back = to_yuv.reformat(
                av.VideoFrame.from_ndarray(array, format="rgb24"), format="yuv420p", src_colorspace=other,
                dst_colorspace=matrix, src_color_range=2, dst_color_range=1, **in_flags,
            )  # fmt: skip
            back.pts, back.time_base = number, 1 / info.fps
            write.mux(out.encode(back))
        write.mux(out.encode(None))


def ours(source: Path, recipe: formats.EncoderSettings, frames: int, *, threads: bool) -> None:
    """Reader, to_float, from_float, Writer; with threads, reading and writing overlap the computing."""
    with codec.Reader(source, stop=frames) as reader:
        info = reader.info
        pictures: Iterator = iter(reader)
        if threads:
            pictures = ahead(pictures)
        with codec.Writer(
            io.BytesIO(), info, codec=recipe.codec, preset=recipe.preset, quality=recipe.quality
        ) as writer:
            write = Behind(writer.write) if threads else writer.write
            for picture, moment in pictures:
                write(codec.from_float(codec.to_float(picture)), moment)
            if threads:
                write.finish()


def lazy(source: Path, recipe: formats.EncoderSettings, frames: int) -> None:
    """What a saved graph does: a lazy clip, decoded, computed and encoded by the pack's own pipeline."""
    video = LazyVideo.from_file(source).trim(0, frames)
    video.save_to(io.BytesIO(), format="mp4", codec=recipe.codec, crf=recipe.quality, preset=recipe.preset)


def ahead(items: Iterator, depth: int = 4) -> Iterator:
    """The items, made in a thread of their own."""
    waiting: queue.Queue = queue.Queue(depth)

    def work() -> None:
        for item in items:
            waiting.put(item)
        waiting.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (item := waiting.get()) is not None:
        yield item


class Behind:
    """Calls a function in a thread of its own, in order."""

    def __init__(self, function: Callable[..., None], depth: int = 4):
        self._waiting: queue.Queue = queue.Queue(depth)
        self._thread = threading.Thread(target=self._work, args=(function,), daemon=True)
        self._thread.start()

    def _work(self, function: Callable[..., None]) -> None:
        while (arguments := self._waiting.get()) is not None:
            function(*arguments)

    def __call__(self, *arguments: object) -> None:
        self._waiting.put(arguments)

    def finish(self) -> None:
        self._waiting.put(None)
        self._thread.join()


def sample(path: Path, frames: int) -> Path:
    """A clip of our own: soft moving waves with grain, 640x360."""
    y, x = torch.meshgrid(torch.arange(360.0), torch.arange(640.0), indexing="ij")
    grain = torch.rand(360, 640, 1, generator=torch.manual_seed(0)) * 0.06
    info = codec.VideoInfo(640, 360, Fraction(24), frames)
    with codec.Writer(path, info, codec="h264", preset="veryfast") as writer:
        for n in range(frames):
            waves = [torch.sin(x / 40 + n / 9), torch.sin(y / 30 - n / 7), torch.sin((x + y) / 50 + n / 5)]
            picture = (torch.stack(waves, -1) / 2 + 0.5) * 0.9 + torch.roll(grain, n, 1)
            writer.write(codec.from_float(picture))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, help="a clip of your own; else one is made")
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--preset", default="veryfast")
    parser.add_argument("--quality", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    clip = args.clip or sample(Path("/tmp") / "codec_speed.mp4", args.frames)
    encoder = formats.encoder_of(args.codec)
    recipe = formats.EncoderSettings(
        formats.CONTAINERS["mp4"], args.codec, encoder, args.quality, args.preset
    )
    runs = {
        "bare loop, same conversions": lambda: bare(clip, recipe, args.frames, ACCURATE),
        "bare loop, quick conversions": lambda: bare(clip, recipe, args.frames, None),
        "ours, one thread": lambda: ours(clip, recipe, args.frames, threads=False),
        "ours, reading and writing overlapped": lambda: ours(clip, recipe, args.frames, threads=True),
        "ours, a lazy clip saved": lambda: lazy(clip, recipe, args.frames),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    frames = min(args.frames, codec.probe(clip).frame_count)
    say = sys.stdout.write
    say(
        f"{clip.name}: {frames} frames, {args.codec} {args.preset}, {torch.get_num_threads()} torch threads\n"
    )
    medians = {name: frames / statistics.median(times) for name, times in seconds.items()}
    base, quick = list(medians.values())[:2]
    for name, rate in medians.items():
        worst = frames / max(seconds[name])
        say(f"{name:38} {rate:7.1f} frames/s (worst {worst:6.1f})")
        say(f"   x{rate / base:.2f} of the same, x{rate / quick:.2f} of the quick\n")


if __name__ == "__main__":
    main()
