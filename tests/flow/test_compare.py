"""What Compare Videos gives to its player in the browser."""

import av
import pytest
import torch

from reelbrush.nodes.flow.compare import comparison_player
from reelbrush.nodes.video.lazy_video import LazyVideo

from .scenes import flickering, sliding


@pytest.fixture
def clips():
    steady = sliding(6, 48, 64)[0]
    return {k: LazyVideo.from_frames(v, 12) for k, v in {"a": steady, "b": flickering(steady)}.items()}


def test_files_play_and_have_all_frames(home, clips):
    shown = comparison_player(clips["a"], clips["b"], None, "wipe")
    assert "curves" not in shown and shown["mode"] == "wipe" and shown["fps"] == 12
    for name in "ab":
        file = home / "temp" / shown[name]["filename"]
        with av.open(str(file)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 6
    assert shown["a"] != shown["b"]


def test_same_clip_is_written_once(home, clips):
    first = comparison_player(clips["a"], clips["b"], None, "wipe")
    times = {p: p.stat().st_mtime_ns for p in (home / "temp").iterdir()}
    assert comparison_player(clips["a"], clips["b"], None, "difference")["a"] == first["a"]
    assert {p: p.stat().st_mtime_ns for p in (home / "temp").iterdir()} == times


def test_curves_show_which_clip_flickers(home, clips):
    shown = comparison_player(clips["a"], clips["b"], clips["a"], "wipe")
    steady, flicker = shown["curves"]
    assert len(steady) == len(flicker) == 6 and steady[0] is flicker[0] is None
    assert all(b > 4 * a for a, b in zip(steady[1:], flicker[1:], strict=True))
    assert shown["means"] == pytest.approx([torch.tensor(c[1:]).mean().item() for c in shown["curves"]])
