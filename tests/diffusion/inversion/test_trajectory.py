"""A trajectory between its levels, in its file, and where it does not belong."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from reelbrush.nodes.diffusion.inversion.trajectory import Trajectory, load, save, timestep

from ..tiny import ModelSampling

SCHEDULE = ModelSampling().sigmas


def trajectory(levels=(0, 40, 400, 900), frames=2):
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(len(levels), frames, 4, 3, 5, generator=g)
    text = torch.randn(1, 77, 768, generator=g)
    extra = {"pooled_output": torch.randn(1, 1280, generator=g), "start_percent": 0.25, "width": 512}
    return Trajectory(latents, SCHEDULE[list(levels)], [[text, extra]], "sd1", "next timestep")


@pytest.mark.parametrize("t", [0, 1, 33, 500, 999])
def test_timestep_undoes_the_model_s_schedule(t):
    assert timestep(float(SCHEDULE[t])) == pytest.approx(t, abs=1e-3)


def test_timestep_continues_beyond_the_schedule():
    assert timestep(0) == -1
    assert timestep(float(SCHEDULE[0]) / 2) == pytest.approx(-0.5, abs=1e-4)
    assert 999 < timestep(20) < timestep(4000) < math.inf


def test_at_a_level_the_level_itself():
    made = trajectory()
    for latents, sigma in zip(made.latents, made.sigmas, strict=True):
        torch.testing.assert_close(made.at(sigma), latents, rtol=0, atol=1e-4)


def test_between_levels_linear_in_timestep():
    made = trajectory()
    quarter = made.at(SCHEDULE[130])  # a quarter of the way from 40 to 400
    torch.testing.assert_close(quarter, made.latents[1].lerp(made.latents[2], 0.25), rtol=0, atol=1e-4)


@given(st.floats(0, 1e9))
def test_latents_at_any_level_are_between_those_of_its_levels(sigma):
    made = trajectory()
    found = made.at(sigma)
    assert found.shape == made.latents.shape[1:]
    assert (found <= made.latents.amax(0) + 1e-5).all() and (found >= made.latents.amin(0) - 1e-5).all()
    if sigma >= SCHEDULE[900] or sigma <= SCHEDULE[0]:
        assert torch.equal(found, made.latents[-1 if sigma >= SCHEDULE[900] else 0])


def test_saved_and_loaded_it_is_the_same(tmp_path):
    made = trajectory()
    save(made, tmp_path / "clip.safetensors")
    back = load(tmp_path / "clip.safetensors")
    assert torch.equal(back.latents, made.latents) and torch.equal(back.sigmas, made.sigmas)
    assert (back.family, back.convention) == ("sd1", "next timestep")
    (text, extra), (text_before, extra_before) = back.conditioning[0], made.conditioning[0]
    assert torch.equal(text, text_before) and extra.keys() == extra_before.keys()
    assert torch.equal(extra["pooled_output"], extra_before["pooled_output"]) and extra["width"] == 512
    assert [p.name for p in tmp_path.iterdir()] == ["clip.safetensors"]


def test_half_precision_is_half_as_large_and_close(tmp_path):
    made = trajectory(levels=range(0, 900, 3), frames=8)
    for name in ("full", "half"):
        save(made, tmp_path / name, half=name == "half")
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size + 3e5
    back = load(tmp_path / "half")
    assert back.latents.dtype == torch.float32
    torch.testing.assert_close(back.latents, made.latents, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_saved_is_left_out(tmp_path, caplog):
    made = trajectory()
    made.conditioning[0][1]["control"] = object()
    save(made, tmp_path / "clip")
    assert "control" not in load(tmp_path / "clip").conditioning[0][1]
    assert "control" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"no safetensors at all", None], ids=["empty", "text", "others' weights"]
)
def test_another_file_raises_an_error(tmp_path, content):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match="not a trajectory"):
        load(path)


def test_another_model_family_raises_an_error():
    with pytest.raises(ValueError, match="made with a sd1 model, this model is sdxl"):
        trajectory().require("sdxl")


@pytest.mark.parametrize("sigmas", [[0.1, 0.5, 0.5, 2.0], [2.0, 0.5, 0.2, 0.1], [0.1, 0.2]])
def test_levels_must_ascend_and_fit(sigmas):
    with pytest.raises(ValueError, match="trajectory"):
        Trajectory(torch.zeros(4, 1, 4, 2, 2), torch.tensor(sigmas), [], "sd1", "noised")
