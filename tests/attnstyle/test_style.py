"""Trained styles: files, batches, and the clip operation."""

from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from reelbrush.nodes.attnstyle import style
from reelbrush.nodes.attnstyle.network import AttnStyleNet
from reelbrush.nodes.attnstyle.nodes import LoadAttnStyle
from reelbrush.nodes.attnstyle.style import TextStyle, apply, load, save
from reelbrush.nodes.video.lazy_video import LazyVideo


@pytest.fixture
def trained():
    torch.manual_seed(0)
    net = AttnStyleNet()
    torch.nn.init.normal_(net.leave.weight, std=0.2)
    return TextStyle.of(net, style_text="red", source_text="a photo", size=[16, 16])


def frames(n=5, h=21, w=33, channels=3):
    return torch.rand(n, h, w, channels, generator=torch.Generator().manual_seed(1))


def test_a_saved_style_comes_back_whole(trained, tmp_path):
    path = save(trained, tmp_path / "a.safetensors")
    again = load(path)
    assert again.about == trained.about
    assert all(torch.equal(trained.tensors[k], again.tensors[k]) for k in trained.tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_files_are_refused_in_words(trained, tmp_path):
    other, broken, wrong = (tmp_path / f"{n}.safetensors" for n in ("other", "broken", "wrong"))
    save_file({"a": torch.zeros(1)}, other)
    broken.write_bytes(b"no weights")
    save(TextStyle(trained.tensors, {**trained.about, "widths": [8, 16, 24]}), wrong)
    for path in (other, broken, wrong):
        with pytest.raises(ValueError, match="is damaged or not an AttnStyle model") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_loader_runs_again_when_the_file_changes(trained, home):
    path = home / "models" / "attnstyle" / "a.safetensors"
    path.parent.mkdir()
    assert "was not found" in LoadAttnStyle.IS_CHANGED("a.safetensors")
    save(trained, path)
    before = LoadAttnStyle.IS_CHANGED("a.safetensors")
    assert LoadAttnStyle.IS_CHANGED("a.safetensors") == before
    path.write_bytes(path.read_bytes() + b"x")
    assert LoadAttnStyle.IS_CHANGED("a.safetensors") != before


def test_strength_runs_from_the_input_to_the_style(trained):
    x = frames()
    off, half, full = (apply(trained, x, s) for s in (0.0, 0.5, 1.0))
    assert torch.equal(off, x)
    torch.testing.assert_close(half, (x + full) / 2)
    assert not torch.allclose(full, x, atol=0.01)


def test_alpha_stays_as_it_is(trained):
    x = frames(channels=4)
    out = apply(trained, x)
    assert torch.equal(out[..., 3], x[..., 3])
    torch.testing.assert_close(out[..., :3], apply(trained, x[..., :3]))


@pytest.mark.parametrize(("free", "frames"), [(10, 1), (1e9, 16), (2.1 * 3 * 1500 * 100 * 100, 3)])
def test_frames_per_call_follow_free_memory(monkeypatch, free, frames):
    monkeypatch.setattr(style.host, "free_memory", lambda: free)
    assert style.batch(100, 100) == frames


def test_a_clip_is_its_frames_whatever_the_chunk(trained):
    x = (frames(7) * 255).round() / 255
    clip = LazyVideo.from_frames(x, Fraction(12))
    out = clip.then(style.ApplyTextStyle, trained.tensors, trained.about, 1.0)
    expected = apply(trained, x)
    for size in (3, 16):
        got = torch.cat(list(out.chunks(size)))
        torch.testing.assert_close(got, expected, atol=1 / 255, rtol=0)  # a clip's frames may be 8-bit
