"""Null-text optimisation: guided sampling stays on the inversion; ranges; parity with the official loop."""

import pytest
import torch

from reelbrush.nodes.diffusion.inversion.inversion import invert, levels
from reelbrush.nodes.diffusion.inversion.nulltext import optimize, scheduled

from .. import tiny


@pytest.fixture
def model(monkeypatch):
    tiny.stand_in(monkeypatch)
    return tiny.tiny_model("mini", prediction="v")


def clip(model, frames=1, steps=6):
    latent = torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(4)) * 4
    text, null = tiny.conditioning(model, seed=1), tiny.conditioning(model, seed=2)
    with torch.inference_mode():
        noise, made = invert(model, text, latent, levels(model, steps))
    return latent, noise, made, text, null


def guided(model, noise, made, text, negative, cfg=4.0):
    sigmas = made.sigmas.flip(0)
    return tiny.sample(
        model, tiny.euler, noise, sigmas, text, negative, cfg=cfg, noise=torch.zeros_like(noise)
    )


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_guided_sampling_stays_on_the_trajectory(model):
    latent, noise, made, text, null = clip(model, frames=2)
    with torch.inference_mode():
        found = optimize(model, text, null, made, cfg=4.0, inner_steps=15, learning_rate=0.05)
    plain = distance(guided(model, noise, made, text, null), latent)
    kept = distance(guided(model, noise, made, text, found), latent)
    assert plain > 0.02
    assert kept < plain / 2


def test_frames_side_by_side_are_frames_one_by_one(model):
    _, _, made, text, null = clip(model, frames=2, steps=4)
    settings = {"cfg": 4.0, "inner_steps": 3}
    together = optimize(model, text, null, made, **settings, frames_per_call=2)
    alone = optimize(model, text, null, made, **settings, frames_per_call=1)
    for (a, _), (b, _) in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert (together[-1][0] - null[0][0]).abs().max() > 0.01


def test_the_texts_of_the_steps_follow_each_other_between_the_levels(model):
    sampling = model.model.model_sampling
    sigmas = torch.cat([levels(model, 7).flip(0), torch.zeros(1)])
    entries = scheduled([torch.full((1, 1, 1), float(i)) for i in range(7)], {"width": 5}, sigmas, sampling)
    assert entries[0][1]["start_percent"] == 0 and entries[-1][1]["end_percent"] == 1
    assert all(values["width"] == 5 for _, values in entries)

    def active(sigma):
        """Which entries ComfyUI takes at a noise level."""
        ends = [[sampling.percent_to_sigma(v[f"{e}_percent"]) for e in ("start", "end")] for _, v in entries]
        return [i for i, (start, end) in enumerate(ends) if end <= sigma <= start]

    for i, sigma in enumerate(sigmas[:-1].tolist()):
        for near in (sigma * 0.999, sigma, sigma * 1.001):
            assert active(near) == [i]
    for sigma in torch.linspace(0.001, 14.6, 500).tolist():
        assert len(active(sigma)) >= 1  # also at a border
    for high, low in zip(sigmas[:-2].tolist(), sigmas[1:-1].tolist(), strict=True):
        assert len(active((high * low) ** 0.5)) == 1  # DPM-2's point


def test_a_trajectory_of_another_model_raises_an_error(model):
    _, _, made, text, null = clip(model, steps=3)
    made.family = "sd2"
    with pytest.raises(ValueError, match="made with a sd2 model"):
        optimize(model, text, null, made)


def test_the_official_loop_agrees(monkeypatch):
    """Null-text's loop as its code has it (one frame, Adam on the whole text, its early stop), in float64.

    Sampling at cfg 4; the texts agree within 1e-4 of their distance from where they began.
    """
    tiny.stand_in(monkeypatch)
    model = tiny.tiny_model("mini", prediction="v")
    model.model.diffusion_model.double()
    _, _, made, text, null = clip(model, steps=5)
    made.latents = made.latents.double()
    text, null = ([[c[0][0].double(), {}]] for c in (text, null))
    cfg, count, epsilon = 4.0, 4, 1e-5
    base, down = model.model, made.sigmas.flip(0).double()

    def x0(z, sigma, context):
        x = z * (1 + sigma**2).sqrt()
        return base.apply_model(x, sigma.expand(1), c_crossattn=context)

    current, context, expected = made.latents[-1].clone(), null[0][0].clone(), []
    for i in range(len(down) - 1):
        high, low = down[i], down[i + 1]
        target = made.latents[len(down) - 2 - i]
        context = context.detach().clone().requires_grad_()
        adam = torch.optim.Adam([context], lr=1e-2 * (1 - i / 100))
        a, a_to = 1 / (1 + high**2), 1 / (1 + low**2)

        def arrive(context, current=current, high=high, a=a, a_to=a_to):
            sides = [x0(current, high, c) for c in (context, text[0][0])]
            eps = [(current - a.sqrt() * s) / (1 - a).sqrt() for s in sides]
            eps = eps[0] + cfg * (eps[1] - eps[0])
            clean = (current - (1 - a).sqrt() * eps) / a.sqrt()
            return a_to.sqrt() * clean + (1 - a_to).sqrt() * eps

        for _ in range(count):
            loss = torch.nn.functional.mse_loss(arrive(context), target)
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < epsilon + i * 2e-5:
                break
        expected.append(context.detach())
        with torch.no_grad():
            current = arrive(context)
    found = optimize(model, text, null, made, cfg=cfg, inner_steps=count)
    for (ours, _), theirs in zip(found, expected, strict=True):
        moved = (theirs - null[0][0]).norm()
        assert (ours - theirs).norm() / moved < 1e-4
        assert moved / null[0][0].norm() > 5e-3
