"""Parity with the official Z* (HolmesShuan/Zero-shot-Style-Transfer-via-Attention-Rearrangement).

Its control class, its attention editor and its sampling loop run on diffusers' UNet, ours on ComfyUI's, with
the same weights: Stable Diffusion 1.5's layout with 32 channels, std 0.7/sqrt(fan-in), norms 1 ± 0.1; queries
and keys are three times that, so that attention has something to choose. Needs a checkout (ZSTAR_PATH).

The official schedule is a bare DDIMScheduler's: 30 steps from t = 957 to 33 and then t = 0, whose step goes
nowhere (both its levels are ᾱ[0]) but for the content pull: what is compared is what that step is given.
"""

import logging
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.inversion.trajectory import Trajectory
from reelbrush.nodes.diffusion.patching.layers import family

from . import tiny, tiny_sampling
from .attention_tools import zstar
from .inversion.test_inversion import official_unet

ZSTAR = os.environ.get("ZSTAR_PATH")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not ZSTAR, reason="needs the official code: set ZSTAR_PATH"),
]
log = logging.getLogger("reelbrush.parity")

STEPS, SIDE, TOLERANCE = 30, 16, 1e-3


@pytest.fixture
def official(monkeypatch):
    monkeypatch.syspath_prepend(ZSTAR)
    from zstar import diffuser_utils, zstar, zstar_utils

    yield SimpleNamespace(
        Pipeline=diffuser_utils.ZstarPipeline,
        Control=zstar.ReweightCrossAttentionControl,
        register=zstar_utils.regiter_attention_editor_diffusers,
    )
    for name in [n for n in sys.modules if n.split(".")[0] == "zstar"]:
        del sys.modules[name]


def peaked(model):
    """Three times larger queries and keys."""
    for name, weight in model.model.diffusion_model.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.mul_(3)
    return model


def schedule():
    from diffusers import DDIMScheduler

    made = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    made.set_timesteps(STEPS)
    return made


def run_official(official, network, scheduler, text, nulls, content, style):
    """The official pipeline's own __call__, text encoder and VAE apart: the latents after every step."""
    after = []

    class Pipeline(official.Pipeline):
        scheduler = tokenizer = text_encoder = unet = None

        def __init__(self):
            pass

        def step(self, *args, **kwargs):
            found = super().step(*args, **kwargs)
            after.append(found[0])
            return found

        def latent2image(self, latents, return_type="np"):
            return latents

    pipeline = Pipeline()
    Pipeline.scheduler, Pipeline.unet = scheduler, network
    ids = SimpleNamespace(input_ids=torch.zeros(2, 77))
    Pipeline.tokenizer = staticmethod(lambda *a, **k: ids)
    Pipeline.text_encoder = staticmethod(lambda ids: [text.repeat(2, 1, 1)])
    network.in_channels = 4
    editor = official.Control(5, 30, layer_idx=[20, 22, 24, 26, 28, 30], total_steps=STEPS)
    official.register(pipeline, editor)
    pipeline(
        ["", ""],
        height=SIDE * 8,
        width=SIDE * 8,
        latents=content[-1].repeat(2, 1, 1, 1),
        guidance_scale=7.5,
        uncond_embeddings=nulls,
        num_inference_steps=STEPS,
        ref_intermediate_latents=[content, style],
    )
    return after


def test_the_official_variant_is_the_official_code(official, capsys):
    model, scheduler = peaked(tiny.comfy_model("sd15")), schedule()
    network = official_unet(model.model.diffusion_model.state_dict())
    abar, times = scheduler.alphas_cumprod, scheduler.timesteps.tolist()
    ascending = ((1 - abar) / abar).sqrt()[torch.tensor(times[::-1])]

    def walk(seed):  # a picture on its way to noise, as the inversions that both sides are given
        g = torch.Generator().manual_seed(seed)
        clean, noise = torch.randn(2, 1, 4, SIDE, SIDE, generator=g)
        return [clean, *(abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise for t in times[::-1])]

    content, style = walk(1), walk(2)
    g = torch.Generator().manual_seed(3)
    text = torch.randn(1, 77, 768, generator=g)
    nulls = [text + 0.3 * torch.randn(1, 77, 768, generator=g) for _ in range(STEPS)]
    with torch.no_grad():
        theirs = run_official(official, network, scheduler, text, nulls, content, style)[-2][1:]

    between = lambda t: 1 - t / 999  # noqa: E731 - a percent that lies between two visited levels
    gap = (times[0] - times[1]) / 2
    negative = [
        [n, {"start_percent": between(t + gap) if i else 0.0, "end_percent": between(t - gap) if t else 1.0}]
        for i, (t, n) in enumerate(zip(times, nulls, strict=True))
    ]
    positive = [[text, {}]]
    made = [
        Trajectory(torch.stack(w[1:]), ascending, positive, "sd1", "next timestep") for w in (content, style)
    ]
    levels = ascending.flip(0)
    start = content[-1] * (1 + levels[0] ** 2).sqrt() / 0.18215

    def ours(model):
        with torch.inference_mode():
            out = host.sample(model, tiny_sampling.euler, start, levels, positive, negative, cfg=7.5)
        return out * 0.18215 / (1 + levels[-1] ** 2).sqrt()

    begin = between((times[4] + times[5]) / 2)
    official_code = {"content": made[0], "content_pull": 0.01, "style_branch_scale": 1.5}
    patched = zstar(model, made[1], start_percent=begin, **official_code)
    mine, off = ours(patched), ours(model)
    error = ((mine - theirs).norm() / theirs.norm()).item()
    moved = ((off - theirs).norm() / theirs.norm()).item()
    alone = ours(zstar(model, made[1], layers="10-15", start_percent=0.191))
    shared = ((alone - theirs).norm() / theirs.norm()).item()
    with capsys.disabled():
        said = "official Z*: relative error %.1e, method on - off %.3f, cached - official %.3f, std %.2f"
        log.warning(said, error, moved, shared, theirs.std())
    assert error < TOLERANCE
    assert moved > 50 * TOLERANCE
    assert theirs.std() > 0.1
    assert family(model) == "sd1"
