"""Judges: prompts, probabilities, and what the two-tower aim asks for."""

import hashlib

import pytest
import torch

from reelbrush.nodes.attnstyle.comfy_judge import wrong_projection
from reelbrush.nodes.attnstyle.diffusion_judge import parse_range
from reelbrush.nodes.attnstyle.folder_judge import check_folder
from reelbrush.nodes.attnstyle.judge import directional
from reelbrush.nodes.attnstyle.prompts import CLIPSTYLER, TEMPLATES, embed, wordings


def test_a_prompt_is_worded_in_every_template():
    rows = wordings("  van \n Gogh {} ")
    assert len(rows) == len(TEMPLATES) == len(set(TEMPLATES))
    assert all("van Gogh {}" in row for row in rows)


def test_clipstylers_templates_are_those_of_clip_for_imagenet():
    rows = wordings("{}", CLIPSTYLER)
    assert len(rows) == len(set(rows)) == 79
    found = hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()
    assert found == "00a733af73d61c0001ce20a02d23a9a9121408352a9eba60baab4f070c2b8e68"  # of its template.py
    with pytest.raises(ValueError, match="templates 'few' are unknown"):
        wordings("cat", "few")


def test_an_empty_prompt_is_refused(judge):
    with pytest.raises(ValueError, match="the text is empty"):
        embed(judge.text, "  ")


def test_probability_is_a_softmax_over_the_texts(judge, pictures):
    x = pictures(2)
    p = judge.probability(x, ["red", "blue", "a photo"])
    image = judge.see(x)[0]
    for i in range(2):
        scores = [10 * float(image[i] @ embed(judge.text, t)) for t in ("red", "blue", "a photo")]
        torch.testing.assert_close(p[i], torch.tensor(scores).softmax(0))
    reddish = x.clone()
    reddish[:, 0], reddish[:, 1:] = 0.9, 0.1
    assert judge.probability(reddish, ["red", "blue", "a photo"])[:, 0].min() > 0.95


def test_the_direction_counts_and_its_length_does_not():
    cont, way = torch.tensor([[1.0, 0, 0]]), torch.tensor([0.0, 1, 0])
    far, near, back = (cont + torch.tensor([[0.0, d, 0]]) for d in (3.0, 0.3, -3.0))
    assert directional(far, cont, way).item() == pytest.approx(0, abs=1e-4)
    assert directional(near, cont, way).item() == pytest.approx(0, abs=1e-3)
    assert directional(back, cont, way).item() == pytest.approx(2, abs=1e-4)


def test_texts_that_mean_the_same_are_refused(judge, pictures):
    with pytest.raises(ValueError, match="cannot tell"):
        judge.aim("red", "red", pictures(1))


def test_pictures_of_any_shape_are_squashed(judge, pictures):
    assert judge.see(pictures(2, 20, 90))[0].shape == (2, 4)
    tokens = judge.see(pictures(2, 20, 90))[1]
    assert tokens.shape == (2, 16, 4)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 16))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.eye(8), "identity"),
        (torch.zeros(8, 6), "zeros"),
        (torch.full((4, 4), float("nan")), "uninitialized"),
        (torch.full((4, 4), 1e9), "uninitialized"),
        (torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 0.02, ""),
    ],
)
def test_a_projection_that_nobody_trained_is_recognised(weight, said):
    assert said in wrong_projection(weight)
    assert bool(said) == bool(wrong_projection(weight))


def test_timesteps_are_a_range_of_shares():
    assert parse_range("0.2-0.6") == (0.2, 0.6)
    assert parse_range("0.4") == (0.4, 0.4)
    for text in ("", "a-b", "0.6-0.2", "-1", "0.2-1.5"):
        with pytest.raises(ValueError, match="timesteps is"):
            parse_range(text)


def test_folders_that_hold_no_clip_are_named(tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"'some' has no config.json"):
        check_folder(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert'"):
        check_folder(folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        check_folder(folder)
