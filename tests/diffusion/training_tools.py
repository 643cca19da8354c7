"""A style LoRA trained as the node trains one, for tests."""

from contextlib import contextmanager

import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora import train as lora_train
from reelbrush.nodes.diffusion.lora.train import LoRARecipe, LoRATraining, with_branches

from . import tiny

INSIDE = host.inside_comfyui()
RECIPE = LoRARecipe(rank=4, steps=6, learning_rate=1e-2)


def make(layout="mini", prediction="eps", seed=0):
    with torch.inference_mode():  # as a loader makes weights: autograd cannot use them
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


@contextmanager
def training_of(model, style, positive=None, recipe=RECIPE):
    """A training with its model loaded and gradients on."""
    with host.gradients():
        training = LoRATraining(model, style, positive or text(model), recipe)
        with host.loaded(training.model):
            yield training


def held_out_loss(model, branches, style, recipe, draws):
    """The mean loss of some draws of a recipe with branches beside the projections."""
    with training_of(with_branches(model, branches), style, recipe=recipe) as training, torch.no_grad():
        return sum(float(training.loss(*training.draw(k)).loss) for k in range(draws)) / draws


def same(a, b):
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(a.weights[k].down, b.weights[k].down) and torch.equal(a.weights[k].up, b.weights[k].up)
        for k in a.weights
    )
