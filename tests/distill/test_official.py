"""Parity with the official loops (xugao97/AttentionDistillation): same weights, same noises, both precisions.

Needs a ComfyUI (COMFYUI_PATH), diffusers, and a checkout of the official code (AD_PATH). The UNet is
Stable Diffusion 1.5's layout with 32 channels; weights have std 0.7/sqrt(fan-in), norms 1 ± 0.1. Every line
also says how far the method moves the latent: a parity where nothing happens would say nothing.
"""

import importlib.util
import logging
import os

import pytest
import torch

from . import official as of
from .official import comfy_model, diffusers_unet, double_stays_double, losses_of, pipeline
from .small import replayed

AD = os.environ.get("AD_PATH")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not AD, reason="needs the official code: set AD_PATH"),
    pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="needs diffusers"),
]

log = logging.getLogger("reelbrush.parity")


@pytest.fixture(scope="module")
def official():
    with of.pipeline_module() as module:
        yield module


def latents(dtype, *shapes):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def pictures(dtype, styles=2):
    """A faint content, strong styles and a text: far enough apart that the method has something to do."""
    content, style, text = latents(dtype, (1, 4, 16, 16), (styles, 4, 16, 16), (1, 77, 768))
    return 0.3 * content, 2 * style + 1.5, text


def report(what, ours, theirs, off):
    """One parity line: the difference, and how far the method moved at all."""
    difference = float((ours - theirs).norm() / theirs.norm())
    moved = float((theirs - off).norm() / theirs.norm())
    log.warning("parity %s: relative difference %.2e, method on - off %.2e", what, difference, moved)
    return difference, moved


def masks(size):
    source, target = torch.zeros(1, size, size), torch.zeros(1, size, size)
    source[:, : size // 2], target[:, :, : size // 2] = 1.0, 1.0
    return source, target


@pytest.mark.parametrize(
    ("masked", "iterations"),
    [(False, 1), (True, 1), (False, 2)],
    ids=["no mask", "masked", "two steps at each timestep"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_optimisation_follows_the_official_loop(official, dtype, masked, iterations):
    from reelbrush.nodes.distill import features
    from reelbrush.nodes.distill.clip import Schedule
    from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill

    model = comfy_model(dtype)
    content, style, text = pictures(dtype, 1 if masked else 2)  # the official mask is for one style picture
    of_style, of_target = masks(128) if masked else (None, None)
    fake = pipeline(official, diffusers_unet(model), {"style": style, "content": content}, {"": text})
    with losses_of(official) as expected, double_stays_double():
        theirs = official.ADPipeline.optimize(
            fake,
            lr=0.05,
            weight=0.25,
            controller=official.utils.Controller((10, 16)),
            style_image="style",
            content_image="content",
            num_inference_steps=20 // iterations,
            iters=iterations,
            source_mask=None if of_style is None else of_style[None].to(dtype),
            target_mask=None if of_target is None else of_target[None].to(dtype),
        ).detach()

    seen, timesteps = [], Schedule(20 // iterations, iterations=iterations).timesteps(False)
    with features.opened(model, [[text, {}]]) as (_, reader):
        references = References(reader, style, content, of_style, of_target)
        ours = distill(references, content, timesteps, DistillRecipe(), report=seen.append)
        bare, unmasked = [], References(reader, style, content)
        distill(unmasked, content, timesteps[:1], DistillRecipe(), report=bare.append)
    losses = torch.tensor([s.style + 0.25 * s.content for s in seen], dtype=torch.float64)
    expected = torch.tensor(expected, dtype=torch.float64)
    worst = float(((losses - expected) / expected).abs().max())
    # What the method does to the loss: the fall over the steps; for masks, masked against unmasked.
    effect = abs(1 - bare[0].style / seen[0].style) if masked else 1 - seen[-1].style / seen[0].style
    name = f"optimise {'masked ' if masked else ''}{dtype}"
    log.warning("parity %s: losses differ by %.2e at most; on - off %.2f", name, worst, effect)
    difference, moved = report(name, ours, theirs.to(ours.dtype), content)
    if dtype == torch.float64:
        assert worst < 1e-4
        assert difference < 1e-4
        assert moved > 50 * 1e-4
    else:
        near = float(((ours - theirs).abs() < 0.01 * theirs.std()).float().mean())
        log.warning("parity %s: %.2f%% of elements within 1%% of the std", name, 100 * near)
        assert worst < 2e-3
        assert near > 0.99
        assert effect > 50 * 2e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_guided_sampling_follows_the_official_loop(official, monkeypatch, dtype):
    """The official `sample` with CFG 1.5, AdaIN and two iterations; its noises are recorded and replayed."""
    from reelbrush.nodes import host
    from reelbrush.nodes.distill.guided import Guide
    from reelbrush.nodes.distill.optimize import DistillRecipe

    model, steps = comfy_model(dtype), 10
    start, style, null = pictures(dtype)
    positive, negative = latents(dtype, (1, 77, 768), (1, 77, 768))
    start = torch.randn(start.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(
        dtype
    )
    noises, g = [], torch.Generator().manual_seed(6)
    draw = lambda like: torch.randn(like.shape, generator=g, dtype=torch.float64).to(like)  # noqa: E731
    monkeypatch.setattr(torch, "randn_like", lambda like: noises.append(draw(like)) or noises[-1])
    fake = pipeline(
        official,
        diffusers_unet(model),
        {"style": style},
        {"a text": positive, "not this": negative, "": null},
    )
    fake.unet.config.sample_size = 16
    fake.encode_prompt = lambda prompt, device, n, cfg, unwanted=None, **_: (
        (null, null) if not cfg else (positive, negative)
    )
    fake.prepare_latents = lambda *_: start.clone()

    def official_sample(iterations):
        with losses_of(official), double_stays_double():
            return official.ADPipeline.sample(
                fake,
                lr=0.015,
                iters=iterations,
                adain=True,
                weight=0.0,
                controller=official.utils.Controller((10, 16)),
                style_image="style",
                start_time=1000,
                prompt="a text",
                negative_prompt="not this",
                num_inference_steps=steps,
                guidance_scale=1.5,
            ).detach()

    off = official_sample(0)
    theirs = official_sample(2)

    scale = model.model.latent_format.scale_factor
    recipe = DistillRecipe(0.015, 0.0)
    guide = Guide(style / scale, [[null, {}]], iterations=2, recipe=recipe, frames_per_call=1)
    sampling = model.model.model_sampling
    times = torch.tensor([*(1 + i * 1000 // steps for i in reversed(range(steps)))], dtype=torch.float32)
    sigmas = torch.cat([sampling.sigma(times), torch.zeros(1)]).to(dtype)
    first = start * (1 + sigmas[0] ** 2) ** 0.5

    def run(denoise, x, levels):
        return guide.sampling(replayed(noises))(denoise, first, levels)

    with torch.inference_mode(), double_stays_double():
        ours = host.sample(
            model, run, torch.zeros_like(start), sigmas, [[positive, {}]], [[negative, {}]], cfg=1.5
        )
    name = f"guided {dtype}"
    difference, moved = report(name, ours.to(dtype) * scale, theirs, off)
    if dtype == torch.float64:
        assert difference < 1e-4
        assert moved > 50 * 1e-4
    else:
        near = float(((ours * scale - theirs).abs() < 0.01 * theirs.std()).float().mean())
        log.warning("parity %s: %.2f%% of elements within 1%% of the std", name, 100 * near)
        assert near > 0.99
        assert moved > 50 * 2e-3
