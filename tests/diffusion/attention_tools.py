"""What the attention tests share: both kinds of models, trajectories, counted UNet rows, plain sampling."""

import gc
import os
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.inversion.trajectory import Trajectory
from reelbrush.nodes.diffusion.nodes_style import ReferenceAttention, ZStar
from reelbrush.nodes.diffusion.patching.layers import family, network
from reelbrush.nodes.diffusion.patching.unet import Features
from reelbrush.nodes.diffusion.reference import noised_levels

from . import tiny, tiny_sampling

INSIDE = bool(os.environ.get("COMFYUI_PATH"))
BOTH = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("tiny", marks=pytest.mark.skipif(INSIDE, reason="the real one runs")),
        pytest.param("comfy", marks=pytest.mark.comfyui),
    ],
)
SIZE = (12, 16)  # latents: odd at the coarsest level of SD1.5's layout, not square


@cache
def _made(kind: str, layout: str):
    return (tiny.comfy_model if kind == "comfy" else tiny.tiny_model)(layout)


def make(kind: str, layout: str = "sd15"):
    """A MODEL with random weights: the tests' own, or a real ComfyUI's with the same weights. All tests share
    one base model, as all nodes of a ComfyUI do: whoever leaves something behind in it breaks the others."""
    return _made(kind, layout).clone()


def levels(model, count: int = 3) -> torch.Tensor:
    """Descending noise levels for `count` steps, then 0."""
    table = model.model.model_sampling.sigmas
    places = torch.linspace(900, 100, count).long()
    return torch.cat([table[places], torch.zeros(1)])


def latents(frames: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 4, *size, generator=g)


def trajectory(model, frames: int = 1, seed: int = 10, size: tuple[int, int] = SIZE, sigmas=None):
    """A picture at each level of `levels`, with the text of seed 7."""
    sigmas = levels(model) if sigmas is None else sigmas
    z, ascending = noised_levels(latents(frames, seed, size), sigmas, seed)
    return Trajectory(z, ascending, tiny.conditioning(model, seed=7), family(model), "noised")


def sample(
    model, frames: int = 2, *, cfg: float = 1.0, seed: int = 0, sigmas=None, function=None, latent=None
):
    """Euler from noise, as a sampler node runs it: the result in model space."""
    run = tiny_sampling.sample if isinstance(model, tiny.TinyPatcher) else host.sample
    sigmas = levels(model) if sigmas is None else sigmas
    start = latents(frames, seed) * float(sigmas[0]) if latent is None else latent
    negative = tiny.conditioning(model, seed=2)
    out = run(
        model,
        function or tiny_sampling.euler,
        model.model.process_latent_out(start),
        sigmas,
        tiny.conditioning(model, seed=1),
        negative,
        cfg=cfg,
    )
    return model.model.process_latent_in(out)


FREE = {"start_percent": 0.0, "layers": "10-15"}


def zstar(model, style, **settings):
    """The model with Z*, the node's settings unless others are given."""
    paper = {"style_scale": 1.2, "layers": "10-15", "start_percent": 0.167, "end_percent": 1.0}
    mix = {"mix": "reweight", "add_weight": 0.5}
    return ZStar().patch(model, style, **{**paper, **mix, **settings})[0]


def reference(model, picture, mode="concat", *, keep=0.75, temperature=1.5, layers="last 6", **more):
    """The model with reference attention, in the whole sampling unless a range is given."""
    settings = {"mode": mode, "query_keep": keep, "temperature": temperature, "layers": layers}
    always = {"start_percent": 0.0, "end_percent": 1.0}
    return ReferenceAttention().patch(model, picture, **{**settings, **always, **more})[0]


@contextmanager
def counted(model):
    """A list that gets the row count of every evaluation of the UNet, reading passes too; the count is taken
    where the first block's convolution runs."""
    seen = []
    hook = (
        network(model)
        .input_blocks[0][0]
        .register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    )
    try:
        yield seen
    finally:
        hook.remove()


def fingerprint(model) -> list:
    """Everything about a MODEL's network and patches that a test may want unchanged."""
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    instance = [sorted(vars(m)) for m in model.model.modules()]
    return [weights, instance, str(model.model_options), dict(model.object_patches), str(model.wrappers)]


def same(a: list, b: list) -> bool:
    return a[1:] == b[1:] and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def denoised(model, x, sigma, **more):
    """x0 as a model sees it: one Euler step to 0 ends there."""
    return sample(model, latent=x, sigmas=torch.tensor([float(sigma), 0.0]), **more)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def features_alive() -> list:
    """Everything that a layer computed for a style or a content and that is still in memory."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Features]


def heads(t, count):
    return t.double().unflatten(-1, (count, -1)).transpose(1, 2)


def softmax_of(logits, values):
    return (logits.exp() / logits.exp().sum(-1, keepdim=True)) @ values
