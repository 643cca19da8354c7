"""Peak memory of the full chain (read, a real per-frame operation, write) for a short and a long clip.

Streaming means that memory does not grow with the clip: the peak of 3,000 frames is to lie within 10% of the
peak of 300, and below what importing the pack takes plus 400 MB. Every run is a process of its own; the
peak is the kernel's (ru_maxrss), so nothing between two samples is missed.

    python benchmarks/streaming_memory.py [--frames 300 3000] [--operation stabilize] [--container mp4]

`soften` is a 9x9 Gaussian blur with a colour curve by torch, on every frame; `stabilize` is the pack's own
node with optical flow, which carries state from frame to frame.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.reel import LazyVideo, Operation, Window, operation

WIDTH, HEIGHT = 640, 360


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


def sample(path: Path, frames: int) -> None:
    """Soft moving waves with grain: neither still nor noise."""
    y, x = torch.meshgrid(torch.arange(float(HEIGHT)), torch.arange(float(WIDTH)), indexing="ij")
    grain = torch.rand(HEIGHT, WIDTH, 1, generator=torch.manual_seed(0)) * 0.05
    loop = []
    for n in range(48):
        waves = [torch.sin(x / 40 + n * 0.2618), torch.sin(y / 30 - n * 0.2618), torch.sin((x + y) / 50)]
        loop.append(codec.from_float((torch.stack(waves, -1) / 2 + 0.5) * 0.9 + torch.roll(grain, 7 * n, 1)))
    info = codec.VideoInfo(WIDTH, HEIGHT, Fraction(24), frames)
    with codec.Writer(path, info, codec="h264", preset="ultrafast") as writer:
        for n in range(frames):
            writer.write(loop[n % 48])


def peak() -> float:
    """This process's peak so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def one(clip: Path, name: str, container: str, folder: Path) -> dict[str, float]:
    """One run in this process."""
    if name == "stabilize":
        from reelbrush.nodes.flow import stabilize  # noqa: F401  (registers its operation)
    baseline = peak()
    source = LazyVideo.of(LazyVideo.from_file(clip))
    if name == "soften":
        video = source.then("benchmark.soften", {}, node="Soften")
    else:
        from reelbrush.nodes.flow.nodes import StabilizeVideo

        (video,) = StabilizeVideo().stabilize(source, source, 0.8, "dis-ultrafast")
    begin = time.perf_counter()
    video.save_to(folder / f"out.{container}", format=container, preset="ultrafast")
    seconds = time.perf_counter() - begin
    count = codec.probe(folder / f"out.{container}", count=True).frame_count
    return {"baseline": baseline, "peak": peak(), "seconds": seconds, "frames": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(300, 3000))
    parser.add_argument("--operation", choices=("soften", "stabilize"), default="soften")
    parser.add_argument("--container", default="mp4", choices=codec.containers())
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        result = one(args.one, args.operation, args.container, args.one.parent)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    peaks = []
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            sample(clip, frames)
            how = ["--one", str(clip), "--operation", args.operation, "--container", args.container]
            child = subprocess.run(
                [sys.executable, __file__, *how], stdout=subprocess.PIPE, text=True, check=True, cwd=folder
            )
            found = json.loads(child.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        sys.stdout.write(
            f"{found['frames']:5} frames of {WIDTH}x{HEIGHT}, {args.operation}, {args.container}: "
            f"peak {found['peak']:.0f} MB = import {found['baseline']:.0f} + "
            f"{found['peak'] - found['baseline']:.0f} MB, {found['frames'] / found['seconds']:.1f} frames/s\n"
        )
    sys.stdout.write(f"long over short: {peaks[1] / peaks[0]:.3f}\n")


if __name__ == "__main__":
    main()
