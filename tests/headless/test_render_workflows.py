"""The shipped workflows that need no checkpoint are rendered, with a small clip in place of the sample."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from reelbrush.__main__ import main
from reelbrush.nodes.common import pictures
from reelbrush.nodes.headless.catalog import local_catalog
from reelbrush.nodes.headless.read import read
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

ROOT = Path(__file__).parents[2]
FRAMES = 4


@pytest.fixture
def clip(home):
    """A moving texture, which flickers in `flicker.mkv`; small style pictures."""
    for name, color in (("swirls", (0.1, 0.3, 0.9)), ("waves", (0.9, 0.6, 0.1))):
        picture = torch.rand(96, 96, 1, generator=torch.Generator().manual_seed(2)) * torch.tensor(color)
        pictures.write(home / "input" / f"reelbrush_style_{name}.png", picture)
    texture = torch.rand(1, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(texture, (96, 144), mode="bicubic").clamp(0, 1)[0]
    frames = torch.stack([texture[:, 8 : 8 + 72, 2 * i : 2 * i + 128] for i in range(FRAMES)])
    frames = frames.permute(0, 2, 3, 1)
    path = home / "clip.mkv"
    LazyVideo.from_frames(frames, 12).save_to(str(path))
    noise = 0.1 * torch.rand(FRAMES, 1, 1, 3, generator=torch.Generator().manual_seed(1))
    LazyVideo.from_frames((0.8 * frames + noise).clamp(0, 1), 12).save_to(str(home / "flicker.mkv"))
    return path


def render(name, *settings, capsys):
    """Runs `reelbrush render`; returns the saved files."""
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    code = main(["render", name, *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return [Path(line) for line in captured.out.splitlines() if line.endswith((".mp4", ".png"))]


def test_the_steps_of_a_stylization(clip, home, capsys):
    files = render("stya2k_video", f"Content.file={clip}", "StyA2K Style.size=128", capsys=capsys)
    (video,) = (file for file in files if file.suffix == ".mp4")
    info = codec.probe(video, count=True)
    assert (info.width, info.height, info.frame_count) == (128, 72, FRAMES)
    stylized, content = (torch.cat(list(LazyVideo.from_file(p).chunks(FRAMES))) for p in (video, clip))
    assert (stylized - content).abs().mean() > 0.05
    plots = [pictures.read(file)[0] for file in files if file.suffix == ".png"]
    assert len(plots) == 2 and all(plot.std() > 0.01 for plot in plots)


def test_several_styles(clip, home, capsys):
    sizes = ("First.size=96", "Second.size=96")
    files = render("stya2k_multi_style", f"Content.file={clip}", *sizes, capsys=capsys)
    sheets = [pictures.read(file)[0] for file in files if file.suffix == ".png"]
    assert len(sheets) == 3 and len(files) == 4
    assert (sheets[0] - sheets[2]).abs().mean() > 0.02  # the two styles differ


def test_the_first_command_of_the_readme(clip, home, capsys):
    """The basic job, in one node."""
    name = re.search(r"^reelbrush render (\S+)$", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    *_, video = render(name, f"Clip.file={clip}", "Stylize Video.stroke_size=96", capsys=capsys)
    stylized, content = (torch.cat(list(LazyVideo.from_file(p).chunks(FRAMES))) for p in (video, clip))
    assert stylized.shape == content.shape and (stylized - content).abs().mean() > 0.05


def test_the_comparison_of_two_clips(clip, home, capsys):
    small = ("Without stabilization.stroke_size=96", "Stabilized.stroke_size=96")
    render("compare_stabilized", f"Clip.file={clip}", *small, capsys=capsys)
    assert len(list((home / "temp").glob("reelbrush_*.mp4"))) == 2


def test_the_flow_error_report(clip, home, capsys):
    flicker = f"Stylized, frame by frame.file={home / 'flicker.mkv'}"
    code = main(["render", "flow_error_report", "--set", f"Content.file={clip}", "--set", flicker])
    shown = capsys.readouterr().out
    assert code == 0
    assert re.search(r"^mean,1,[\d.]+", shown, re.MULTILINE)
    assert codec.probe(home / "output" / "video" / "stabilized_00001_.mp4", count=True).frame_count == FRAMES


@pytest.mark.skipif(not find_spec("stlpips_pytorch"), reason="needs the package stlpips-pytorch")
def test_the_training_runs_with_the_sample_pictures(clip, home, capsys):
    """As it is shipped, but for the number of steps and the size of the pictures."""
    few = [f"Train StyA2K.{setting}" for setting in ("steps=2", "load_size=96", "crop=64")]
    small = (*few, "StyA2K Style.size=96", f"Try it on: clip.file={clip}")
    sheets = render("stya2k_train", *small, capsys=capsys)
    assert all(pictures.read(sheet)[0].std() > 0.01 for sheet in sheets) and len(sheets) == 2
    assert (home / "output" / "stya2k" / "my-style.safetensors").is_file()


def test_every_workflow_that_needs_no_model_file_is_rendered_above(home):
    catalog = local_catalog()
    runs_here = {
        path.stem
        for path in (ROOT / "workflows").glob("*.json")
        if all(catalog(node.class_type) for node in read(path, catalog).nodes.values())
    }
    assert runs_here == {
        "stya2k_video",
        "stya2k_multi_style",
        "flow_error_report",
        "stya2k_train",
        "stylize_video",
        "compare_stabilized",
    }
