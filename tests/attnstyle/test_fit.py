"""Training as the node does it: previews, cancelling, the plot, and the embedded perceptual network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.attnstyle import fit as fitting
from reelbrush.nodes.attnstyle import perceptual, style
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.fit import fit
from reelbrush.nodes.attnstyle.losses import ContentLoss
from reelbrush.nodes.attnstyle.train import Settings
from reelbrush.nodes.stya2k import checkpoint

SETTINGS = Settings(epochs=4, patches=4, threshold=0.0, early_stop=False, weights=Weights(content=0.0))


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar was told."""
    told = []
    plain = host.Progress.at

    def at(self, done, preview=None):
        told.append((done, self.total, preview))
        plain(self, done, preview)

    monkeypatch.setattr(host.Progress, "at", at)
    return told


def test_every_epoch_is_shown_as_a_picture(judge, pictures, shown):
    images = pictures(1, 16, 20).permute(0, 2, 3, 1)
    with torch.inference_mode():
        trained, plot = fit(judge, images, "red", "a photo", SETTINGS, perceptual.NONE)
    assert [(done, total) for done, total, _ in shown] == [(e, 4) for e in range(1, 5)]
    assert all(p.shape == (16, 20, 3) for *_, p in shown)
    torch.testing.assert_close(shown[0][2], images[0])  # training starts at the picture
    assert not torch.equal(shown[3][2], shown[0][2])
    assert trained.about["style_text"] == "red" and plot.shape[-1] == 3


def test_a_cancelled_training_ends_at_once_and_lets_go_of_the_judge(judge, pictures, monkeypatch):
    class CancelledError(Exception):
        pass

    held, epochs = [], []
    ready = judge.ready

    class Ready:
        def __enter__(self):
            held.append("taken")
            return ready().__enter__()

        def __exit__(self, *_):
            held.append("let go")

    def cancel(self, done, preview=None):
        self.done = done
        epochs.append(done)
        if done == 2:
            raise CancelledError

    monkeypatch.setattr(judge, "ready", Ready)
    monkeypatch.setattr(host.Progress, "at", cancel)
    with pytest.raises(CancelledError):
        fit(judge, pictures(1, 16, 16).permute(0, 2, 3, 1), "red", "a photo", SETTINGS, perceptual.NONE)
    assert epochs == [1, 2]
    assert held == ["taken", "let go"]


def test_too_little_memory_is_said_in_one_sentence(judge, pictures, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory\nand a long story")

    monkeypatch.setattr(fitting, "train", full)
    with pytest.raises(RuntimeError, match="2 pictures of 20x16 and 4 patches do not fit") as caught:
        fit(judge, pictures(2, 16, 20).permute(0, 2, 3, 1), "red", "a photo", SETTINGS, perceptual.NONE)
    assert "\n" not in str(caught.value)


def test_the_embedded_network_looks_through_the_shipped_encoder(pictures):
    eye = perceptual.load(perceptual.EMBEDDED)
    x, y = pictures(1, 48, 40), pictures(1, 48, 40, seed=7)
    file = next((Path(checkpoint.__file__).parent / "weights").glob("*.safetensors"))
    maps = checkpoint.load(file).encode(torch.cat([x, y])).maps
    expected = sum(float((m[1] - m[0]).square().mean() / m[0].square().mean()) for m in maps[-2:])
    assert ContentLoss(eye, x)(y, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05  # the two pictures differ to it


def test_a_training_with_the_embedded_network_stays_closer_to_the_content(judge, pictures):
    images = pictures(1, 32, 32).permute(0, 2, 3, 1)
    x = images.permute(0, 3, 1, 2)

    def distance(weight):
        settings = Settings(epochs=30, patches=4, threshold=0.0, weights=Weights(content=weight))
        trained, _ = fit(judge, images, "red", "a photo", settings, perceptual.EMBEDDED)
        with torch.no_grad():
            return ContentLoss(perceptual.load(perceptual.EMBEDDED), x)(
                trained.network()(x), torch.tensor([0])
            )

    assert distance(1e5) < 0.3 * distance(1e-3)


def test_a_saved_style_says_what_it_was_told_apart_from(judge, pictures, tmp_path):
    images = pictures(1, 16, 20).permute(0, 2, 3, 1)
    trained, _ = fit(judge, images, "red", "a photo", replace(SETTINGS, others=("blue",)), perceptual.NONE)
    again = style.load(style.save(trained, tmp_path / "red.safetensors"))
    assert again.about["other_texts"] == ["blue"] and again.about["style_text"] == "red"
