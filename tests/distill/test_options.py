"""Options beyond algorithm 1: fixed timesteps, noised references, several results, weights of styles."""

from itertools import pairwise

import pytest
import torch

from reelbrush.nodes.distill import nodes, nodes_texture
from reelbrush.nodes.distill.clip import Schedule
from reelbrush.nodes.distill.features import FeatureReader
from reelbrush.nodes.distill.guided import adain
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling
from reelbrush.nodes.distill.seamless import seamless_model

from .small import contents, latents, model, null, references, styles

SCALE = 0.18215


def optimized(of=None, style=None, content=None, steps=2, **more):
    """What the node gives, with its defaults."""
    of, style = of or model(), styles() if style is None else style
    defaults = {
        "width": 96,
        "height": 64,
        "steps": steps,
        "learning_rate": 0.05,
        "content_weight": 0.25,
        "attention_scale": 1.0,
        "layers": "last 6",
        "warm_steps": 0,
        "temporal_weight": 0.0,
        "seed": 3,
        "frames_per_call": 2,
    }
    inputs = {"content": content, "style": style}
    connected = {name: {"samples": z / SCALE} for name, z in inputs.items() if z is not None}
    latent, _ = nodes.ADOptimize().distill(model=of, null=null(of), **connected, **{**defaults, **more})
    return latent["samples"] * SCALE


def timesteps_read(monkeypatch):
    """The timesteps at which features with gradients are read."""
    seen, read = [], FeatureReader.__call__

    def noted(self, z, timestep, names, *, grad=False):
        if grad and z.any():
            seen.append(timestep)
        return read(self, z, timestep, names, grad=grad)

    monkeypatch.setattr(FeatureReader, "__call__", noted)
    return seen


# -- timesteps -------------------------------------------------------------------------------------


def test_defaults_are_algorithm_1(monkeypatch):
    seen = timesteps_read(monkeypatch)
    z = optimized(content=contents(), steps=5)
    assert seen == falling(5)
    with references(model(), styles(), contents()) as refs:
        expected = distill(refs, contents(), falling(5), DistillRecipe())
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fixed_timestep": 261}, [261, 261, 261]),
        ({"iterations": 2}, [668, 668, 334, 334, 1, 1]),
        ({"iterations": 2, "fixed_timestep": 1}, [1] * 6),
    ],
)
def test_timesteps_can_be_fixed_and_have_several_steps(monkeypatch, settings, expected):
    seen = timesteps_read(monkeypatch)
    optimized(steps=3, **settings)
    assert seen == expected


def test_warm_frames_keep_a_fixed_timestep():
    assert Schedule(4, 2, 3, 501).timesteps(True) == [501] * 6
    assert Schedule(4, 3).timesteps(True) == [501, 1, 1]


# -- noised references -----------------------------------------------------------------------------


def test_noised_references_are_read_at_the_timestep_s_level_and_the_latent_is_not_noised():
    style, content = styles(2), contents(2)
    with references(model()) as refs:
        reader = refs.reader
        noised = References(reader, style, content, noise_seed=7)
        abar = float(1 / (1 + reader.base.model_sampling.sigmas[401] ** 2))
        noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(7 * 1000 + 401))
        mixed = [abar**0.5 * z + (1 - abar) ** 0.5 * noise for z in (style, content)]
        by_hand = References(reader, *mixed)
        for ours, theirs in zip(noised.style_at(401), by_hand.style_at(401), strict=True):
            torch.testing.assert_close(ours.k, theirs.k, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(noised.content_at(401, [1]), by_hand.content_at(401, [1]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        args = (contents(2), [401, 401], DistillRecipe(frames_per_call=2))
        torch.testing.assert_close(distill(noised, *args), distill(by_hand, *args), rtol=1e-3, atol=1e-3)


def test_the_node_s_noised_changes_the_result():
    plain, noised = optimized(), optimized(noised=True)
    assert float((plain - noised).abs().mean()) > 1e-3
    assert torch.equal(noised, optimized(noised=True))


# -- several results -------------------------------------------------------------------------------


def test_several_textures_start_from_their_own_noises():
    three, one = optimized(batch_size=3), optimized()
    assert three.shape == (3, 4, 8, 12)
    torch.testing.assert_close(three[:1], one, rtol=1e-4, atol=1e-4)
    assert float((three[0] - three[1]).abs().mean()) > 0.5
    assert float((three[1] - three[2]).abs().mean()) > 0.5


def test_several_results_of_one_content_are_rejected():
    with pytest.raises(ValueError, match="batch_size is 3, which is for textures from noise"):
        optimized(content=contents(), batch_size=3)


# -- several styles --------------------------------------------------------------------------------

TWO = torch.cat([styles(), -styles(), styles() * 0])[:2]


@pytest.mark.parametrize("mix", ["one softmax", "mean"])
def test_a_style_of_weight_0_is_not_there(mix):
    for number, weights in enumerate(("1, 0", "0, 5")):
        both = optimized(style=TWO, style_weights=weights, style_mix=mix)
        torch.testing.assert_close(both, optimized(style=TWO[number : number + 1]), rtol=1e-4, atol=1e-4)


def test_weights_interpolate_between_two_styles():
    """The nearer the weight to a style, the smaller that style's loss, step by step and without a jump."""
    losses = []
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        seen = []
        with references(model(), TWO) as refs:
            refs.weights, refs.blend = (1 - weight, weight), True
            recipe = DistillRecipe(content_weight=0.0)
            z = distill(refs, contents(), falling(12), recipe)
            of_second = References(refs.reader, TWO[1:])
            distill(of_second, z, [401], recipe, report=seen.append)
        losses.append(seen[0].style)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    steps = [a - b for a, b in pairwise(losses)]
    assert max(steps) < 0.7 * (losses[0] - losses[-1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"style_weights": "1"}, "1 weights for 2 style pictures"),
        ({"style_weights": "1, x"}, "are not numbers"),
        ({"style_weights": "-1, 2"}, "must not be negative"),
        ({"style_weights": "nan, 2"}, "must not be negative"),
        (
            {"style_mix": "mean", "style_mask": torch.ones(1, 8, 8), "target_mask": torch.ones(1, 8, 8)},
            "takes no masks",
        ),
    ],
)
def test_wrong_weights_raise_an_error(settings, words):
    with pytest.raises(ValueError, match=words):
        optimized(style=TWO, **settings)


def test_adain_counts_a_style_of_weight_2_twice():
    z, style = latents(2, 5), torch.cat([styles(1, size=(40, 40)), latents(1, 8, size=(40, 40)) * 3 - 1])
    weighted = adain(z, style, (2, 1))
    torch.testing.assert_close(weighted, adain(z, style[[0, 0, 1]]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(adain(z, style, (1, 0)), adain(z, style[:1]), rtol=1e-3, atol=1e-3)
    assert float((weighted - adain(z, style)).abs().mean()) > 0.1


def test_the_sampler_node_passes_weights_and_mix_to_the_guidance(monkeypatch):
    guides = []
    monkeypatch.setattr(nodes, "sampler", lambda guide, seed: guides.append(guide))
    settings = {"iterations": 1, "adain": True, "layers": "last 6", "start_percent": 0.0, "end_percent": 1.0}
    numbers = {"seed": 0, "learning_rate": 0.015, "content_weight": 0.0, "attention_scale": 1.0}
    style = {"samples": TWO}
    nodes.ADSampler().make(style=style, null=[], **settings, **numbers)
    nodes.ADSampler().make(
        style=style, null=[], style_weights="3, 1", style_mix="mean", **settings, **numbers
    )
    assert [(g.style_weights, g.blend) for g in guides] == [([0.5, 0.5], False), ([0.75, 0.25], True)]


# -- a model that tiles ----------------------------------------------------------------------------


def test_a_model_from_seamless_tiling_is_rejected_by_expand_texture():
    of = model()

    def expand(some):
        numbers = {
            "width": 64,
            "height": 64,
            "window": 64,
            "overlap": 0,
            "steps": 1,
            "iterations": 1,
            "seed": 0,
        }
        given = {"null": null(of), "source": {"samples": styles()}, "seamless": "both", "learning_rate": 0.05}
        return nodes_texture.TextureExpand().expand(model=some, **given, **numbers)

    expand(seamless_model(of, "none"))
    with pytest.raises(
        ValueError, match="every window of the canvas would tile by itself: connect the model"
    ):
        expand(seamless_model(of, "x"))
