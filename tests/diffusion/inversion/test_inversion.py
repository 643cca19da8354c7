"""DDIM inversion: what it leaves, the round trip, conventions, and parity with the official loop."""

import pytest
import torch

from reelbrush.nodes.diffusion.inversion import inversion
from reelbrush.nodes.diffusion.inversion.inversion import invert, levels, reconstruct

from .. import tiny


@pytest.fixture
def mini(monkeypatch):
    tiny.stand_in(monkeypatch)
    return smooth("v")


def smooth(prediction):
    """A model whose noise changes little from step to step, as a trained one's does: with random weights
    a v-prediction (x0 shrinks to nothing in noise), or an eps-prediction that says little."""
    model = tiny.tiny_model("mini", prediction=prediction)
    tiny.randomize(model.model.diffusion_model, gain=0.5)
    if prediction == "eps":
        for p in model.model.diffusion_model.out[2].parameters():
            p.mul_(0.1)
    return model


def frames(count=1, size=(8, 8), seed=4):
    return torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(seed)) * 4


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


# -- levels ----------------------------------------------------------------------------------------


def test_thirty_steps_are_the_official_timesteps(mini):
    schedule = mini.model.model_sampling.sigmas
    torch.testing.assert_close(levels(mini, 30), schedule[0:990:33])
    assert len(levels(mini, 1000)) == 1000


def test_any_sigmas_can_be_inverted_through(mini):
    given = torch.tensor([7.0, 2.0, 0.5, 0.0, 0.0])
    assert levels(mini, 50, given).tolist() == [0.0, 0.5, 2.0, 7.0]
    with pytest.raises(ValueError, match="two noise levels"):
        levels(mini, 50, torch.tensor([3.0]))


def test_a_flow_model_raises_an_error(mini):
    flow = mini.clone()
    sampling = tiny.ModelSampling()
    sampling.sigmas = torch.linspace(0.001, 1, 1000)
    flow.add_object_patch("model_sampling", sampling)
    with pytest.raises(ValueError, match="flow model"):
        levels(flow, 20)


# -- the way up and down ---------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("convention", inversion.NOISE_TIMESTEPS)
def test_refinement_makes_the_round_trip_five_times_better(mini, prediction, convention):
    model, latent = smooth(prediction), frames()
    text, sigmas = tiny.conditioning(model), levels(model, 30)
    errors = []
    for refine in (0, 3):
        _, made = invert(model, text, latent, sigmas, convention=convention, refine=refine)
        errors.append(error(reconstruct(model, made), latent))
    assert 1e-3 < errors[0] < 1e-1
    assert errors[1] < errors[0] / 5


def test_a_core_sampler_continues_from_the_noise(mini):
    """Euler down the same levels, added noise off, comes back to the latent."""
    latent, text = frames(2), tiny.conditioning(mini)
    sigmas = torch.cat([torch.zeros(1), levels(mini, 20)])
    noise, made = invert(mini, text, latent, sigmas, refine=3)
    back = tiny.sample(mini, tiny.euler, noise, sigmas.flip(0), text, noise=torch.zeros_like(noise))
    assert error(back, latent) < 2e-3
    x = made.latents[-1] * (1 + sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(noise, x / 0.18215)


def test_frames_together_and_one_by_one_agree(mini):
    latent, text, sigmas = frames(3, (8, 16)), tiny.conditioning(mini), levels(mini, 5)
    together, made = invert(mini, text, latent, sigmas)
    for n in range(3):
        alone, _ = invert(mini, text, latent[n : n + 1], sigmas)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-4)
    few, made_few = invert(mini, text, latent, sigmas, frames_per_call=2)
    torch.testing.assert_close(few, together, rtol=1e-4, atol=1e-4)
    assert made.frames == made_few.frames == 3


def test_a_thin_trajectory_holds_levels_of_the_full_one(mini):
    latent, text, sigmas = frames(), tiny.conditioning(mini), levels(mini, 12)
    noise, full = invert(mini, text, latent, sigmas)
    thin_noise, thin = invert(mini, text, latent, sigmas, save_steps=5)
    assert torch.equal(noise, thin_noise) and len(thin.sigmas) == 5
    assert (thin.sigmas[0], thin.sigmas[-1]) == (sigmas[0], sigmas[-1])
    for sigma, latents in zip(thin.sigmas, thin.latents, strict=True):
        assert torch.equal(latents, full.latents[full.sigmas.tolist().index(sigma)])


def test_what_goes_in_is_not_changed_and_nothing_stays(mini):
    latent, text = frames(), tiny.conditioning(mini)
    before = latent.clone(), text[0][0].clone(), {k: v.clone() for k, v in mini.model.state_dict().items()}
    first, _ = invert(mini, text, latent, levels(mini, 4), refine=1, frames_per_call=1)
    again, _ = invert(mini, text, latent, levels(mini, 4), refine=1, frames_per_call=1)
    assert torch.equal(first, again)
    assert torch.equal(latent, before[0]) and torch.equal(text[0][0], before[1])
    assert all(torch.equal(v, before[2][k]) for k, v in mini.model.state_dict().items())
    assert mini.wrappers == {} and mini.model_options == {"transformer_options": {}}


def test_the_latents_are_those_of_the_first_level(mini):
    latent, text = frames(), tiny.conditioning(mini)
    _, made = invert(mini, text, latent, levels(mini, 4))
    torch.testing.assert_close(made.latents[0], latent * 0.18215)
    assert made.conditioning is text and (made.family, made.convention) == ("sd1", "next timestep")


def test_an_empty_latent_can_be_inverted(mini):
    _, made = invert(mini, tiny.conditioning(mini), torch.zeros(1, 4, 8, 8), levels(mini, 4))
    assert made.latents.isfinite().all()


def test_psnr_of_a_known_error():
    image = torch.full((1, 4, 4, 3), 0.5)
    assert inversion.psnr(image, image) == 100
    assert inversion.psnr(image, image + 0.1) == pytest.approx(20, abs=1e-4)


# -- parity ----------------------------------------------------------------------------------------


def official_unet(weights):
    """diffusers' UNet with the tiny model's weights (FACTS: the same on both sides)."""
    diffusers = pytest.importorskip("diffusers", reason="the official loops are written for diffusers")
    import comfy.utils

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in tiny.LAYOUTS["sd15"].items()}
    names = comfy.utils.unet_to_diffusers({**config, "num_res_blocks": [2, 2, 2, 2]})
    unet.load_state_dict({n: weights[names[n]] for n in unet.state_dict()})
    return unet.train(False)


@pytest.mark.comfyui
@pytest.mark.parametrize("steps", [30, 50])
def test_the_official_loop_agrees(steps):
    """Z*'s and null-text's loop, restated from its equations on a bare DDIMScheduler: ComfyUI and diffusers.

    Relative tolerance 1e-4; the line is worth something because inverting with the other convention is
    more than 50 times further away.
    """
    model, latent = tiny.comfy_model("sd15"), frames(1, (16, 16))
    unet = official_unet(model.model.diffusion_model.state_dict())
    text = tiny.conditioning(model, seed=2)
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(steps)
    z, visited = latent * 0.18215, []
    level = scheduler.final_alpha_cumprod
    with torch.no_grad():
        for t in reversed(scheduler.timesteps):
            eps = unet(z, t, encoder_hidden_states=text[0][0]).sample
            goal = scheduler.alphas_cumprod[t]
            clean = (z - (1 - level).sqrt() * eps) / level.sqrt()
            z, level = goal.sqrt() * clean + (1 - goal).sqrt() * eps, goal
            visited.append(z)
    with torch.inference_mode():
        _, ours = invert(model, text, latent, levels(model, steps))
        _, other = invert(model, text, latent, levels(model, steps), convention="current timestep")
    assert len(visited) == len(ours.latents) == steps
    worst = max(error(a, b) for a, b in zip(ours.latents, visited, strict=True))
    apart = error(other.latents[-1], visited[-1])
    assert worst < 1e-4
    assert apart > 50 * 1e-4
    assert visited[-1].std() > 0.1


@pytest.mark.comfyui
def test_comfyui_and_the_stand_in_agree(monkeypatch):
    latent = frames(2)
    with torch.inference_mode():
        there = tiny.comfy_model("mini")
        _, theirs = invert(there, tiny.conditioning(there), latent, levels(there, 6), refine=1)
    tiny.stand_in(monkeypatch)
    here = tiny.tiny_model("mini")
    _, ours = invert(here, tiny.conditioning(here), latent, levels(here, 6), refine=1)
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-4)


# -- in a real ComfyUI -----------------------------------------------------------------------------


@pytest.mark.comfyui
def test_sdxl_is_told_its_size():
    """The guider adds SDXL's vector; the UNet raises an error without it."""
    model, seen = tiny.comfy_model("sdxl"), []
    watched = model.clone()

    def watch(executor, x, t, context=None, y=None, *rest, **extra):
        seen.append(y.shape)
        return executor(x, t, context, y, *rest, **extra)

    watched.add_wrapper_with_key("diffusion_model", "test", watch)
    with torch.inference_mode():
        _, made = invert(watched, tiny.conditioning(model), frames(2), levels(model, 3))
    assert seen == [(2, 2816)] * 2 and made.family == "sdxl"


@pytest.mark.comfyui
def test_core_nodes_continue_from_the_noise():
    """SamplerCustom with added noise off and the node's own outputs comes back to the clip."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

    from reelbrush.nodes.diffusion.nodes_trajectory import Invert

    model, latent = tiny.comfy_model("mini", prediction="v"), {"samples": frames(2)}
    text = tiny.conditioning(model)
    up = torch.cat([levels(model, 12).flip(0), torch.zeros(1)])
    with torch.inference_mode():
        noise, made, sigmas = Invert().invert(model, text, latent, 5, "next timestep", 3, 0, 0, sigmas=up)
        assert torch.equal(sigmas, up)
        (euler,) = KSamplerSelect().get_sampler("euler")
        back, _ = SamplerCustom().sample(model, False, 0, 1.0, text, text, euler, sigmas, noise)
        again = reconstruct(model, made)
    assert error(back["samples"], latent["samples"]) < 1e-2
    assert error(again, back["samples"]) < 1e-4


@pytest.mark.comfyui
def test_a_cancelled_inversion_stops_at_the_next_step_and_cleans_up():
    import comfy.model_management as management

    model, calls = tiny.comfy_model("mini").clone(), []

    def cancels(executor, *rest, **extra):
        calls.append("call")
        if len(calls) == 2:
            management.interrupt_current_processing()
        return executor(*rest, **extra)

    model.add_wrapper_with_key("diffusion_model", "test", cancels)
    model.add_callback_with_key("on_cleanup", "test", lambda _: calls.append("clean"))
    with pytest.raises(management.InterruptProcessingException), torch.inference_mode():
        invert(model, tiny.conditioning(model), frames(), levels(model, 10))
    assert calls == ["call", "call", "clean"]
