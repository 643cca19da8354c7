"""The training node's inputs, from the node to what was trained."""

import pytest
import torch

from reelbrush.nodes.attnstyle import nodes
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.nodes import AttnStyle

OFF = {
    f"{name}_weight": 0.0 for name in ("global", "patch", "attention", "content", "layout", "tv", "temporal")
}


@pytest.fixture
def trained(judge, pictures):
    """`trained(**inputs)`: the pictures that the node gives back after a short training."""

    def run(**inputs):
        given = {
            "judge": judge,
            "images": pictures(2, 16, 20).permute(0, 2, 3, 1),
            "style_text": "red",
            "source_text": "a photo",
            "epochs": 4,
            "learning_rate": 1e-3,
            **OFF,
            "global_weight": 500.0,
            "patch_scales": "global 1",
            "patches": 4,
            "threshold": 0.0,
            "curriculum": False,
            "perceptual": "none",
            "seed": 0,
            "early_stop": False,
        }
        images, _, _ = AttnStyle().run(**{**given, **inputs})
        return images

    return run


def test_a_graph_without_the_newer_inputs_is_trained_as_it_was(trained):
    """Saved before `confidence_weight` and `other_texts` existed: ComfyUI then hands over neither."""
    old = trained()
    assert torch.equal(old, trained(confidence_weight=0.0, other_texts=""))
    assert not torch.allclose(old, trained(confidence_weight=20000.0), atol=1e-4)


@pytest.mark.parametrize(
    ("fixed", "name", "values"),
    [
        ({}, "confidence_weight", (0.0, 20000.0)),
        ({"confidence_weight": 20000.0}, "other_texts", ("", "blue", "dark")),
        ({}, "temporal_weight", (0.0, 10.0, 1000.0)),
    ],
)
def test_an_input_reaches_the_training(trained, fixed, name, values):
    results = [trained(**fixed, **{name: value}) for value in values]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert not torch.equal(a, b)  # a seed repeats to the bit


def test_the_node_hands_every_input_on(judge, pictures, monkeypatch):
    """Each number and text of the node is told apart from all others where training gets it."""
    got = {}

    def seen(judge, images, style_text, source_text, settings, perceptual):
        got.update(vars(settings), style_text=style_text, source_text=source_text, perceptual=perceptual)
        raise InterruptedError

    monkeypatch.setattr(nodes, "fit", seen)
    names = ("classification", "patches", "attention", "content", "layout", "tv", "temporal", "confidence")
    inputs = ("global", "patch", "attention", "content", "layout", "tv", "temporal", "confidence")
    given = {f"{name}_weight": float(i + 1) for i, name in enumerate(inputs)}
    plain = {"epochs": 11, "learning_rate": 0.05, "patch_scales": "local 2", "patches": 12, "threshold": 0.5}
    rest = {"curriculum": False, "early_stop": False, "seed": 13}
    with pytest.raises(InterruptedError):
        AttnStyle().run(
            **given,
            **plain,
            **rest,
            judge=judge,
            images=pictures(1, 16, 16).permute(0, 2, 3, 1),
            style_text="red",
            source_text="a photo",
            perceptual="eye",
            other_texts="blue\n\n  a green thing \n",
            templates="T",
            content_layers="L",
        )
    assert got.pop("weights") == Weights(**{name: float(i + 1) for i, name in enumerate(names)})
    wanted = {"style_text": "red", "source_text": "a photo", "perceptual": "eye"}
    assert got == {
        **plain,
        **rest,
        **wanted,
        "others": ("blue", "a green thing"),
        "templates": "T",
        "content_layers": "L",
    }
