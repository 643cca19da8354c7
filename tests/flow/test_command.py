"""`reelbrush flow-error`."""

import json
from fractions import Fraction

import pytest

from reelbrush.__main__ import main
from reelbrush.nodes.flow import store
from reelbrush.nodes.video.lazy_video import LazyVideo

from .scenes import flickering, sliding


@pytest.fixture
def clips(tmp_path, home):
    content, flow = sliding(5, 64, 96, 2, 0)
    for name, frames in (("content", content), ("stylized", flickering(content, 0.1))):
        LazyVideo.from_frames(frames, Fraction(10)).save_to(str(tmp_path / f"{name}.mkv"), crf=8)
    store.save(flow, tmp_path / "exact.flow.safetensors")
    return tmp_path


def test_the_error_as_text_and_files(clips, capsys):
    stylized, content = str(clips / "stylized.mkv"), str(clips / "content.mkv")
    table, plot, heat = (str(clips / name) for name in ("t.csv", "p.png", "h.png"))
    files = ["--table", table, "--plot", plot, "--heatmap", heat]
    code = main(["flow-error", stylized, "--content", content, "--norm", "l1", "--range", "0-1", *files])
    said = capsys.readouterr().out
    assert code == 0 and "norm: l1" in said and "5 frames, 4 of 4 pairs counted" in said
    error = float(said.split()[2])
    assert 0.02 < error < 0.3
    assert f"mean,1,{error:.6g}" in (clips / "t.csv").read_text()
    assert all((clips / name).read_bytes().startswith(b"\x89PNG") for name in ("p.png", "h.png"))


def test_with_a_flow_file_and_as_json(clips, capsys):
    flow = str(clips / "exact.flow.safetensors")
    assert main(["flow-error", str(clips / "stylized.mkv"), "--flow", flow, "--json"]) == 0
    loud = json.loads(capsys.readouterr().out)
    assert main(["flow-error", str(clips / "content.mkv"), "--flow", flow, "--json"]) == 0
    calm = json.loads(capsys.readouterr().out)
    assert loud["flow"] == "exact" and len(loud["pairs"]) == 4
    assert calm["error"] < 20 < loud["error"]


def test_a_missing_file_is_one_sentence(clips, capsys):
    assert main(["flow-error", "none.mp4", "--content", str(clips / "content.mkv")]) == 1
    said = capsys.readouterr().err
    assert "none.mp4" in said and said.count("\n") == 1
