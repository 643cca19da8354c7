"""Every method runs at the smallest size; one method is drawn by the tool."""

import json

import pytest
import torch

from reelbrush.benchmarks import measures, settings, sheet
from reelbrush.lab import tiny_denoiser, tiny_vae
from reelbrush.nodes import host
from reelbrush.nodes.common import pictures
from reelbrush.tests.diffusion import tiny
from reelbrush.tests.diffusion.lora_tools import random_lora

FAST = {"steps": 2, "refine": 0}
TINY = {
    "attnstyle.clip": {"epochs": 1},
    "attnstyle.picture": {"epochs": 1, "steps": 2, "way": "pixels"},
    "diffusion.inject": {**FAST, "prompt": "auto", "lora": "a"},
    "diffusion.reference": {**FAST, "match": 1.0},
    "diffusion.regions": {**FAST, "loras": "a+a"},
    "diffusion.sample": {"steps": 2, "lora": "a", "cfg": 2.0},
    "diffusion.temporal": {"steps": 2, "per_call": 2},
    "diffusion.zstar": FAST,
    "distill.clip": {"steps": 2, "warm_steps": 1},
    "distill.decoder": {"steps": 1},
    "distill.optimize": {"steps": 1},
    "distill.sampler": {"steps": 1, "iterations": 1, "seamless": True},
    "distill.texture": {"steps": 1},
    "flow.stabilize": {},
    "stya2k.stylize": {},
}
CLIPS = ("attnstyle.clip", "diffusion.regions", "diffusion.temporal", "distill.clip", "flow.stabilize")


def picture(seed, frames=1, side=128):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 5, 5, generator=g)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A denoiser and an autoencoder with random weights, as files, and a LoRA."""
    folder = tmp_path_factory.mktemp("denoiser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_denoiser.CONFIG, "model_channels", 32)
        model = tiny.tiny_model(tiny_denoiser.CONFIG)
        tiny_denoiser.save(model.model.diffusion_model.state_dict(), folder, 1)
    tiny_vae.save({k: v for k, v in tiny_vae.Autoencoder().state_dict().items() if "taesd" in k}, folder)
    return folder, random_lora(model)


def test_every_method_is_tested():
    assert TINY.keys() == settings.documented("methods").keys()
    assert all(settings.documented("methods").values()), "a method needs a docstring for the list"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_method_draws(name, weights, monkeypatch):
    if name == "distill.decoder" and not host.inside_comfyui():
        pytest.skip("needs ComfyUI's VAE")
    method, chosen = settings.function("methods", name), dict(TINY[name])
    if "weights" in settings.defaults(method):
        chosen["weights"] = str(weights[0])
    if {"lora", "loras"} & chosen.keys():
        from reelbrush.benchmarks.methods import diffusion

        monkeypatch.setattr(diffusion, "_lora", lambda path: weights[1])
    frames = 4 if name in CLIPS else 1
    content = picture(0).lerp(picture(1), torch.linspace(0, 0.3, frames)[:, None, None, None])
    with torch.inference_mode():
        made = method(content, picture(2), **chosen)
    out, numbers = made if isinstance(made, tuple) else (made, {})
    assert out.shape[0] == frames and out.shape[3] == 3
    assert out.isfinite().all() and out.std() > 0
    assert all(isinstance(v, float) for v in numbers.values())


@pytest.fixture
def folders(tmp_path):
    for kind, seeds in (("contents", (0, 1)), ("styles", (2, 3))):
        (tmp_path / kind).mkdir()
        for seed in seeds:
            pictures.write(tmp_path / kind / f"{seed}.png", picture(seed)[0])
    return tmp_path


def test_a_sheet_has_a_row_per_pair_and_a_column_per_setting(folders, capsys):
    paths = ["--contents", str(folders / "contents"), "--styles", str(folders / "styles")]
    size = ["--size", "32", "--cell", "32", "--out", str(folders / "sheet.png"), "--table"]
    sheet.main(["stya2k.stylize", "--set", "model=colour", "--vary", "strength=1,0.5", *paths, *size])
    image, _ = pictures.read(folders / "sheet.png")
    row = 32 + 2 * sheet.LINE + 3
    assert image.shape[:2] == (4 * (row + 4) - 4, 4 * (32 + 4) - 4)
    numbers = json.loads((folders / "sheet.json").read_text())
    assert list(numbers) == ["content", "strength=1.0", "strength=0.5"]
    assert len(numbers["content"]) == 4 and numbers["content"][0]["layout"] == 0
    table = capsys.readouterr().out
    assert "| strength=0.5 - strength=1.0 |" in table and "(0 of 2)" in table


def test_a_clip_has_a_row_of_frames_per_setting(folders):
    clip = folders / "clip"
    clip.mkdir()
    for n in range(3):
        pictures.write(clip / f"{n:03}.png", picture(0, side=48)[0].roll(2 * n, 1))
    out = ["--styles", str(folders / "styles"), "--pictures", "1", "--out", str(folders / "clip.png")]
    size = ["--size", "32", "--cell", "32", "--columns", "2"]
    sheet.main(["flow.stabilize", "--set", "flicker=0.1", "--clip", str(clip), *out, *size])
    numbers = json.loads((folders / "clip.json").read_text())
    assert list(numbers) == ["content", "flow.stabilize"]
    assert numbers["flow.stabilize"][0]["flow"] > numbers["content"][0]["flow"]


def test_a_picture_has_no_distance_to_itself():
    content, style = picture(0), picture(1)
    same, other = (measures.distances(None, content, content, x) for x in (content, style))
    assert same["colour"] == same["layout"] == 0 and abs(same["1-SSIM"]) < 1e-5
    assert other["colour"] > 0.01
