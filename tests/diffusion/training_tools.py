"""A style LoRA trained as the node trains one, for tests."""

import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion import lora_train
from reelbrush.nodes.diffusion.lora_train import Recipe

from . import tiny

INSIDE = host.inside_comfyui()
RECIPE = Recipe(rank=4, steps=6, learning_rate=1e-2)


def make(layout="mini", prediction="eps", seed=0):
    with torch.inference_mode():  # weights made as a loader makes them, which is what stands in the way
        return (tiny.comfy_model if INSIDE else tiny.tiny_model)(layout, prediction=prediction, seed=seed)


def pictures(count=1, seed=3, side=8):
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed)) * 4


def text(model, seed=0):
    return tiny.conditioning(model, seed=seed)


def trained(model, style=None, recipe=RECIPE, positive=None, save_as=""):
    """What the node computes, as a node computes."""
    with torch.inference_mode():
        given = (style if style is not None else pictures(), positive or text(model), recipe, save_as)
        return lora_train.train(model, *given)[0]


def same(a, b):
    return a.parts.keys() == b.parts.keys() and all(
        torch.equal(a.parts[k].down, b.parts[k].down) and torch.equal(a.parts[k].up, b.parts[k].up)
        for k in a.parts
    )
