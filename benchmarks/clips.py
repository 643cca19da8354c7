"""Clips for the benchmarks, and the runs that they go through."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from reelbrush.nodes.attnstyle.network import AttnStyleNet
from reelbrush.nodes.attnstyle.style import ApplyTextStyle, TextStyle
from reelbrush.nodes.flow.nodes import StabilizeVideo
from reelbrush.nodes.headless import run
from reelbrush.nodes.headless.catalog import local_catalog
from reelbrush.nodes.headless.read import read
from reelbrush.nodes.stya2k import library
from reelbrush.nodes.stya2k.style import Style, StylePart, load_model
from reelbrush.nodes.stya2k.stylize import Options, stylize_video
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.operation import Operation, Worker

LOOP = 48  # frames after which the test clip repeats


class Soften(Operation, name="benchmark.soften"):
    """A Gaussian blur of 9 x 9 pixels and a curve: arithmetic on every pixel, without state."""

    source: Operation

    def start(self) -> Worker:
        bell = torch.exp(-(torch.linspace(-2, 2, 9) ** 2))
        bell = (bell / bell.sum()).repeat(3, 1)

        def soften(frame: Tensor) -> Tensor:
            x = pad(frame.movedim(-1, 0)[None], (4, 4, 4, 4), mode="reflect")
            x = conv2d(conv2d(x, bell[:, None, None], groups=3), bell[:, None, :, None], groups=3)
            return (x * x * (3 - 2 * x))[0].movedim(0, -1)

        return Worker(lambda frames: torch.stack([soften(frame) for frame in frames]))


def chain_of(name: str, source: LazyVideo) -> LazyVideo:
    """A clip through one operation of the pack."""
    picture = torch.rand(1, 256, 256, 3, generator=torch.manual_seed(0))
    if name == "copy":
        return source
    if name == "soften":
        return source.then(Soften, node="Soften")
    if name == "stabilize":
        return StabilizeVideo().stabilize(source, source, 0.8, "dis-ultrafast")[0]
    if name == "attnstyle":
        style = TextStyle.of(AttnStyleNet())
        return source.then(ApplyTextStyle, style.tensors, style.about, 1.0, node="AttnStyle")
    style = Style(load_model(library.path(library.embedded()[0])), (StylePart(picture),))
    return stylize_video(style, source, Options())


def write_clip(path: Path, frames: int, size: str) -> Path:
    """Moving waves with grain: neither still nor noise."""
    width, height = map(int, size.split("x"))
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    grain = torch.rand(height, width, 1, generator=torch.manual_seed(0)) * 0.05
    loop = []
    for n in range(min(LOOP, frames)):
        parts = [torch.sin(x / 40 + n * 0.2618), torch.sin(y / 30 - n * 0.2618), torch.sin((x + y) / 50)]
        loop.append(codec.from_float((torch.stack(parts, -1) / 2 + 0.5) * 0.9 + torch.roll(grain, 7 * n, 1)))
    info = codec.VideoInfo(width, height, Fraction(24), frames)
    with codec.Writer(path, info, codec="h264", preset="ultrafast") as writer:
        for n in range(frames):
            writer.write(loop[n % LOOP])
    return path


@contextmanager
def empty_home() -> Iterator[Path]:
    """A home folder of its own for one run, so that no run finds frames in the cache."""
    with TemporaryDirectory() as folder:
        before, os.environ["REELBRUSH_HOME"] = os.environ.get("REELBRUSH_HOME"), folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("REELBRUSH_HOME")
            if before is not None:
                os.environ["REELBRUSH_HOME"] = before


def saved(name: str, clip: Path, container: str = "mp4", **options: Any) -> dict[str, int]:
    """One operation on a clip file, saved to a file."""
    with empty_home() as home:
        out = home / f"out.{container}"
        chain_of(name, LazyVideo.from_file(clip)).save_to(out, format=container, **options)
        return {"frames": codec.probe(out, count=True).frame_count}


def rendered(graph: str, clip: Path) -> dict[str, int]:
    """A whole workflow (a shipped one's name, or a file) with the clip in its Load Video."""
    with empty_home():
        nodes = read(graph, local_catalog()).nodes.values()
        loaders = [node.id for node in nodes if node.class_type == "LoadVideo"]
        files = run.render(graph, [f"{node}.file={clip}" for node in loaders])
        videos = [file for file in files if file.suffix in (".mp4", ".mkv", ".webm", ".mov")]
        return {"frames": codec.probe(videos[0], count=True).frame_count}


def on_clip(size: str, frames: int, call: Callable[[Path], dict], clip: str = "") -> Callable:
    """A variant that runs on a clip file: the given one, or one that is written first."""

    def prepare() -> Callable[[], dict]:
        folder = TemporaryDirectory()
        path = Path(clip) if clip else write_clip(Path(folder.name) / "clip.mp4", frames, size)
        return lambda folder=folder: call(path)

    return prepare
