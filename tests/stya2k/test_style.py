"""Styles: pictures with weights, mixes, and how often a style is encoded."""

import pytest
import torch

from reelbrush.nodes.stya2k.style import Model, load_model, make_style, mix_styles
from reelbrush.nodes.stya2k.stylize import Options, stylize, stylize_video
from reelbrush.nodes.video.lazy_video import LazyVideo


@torch.inference_mode()
def test_a_style_that_another_model_encoded_is_encoded_again(small_file, frames):
    """Same file, other precision: the nodes let these mix, so the codes must not."""
    clip, (single, half) = frames(1, 40, 40), (load_model(small_file, p) for p in ("float32", "bfloat16"))
    b = make_style(half, frames(1, 50, 50, 2), size=64)
    stylize(b, clip, Options())
    mixed = stylize(mix_styles(make_style(single, frames(1, 50, 50, 1), size=64), b, 1.0), clip, Options())
    want = stylize(make_style(single, frames(1, 50, 50, 2), size=64), clip, Options())
    torch.testing.assert_close(mixed, want)


def test_mixing_with_nothing_is_off(style, other):
    assert mix_styles(style, other, 0) is style


@torch.inference_mode()
def test_the_ends_of_a_mix_are_its_styles(style, other, frames):
    clip = frames(1, 33, 47)
    torch.testing.assert_close(
        stylize(mix_styles(style, other, 1.0), clip, Options()),
        stylize(other, clip, Options()),
        rtol=0,
        atol=1e-5,
    )
    half = mix_styles(style, other, 0.5)
    torch.testing.assert_close(
        stylize(half, clip, Options()),
        stylize(mix_styles(other, style, 0.5), clip, Options()),
        rtol=0,
        atol=1e-5,
    )


@torch.inference_mode()
def test_weights_choose_among_style_pictures(model, frames):
    pictures, clip = frames(2, 50, 50, 3), frames(1, 40, 40)
    first = stylize(make_style(model, pictures[:1], size=64), clip, Options())
    torch.testing.assert_close(stylize(make_style(model, pictures, "2, 0", 64), clip, Options()), first)
    assert [p.weight for p in make_style(model, pictures, "1, 3", 64).parts] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("weights", "words"),
    [("1", "1 weights for 2"), ("a, b", "not numbers"), ("-1, 2", "negative"), ("0, 0", "not all be 0")],
)
def test_wrong_weights_get_one_sentence(model, frames, weights, words):
    with pytest.raises(ValueError, match=words):
        make_style(model, frames(2, 50, 50), weights)


def test_styles_of_different_models_do_not_mix(style, frames, paper, tmp_path):
    with pytest.raises(ValueError, match="different models"):
        mix_styles(style, make_style(Model(paper, tmp_path / "x"), frames(1, 64, 64)), 0.5)


@torch.inference_mode()
def test_a_style_is_encoded_once(style, frames, monkeypatch):
    calls, network = [], style.model.network
    encode = network.encode_style
    monkeypatch.setattr(network, "encode_style", lambda p: calls.append(1) or encode(p), raising=False)
    for _ in range(2):
        stylize(style, frames(3, 32, 32), Options(), chunk=1)
    assert len(calls) == 1


def test_a_style_is_encoded_once_for_all_runs_of_all_clips(small_file, frames, monkeypatch):
    model, calls = load_model(small_file), []
    encode = model.network.encode_style

    def counted(planes):
        calls.append(planes.shape)
        return encode(planes)

    monkeypatch.setattr(model.network, "encode_style", counted, raising=False)
    picture = frames(1, 60, 44, 1)
    for clip in (frames(3, 33, 40), frames(2, 40, 33)):
        for _ in range(2):  # a node that runs again makes the same style again
            video = stylize_video(
                make_style(model, picture, size=64), LazyVideo.from_frames(clip, 12), Options()
            )
            video.get_components()
    assert len(calls) == 1
    stylize_video(make_style(model, picture * 0.5, size=64), video, Options()).get_components()
    assert len(calls) == 2
