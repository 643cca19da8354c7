"""Layers and blocks by number, expressions that name them, ranges of the sampling."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import (
    attention_layers,
    decoder_blocks,
    family,
    network,
    pick,
    pick_layers,
    sigma_range,
)

from ..attention_tools import BOTH, latents, make
from ..tiny import conditioning

EXPRESSIONS = [
    ("all", 4, [0, 1, 2, 3]),
    ("none", 4, []),
    ("last 6", 16, [10, 11, 12, 13, 14, 15]),
    ("first 2", 16, [0, 1]),
    ("last 99", 3, [0, 1, 2]),
    ("10-15", 16, [10, 11, 12, 13, 14, 15]),
    ("0, 3,5-7", 16, [0, 3, 5, 6, 7]),
    (" 3 ,last 1, 3", 16, [3, 15]),
    ("10–12", 16, [10, 11, 12]),
]


@pytest.mark.parametrize(("expression", "count", "expected"), EXPRESSIONS)
def test_expressions_name_layers(expression, count, expected):
    assert pick(expression, count) == expected


@pytest.mark.parametrize(
    "bad", ["", "10-16", "5-3", "x", "1-2-3", "last", "last x", "-1", "all 3", "1,,2", "1.5"]
)
def test_a_bad_expression_raises_an_error_with_examples(bad):
    with pytest.raises(ValueError, match=r'write "all", "none", "last 6".*layers are 0..15'):
        pick(bad, 16)


@BOTH
@pytest.mark.parametrize(
    ("layout", "name", "count", "blocks"),
    [("sd15", "sd1", 16, 12), ("sd21", "sd2", 16, 12), ("sdxl", "sdxl", 70, 9)],
)
def test_layers_are_numbered_in_execution_order(kind, layout, name, count, blocks):
    model = make(kind, layout)
    every = attention_layers(model)
    assert (family(model), len(every), len(decoder_blocks(model))) == (name, count, blocks)
    seen = []

    def attend(q, k, v, site):
        seen.append((site.layer, q.shape[-1], site.options["n_heads"]))
        return site.inner(q, k, v)

    z, cond = latents(), conditioning(model)
    with host.loaded(model) as base:
        given = host.conditions(base, cond, z)
        options = unet.with_attention({"sigmas": torch.ones(1)}, every, attend)
        host.evaluate(base, z, 1.0, given, options)
    widths = [network(model).get_submodule(layer.path).to_q.weight.shape[0] for layer in every]
    assert seen == [(layer, width, layer.heads) for layer, width in zip(every, widths, strict=True)]


@BOTH
def test_layers_10_to_15_of_sd15_are_output_blocks_6_to_11(kind):
    chosen = pick_layers(make(kind), "10-15")
    assert [layer.address for layer in chosen] == [("output", n, 0) for n in range(6, 12)]
    assert [[layer.number for layer in block.layers] for block in decoder_blocks(make(kind))[:5]] == [
        [],
        [],
        [],
        [7],
        [8],
    ]


def test_another_kind_of_model_raises_an_error():
    with pytest.raises(ValueError, match="not a Stable Diffusion"):
        attention_layers(torch.nn.Linear(2, 2))


@BOTH
def test_ranges_are_comfyuis_percents(kind):
    model = make(kind)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    whole, none = sigma_range(model, 0, 1), sigma_range(model, 0.4, 0.4)
    assert all(s in whole for s in (0.0, 14.6, 1e6)) and none.empty and sigma_range(model, 0.5, 0.2).empty
    middle = sigma_range(model, 0.2, 0.7)
    assert to_sigma(0.2) in middle and to_sigma(0.19) not in middle and to_sigma(0.71) not in middle
