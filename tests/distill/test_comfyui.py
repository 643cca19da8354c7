"""Distillation inside a real ComfyUI: its samplers before and after, cancelling, inference mode."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.distill import nodes, run
from reelbrush.nodes.distill.clip import Schedule
from reelbrush.nodes.distill.optimize import DistillRecipe

from ..diffusion.tiny import comfy_model, conditioning
from .small import SMALL, contents, latents, null, styles

pytestmark = pytest.mark.comfyui
SCALE = 0.18215


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():  # as a loader node leaves it
        made = comfy_model(SMALL)
        for p in made.model.diffusion_model.parameters():
            p.data = p.data.clone()
    return made


def latent(z):
    return {"samples": z / SCALE}


def sampled(model, sampler=None, cfg=3.0):
    """Core's euler, or a SAMPLER, over four steps."""
    import comfy.sample
    import comfy.samplers

    texts = [conditioning(model, seed=s, tokens=4) for s in (1, 2)]
    sigmas = model.model.model_sampling.sigmas[[900, 600, 300, 1]]
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    sampler = sampler or comfy.samplers.sampler_object("euler")
    noise = latents(2, 9)
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, *texts, torch.zeros_like(noise), disable_pbar=True, seed=1
        )


def distilled(model, steps=3, **more):
    with torch.inference_mode():
        return run.optimized(
            model,
            null(model),
            latent(styles()),
            DistillRecipe(frames_per_call=2),
            content=latent(contents(2)),
            schedule=Schedule(steps),
            **more,
        )


def guide(model, **more):
    given = {
        "style": latent(styles()),
        "null": null(model),
        "iterations": 2,
        "learning_rate": 0.015,
        "adain": True,
        "content_weight": 0.0,
        "layers": "last 6",
        "attention_scale": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "seed": 0,
        "frames_per_call": 1,
    }
    with torch.inference_mode():
        return nodes.ADSampler().make(**{**given, **more})[0]


def test_core_sampling_is_bit_equal_before_and_after(model):
    before = sampled(model)
    distilled(model)
    guided = sampled(model, guide(model))
    assert torch.equal(sampled(model), before)
    assert guided.isfinite().all()
    assert float((guided - before).abs().mean()) > 0.1 * float(before.std())


def test_no_iterations_is_core_euler_bit_for_bit(model):
    assert torch.equal(sampled(model, guide(model, iterations=0)), sampled(model))


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "uni_pc", "euler_ancestral", "dpmpp_3m_sde"])
def test_core_samplers_inside_the_guided_loop(model, name):
    import comfy.samplers

    inner = comfy.samplers.sampler_object(name)
    plain = sampled(model, inner)
    assert torch.equal(sampled(model, guide(model, iterations=0, sampler=inner)), plain)
    guided, euler = sampled(model, guide(model, sampler=inner)), sampled(model, guide(model))
    assert guided.isfinite().all()
    assert float((guided - plain).abs().mean()) > 0.1 * float(plain.std())
    assert not torch.allclose(guided, euler, atol=1e-3) or name in ("dpmpp_2m", "uni_pc")  # first order alone


def test_weight_patches_stay_in_use_in_a_guided_sampling(model):
    """The sampler loads a differentiable clone: with learning rate 0 it must still be Euler's result."""
    patched, weights = model.clone(), model.model.state_dict()
    keys = [key for key in weights if key.endswith("attn1.to_v.weight")]
    patched.add_patches({key: ("diff", (torch.full_like(weights[key], 0.2),)) for key in keys})
    still = {"learning_rate": 0.0, "adain": False, "end_percent": 0.5}
    plain, unpatched = sampled(patched), sampled(model)
    guided = sampled(patched, guide(patched, **still))
    torch.testing.assert_close(guided, plain, rtol=1e-3, atol=1e-4)
    assert (plain - unpatched).abs().max() > 0.05
    assert torch.equal(sampled(model), unpatched)


def test_queued_twice_gives_the_same(model):
    assert torch.equal(sampled(model, guide(model)), sampled(model, guide(model)))
    (first, _), (second, _) = distilled(model), distilled(model)
    assert torch.equal(first["samples"], second["samples"])


def test_a_cancelled_run_stops_within_a_step_and_releases_everything(model, monkeypatch):
    import comfy.model_management as management

    steps, follow = [], run.follow

    def cancelling(bar, base, curves):
        inner = follow(bar, base, curves)

        def report(step):
            steps.append(step.number)
            if step.number == 4:
                management.interrupt_current_processing(True)
            inner(step)

        return report

    monkeypatch.setattr(run, "follow", cancelling)
    functions = [
        len(m.weight_function) for m in model.model.diffusion_model.modules() if hasattr(m, "weight_function")
    ]
    before = sampled(model)
    with pytest.raises(host.interrupt_types()):
        distilled(model, steps=200)
    management.interrupt_current_processing(False)
    assert steps == [0, 1, 2, 3, 4]
    assert functions == [
        len(m.weight_function) for m in model.model.diffusion_model.modules() if hasattr(m, "weight_function")
    ]
    assert torch.equal(sampled(model), before)
