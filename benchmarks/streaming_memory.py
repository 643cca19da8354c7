"""Peak memory of a chain, or of a whole graph, for a short and a long clip.

Streaming means that memory does not grow with the clip: the peak of 3,000 frames is to lie within 10% of the
peak of 300, and below what importing the pack takes plus 400 MB. Every run is a process of its own; the
peak is the kernel's, so nothing between two samples is missed.

    python benchmarks/streaming_memory.py [--frames 300 3000] [--operation stabilize] [--container mp4]
    python benchmarks/streaming_memory.py --graph stya2k_video --size 320x180 --frames 180 600 2000

`soften` is a 9x9 Gaussian blur with a colour curve by torch, on every frame; `stabilize` is the pack's own
node with optical flow, which carries state from frame to frame; `stylize` is the small StyA2K. `--graph` runs
a workflow (a shipped one's name, or a file) with the clip in its Load Video: stylizer, stabilizer, both error
nodes, previews and all. The clip is moving waves, or the frames of `--clip` over and over.

The peak is of the whole process. `in use` is the most that was allocated at once (glibc's mallinfo2, asked
every 20 ms), of which nothing is the allocator's: a leak raises it, and holes between what is allocated
raise the peak alone. A clip shorter than the queues (an encoder looks 40 to 60 frames ahead, a chunk kept for
resuming has up to 64) does not fill them: compare clips that do.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo, Operation, Window, operation

LIMIT = 1.10


@operation("benchmark.soften")
class Soften(Operation):
    """A Gaussian blur and a curve: no state, no neighbours, real arithmetic on every pixel."""

    def start(self, clip: object) -> None:
        bell = torch.exp(-(torch.linspace(-2, 2, 9) ** 2))
        self._bell = (bell / bell.sum()).repeat(3, 1)

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        return torch.stack([self._soften(frame) for frame in frames[window.wanted]])

    def _soften(self, frame: Tensor) -> Tensor:
        x = pad(frame.movedim(-1, 0)[None], (4, 4, 4, 4), mode="reflect")
        x = conv2d(conv2d(x, self._bell[:, None, None], groups=3), self._bell[:, None, :, None], groups=3)
        return (x * x * (3 - 2 * x))[0].movedim(0, -1)


def waves(width: int, height: int) -> list[Tensor]:
    """Soft moving waves with grain, a loop of 48 frames: neither still nor noise."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    grain = torch.rand(height, width, 1, generator=torch.manual_seed(0)) * 0.05
    loop = []
    for n in range(48):
        parts = [torch.sin(x / 40 + n * 0.2618), torch.sin(y / 30 - n * 0.2618), torch.sin((x + y) / 50)]
        loop.append(codec.from_float((torch.stack(parts, -1) / 2 + 0.5) * 0.9 + torch.roll(grain, 7 * n, 1)))
    return loop


def sample(path: Path, frames: int, size: tuple[int, int], clip: Path | None) -> None:
    """A clip of so many frames: the waves, or another clip over and over."""
    if clip is None:
        loop = waves(*size)
    else:
        with codec.Reader(clip) as reader:
            loop = [frame for frame, _ in reader]
    height, width = loop[0].shape[:2]
    info = codec.VideoInfo(width, height, Fraction(24), frames)
    with codec.Writer(path, info, codec="h264", preset="ultrafast") as writer:
        for n in range(frames):
            writer.write(loop[n % len(loop)])


def peak() -> float:
    """This process's peak so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins at the peak of the process that started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


class Heap(threading.Thread):
    """The most that malloc had given out at once, in MB; 0 where the C library does not tell."""

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
                *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
            )
        ]

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._done = 0.0, threading.Event()
        try:
            self._ask = ctypes.CDLL(None).mallinfo2
            self._ask.restype = self.Info
        except (OSError, AttributeError, TypeError):
            self._done.set()

    def run(self) -> None:
        while not self._done.wait(0.02):
            info = self._ask()
            self.most = max(self.most, (info.uordblks + info.hblkhd) / 2**20)

    def stop(self) -> float:
        self._done.set()
        self.join()
        return self.most


def save(clip: Path, name: str, container: str) -> int:
    """One operation on the clip, saved; the frames in the file."""
    source = LazyVideo.of(LazyVideo.from_file(clip))
    out = clip.with_name(f"out.{container}")
    if name == "soften":
        video = source.then("benchmark.soften", {}, node="Soften")
    elif name == "stylize":
        from reelbrush.nodes.stya2k import library
        from reelbrush.nodes.stya2k.style import load_model, make_style
        from reelbrush.nodes.stya2k.stylize import Look, stylize_video

        picture = torch.rand(1, 256, 256, 3, generator=torch.manual_seed(0))
        style = make_style(load_model(library.path("stya2k-small.safetensors")), picture, size=256)
        video = stylize_video(style, source, Look())
    else:
        from reelbrush.nodes.flow.nodes import StabilizeVideo

        (video,) = StabilizeVideo().stabilize(source, source, 0.8, "dis-ultrafast")
    video.save_to(out, format=container, preset="ultrafast")
    return codec.probe(out, count=True).frame_count


def render(clip: Path, graph: str) -> int:
    """A whole graph with the clip in its Load Video; the frames in the file that it saved."""
    from reelbrush.nodes.headless import run
    from reelbrush.nodes.headless.catalog import local_catalog
    from reelbrush.nodes.headless.read import read

    nodes = read(graph, local_catalog()).nodes.values()
    loaders = [node for node in nodes if node.class_type == "LoadVideo"]
    files = run.render(graph, [f"{node.id}.file={clip}" for node in loaders])
    saved = next(file for file in files if file.suffix in (".mp4", ".mkv", ".webm", ".mov"))
    return codec.probe(saved, count=True).frame_count


def one(call: Callable[[], int]) -> dict[str, float]:
    """One run in this process."""
    baseline, heap = peak(), Heap()
    heap.start()
    begin = time.perf_counter()
    count = call()
    seconds = time.perf_counter() - begin
    return {
        "baseline": baseline,
        "peak": peak(),
        "in_use": heap.stop(),
        "seconds": seconds,
        "frames": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=(300, 3000))
    parser.add_argument("--operation", choices=("soften", "stabilize", "stylize"), default="soften")
    parser.add_argument("--graph", metavar="NAME", help="a whole graph instead of one operation")
    parser.add_argument("--container", default="mp4", choices=codec.containers())
    parser.add_argument("--size", default="640x360", metavar="WxH", help="of the waves")
    parser.add_argument("--clip", type=Path, help="a real clip, its frames over and over")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (0: as it is)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        work = render if args.graph else save
        what = (args.graph,) if args.graph else (args.operation, args.container)
        sys.stdout.write(json.dumps(one(lambda: work(args.one, *what))) + "\n")
        return
    size = tuple(map(int, args.size.split("x")))
    what = args.graph or f"{args.operation}, {args.container}"
    peaks = []
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            sample(clip, frames, size, args.clip and args.clip.resolve())
            given = codec.probe(clip)
            how = ["--one", str(clip), "--operation", args.operation, "--container", args.container]
            how += ["--threads", str(args.threads), *(["--graph", args.graph] if args.graph else [])]
            child = subprocess.run(
                [sys.executable, __file__, *how],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=folder,
                env={**os.environ, "REELBRUSH_HOME": folder},
            )
            found = json.loads(child.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        sys.stdout.write(
            f"{found['frames']:5} frames of {given.width}x{given.height}, {what}: "
            f"peak {found['peak']:.0f} MB = import {found['baseline']:.0f} + "
            f"{found['peak'] - found['baseline']:.0f} MB, in use {found['in_use']:.0f} MB, "
            f"{found['frames'] / found['seconds']:.1f} frames/s\n"
        )
        sys.stdout.flush()
    for frames, found in zip(args.frames[1:], peaks[1:], strict=True):
        ratio = found / peaks[0]
        verdict = "within" if ratio <= LIMIT else "over"
        sys.stdout.write(f"{frames} over {args.frames[0]}: {ratio:.3f}, {verdict} {LIMIT:.2f}\n")


if __name__ == "__main__":
    main()
