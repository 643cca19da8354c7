"""The trainings of lab/ run for a moment and write files that their loaders read."""

import sys

import pytest
import torch

from reelbrush.lab import (
    attnstyle_ablation,
    attnstyle_judge,
    help_pictures,
    lora_style,
    made_styles,
    tiny_denoiser,
)
from reelbrush.nodes.common import pictures


@pytest.fixture
def folder(tmp_path):
    """Two small pictures of each kind, in the layout of the data folder."""
    for number, kind in enumerate(("content", "style")):
        (tmp_path / kind).mkdir()
        for n in range(2):
            g = torch.Generator().manual_seed(10 * number + n)
            pictures.write(tmp_path / kind / f"{n}.jpg", torch.rand(256, 288, 3, generator=g))
    return tmp_path


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.mark.slow
def test_a_judge_is_trained_and_read(folder, monkeypatch):
    out = folder / "judge.safetensors"
    run(attnstyle_judge, monkeypatch, "--pictures", folder / "content", "--out", out, "--steps", 2)
    scores = attnstyle_judge.WordJudge(out).words(torch.rand(2, 3, 48, 64))
    assert scores.shape == (2, len(attnstyle_judge.WORDS))
    assert torch.allclose(scores.sum(1), torch.ones(2))


@pytest.mark.slow
def test_an_ablation_has_a_line_and_a_picture_for_each_loss(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "attnstyle_ablation")
    settings = ("--judge", "unused", "--styles", "striped", "--side", 16, "--epochs", 1)
    arguments = (*settings, "--keep", tmp_path / "keep")
    out = ("--out", tmp_path / "sheet.jpg")
    run(attnstyle_ablation, monkeypatch, *arguments, *out)
    lines = caplog.text.strip().split("\n")
    for name, line in zip(attnstyle_ablation.NAMES, lines[1:], strict=True):
        assert f"without {name}:" in line
    assert len(list((tmp_path / "keep").iterdir())) == 2 * (1 + len(attnstyle_ablation.NAMES))
    assert pictures.read(tmp_path / "sheet.jpg")[0].shape[1] == help_pictures.WIDTH
    written = (tmp_path / "sheet.jpg").stat().st_mtime_ns
    run(attnstyle_ablation, monkeypatch, *arguments)  # from what it has kept
    assert caplog.text.strip().split("\n")[len(lines) :] == lines
    assert (tmp_path / "sheet.jpg").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_denoiser_is_trained_and_gets_style_loras(folder, data, monkeypatch, home, capsys):
    name = "squeezenet_v1_0.fp16.safetensors"
    (folder / name).symlink_to(data / name)
    monkeypatch.setitem(tiny_denoiser.CONFIG, "model_channels", 32)
    monkeypatch.setattr(tiny_denoiser, "SIDES", (256,))
    monkeypatch.setattr(tiny_denoiser, "crop_size", lambda step, batch: (32, batch))
    out = ("--data", folder, "--out", folder / "denoiser", "--vae-batch", 1, "--batch", 1)
    run(tiny_denoiser, monkeypatch, *out, "--vae-minutes", 1e-3, "--minutes", 1e-3, "--device", "cpu")
    model, vae = tiny_denoiser.load(folder / "denoiser"), tiny_denoiser.load_vae(folder / "denoiser")
    assert all(p.isfinite().all() for p in model.model.diffusion_model.parameters())
    assert vae.decode(vae.encode(torch.rand(1, 64, 48, 3))).shape == (1, 64, 48, 3)

    monkeypatch.setenv("REELBRUSH_HOME", str(home))  # restored after lora_style has set it
    given = ("--weights", folder / "denoiser", "--data", folder, "--out", home, "--styles", "0.jpg", "1.jpg")
    run(lora_style, monkeypatch, "train", *given, "--size", 128, "--steps", 1, "--rank", 2)
    run(lora_style, monkeypatch, "table", *given, "--size", 128, "--draws", 2)
    table = capsys.readouterr().out
    assert "on 0: its LoRA is" in table and "none" in table


def test_made_styles_are_pictures(data):
    for name in made_styles.MADE:
        made = made_styles.style_picture(data, name, 64)
        assert made.shape == (1, 64, 64, 3) and made.std() > 0.1
