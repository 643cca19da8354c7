"""Algorithm 2 on a small model, under the stand-in of ComfyUI's guider."""

from itertools import pairwise

import pytest
import torch

from reelbrush.nodes.distill import features, guided
from reelbrush.nodes.distill.guided import Guide, GuidedRun, seeded
from reelbrush.nodes.distill.optimize import DistillRecipe, gradient

from ..diffusion.tiny import conditioning
from ..diffusion.tiny_sampling import sample
from .small import contents, latents, model, null, references, rows_seen, styles

SCALE = 0.18215


def euler(denoise, x, sigmas):
    """Core's plain Euler sampler."""
    for now, then in pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        x = x + d * (then - now)
    return x


def levels(of, *timesteps):
    table = of.model.model_sampling.sigmas
    return torch.stack([table[t] for t in timesteps] + [torch.tensor(0.0)])


def drawn(of, guide=None, frames=1, seed=0, timesteps=(801, 501, 201)):
    """A sampling with CFG 2 from noise, guided or by plain Euler; model space."""
    sigmas = levels(of, *timesteps)
    function = euler if guide is None else guide.sampling(seeded(seed))
    start = latents(frames, 4) * sigmas[0] / SCALE
    texts = [conditioning(of, seed=s, tokens=4) for s in (1, 2)]
    with torch.inference_mode():
        return sample(of, function, start, sigmas, *texts, cfg=2.0) * SCALE


def guide(of, style=None, **more):
    return Guide((styles() if style is None else style) / SCALE, null(of), frames_per_call=1, **more)


def test_no_iterations_is_plain_euler_bit_for_bit():
    of = model()
    assert torch.equal(drawn(of, guide(of, iterations=0)), drawn(of))


class Inner:
    """A SAMPLER of ComfyUI's shape: Euler, as k-diffusion writes it. It notes how it is called."""

    extra_options = {"s_noise": 0.7}

    def __init__(self):
        self.calls = []

    def sampler_function(self, model, x, sigmas, extra_args, callback, disable, s_noise):
        self.calls.append((len(sigmas), extra_args.get("seed"), s_noise))
        for i, (now, then) in enumerate(pairwise(sigmas)):
            denoised = model(x, now * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": now, "denoised": denoised})
            x = x + (x - denoised) / now * (then - now)
        return x


def test_any_sampler_steps_from_level_to_level():
    of, inner = model(), Inner()
    got = drawn(of, guide(of, sampler=inner))
    torch.testing.assert_close(got, drawn(of, guide(of)), rtol=1e-3, atol=1e-4)
    assert [count for count, _, _ in inner.calls] == [2, 2, 2], "anew at each guided level"
    assert len({seed for _, seed, _ in inner.calls}) == 3, "each with its own noise"
    assert {s_noise for _, _, s_noise in inner.calls} == {0.7}


@pytest.mark.parametrize(("settings", "levels"), [({"iterations": 0}, [4]), ({"start_percent": 0.6}, [3, 2])])
def test_a_sampler_keeps_its_earlier_steps_where_nothing_is_guided(settings, levels):
    of, inner = model(), Inner()
    got = drawn(of, guide(of, sampler=inner, **settings))
    torch.testing.assert_close(got, drawn(of, guide(of, **settings)), rtol=1e-3, atol=1e-4)
    assert [count for count, _, _ in inner.calls] == levels


def test_a_sampler_of_another_kind_is_rejected():
    of = model()
    with pytest.raises(ValueError, match="connect KSamplerSelect"):
        drawn(of, guide(of, sampler=object()))


def test_outside_its_range_it_is_plain_euler_bit_for_bit():
    of = model()
    assert torch.equal(drawn(of, guide(of, start_percent=0.9, end_percent=0.95)), drawn(of))


def test_guidance_brings_the_style_loss_down():
    of, losses = model(), []
    for settings in ({"iterations": 0}, {"iterations": 4, "recipe": DistillRecipe(0.05, 0.0)}):
        z = drawn(of, guide(of, adain=False, **settings))
        with references(of, styles()) as refs:
            style = refs.style_at(1)
            losses.append(float(gradient(refs, style, z.clone(), 1, DistillRecipe(), range(1))[0][0]))
    assert losses[1] < 0.95 * losses[0]


def test_adain_gives_the_noised_style_s_statistics():
    of = model()
    z = GuidedRun(guide(of, iterations=1, recipe=DistillRecipe(0.0, 0.0)), of.model, latents(1), seeded(3))(
        latents(1), 2.0
    )
    style = (styles() + 2.0 * seeded(3)(styles())) / 5**0.5
    torch.testing.assert_close(z.mean((2, 3)), style.mean((2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.std((2, 3)), style.std((2, 3)), atol=1e-4, rtol=1e-4)


def test_a_seed_repeats_and_another_does_not():
    of = model()
    one, again, other = (drawn(of, guide(of, iterations=1), seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_weights_of_styles_count_in_the_guidance():
    of, two = model(), torch.cat([styles(), -styles()])
    how = {"adain": False, "recipe": DistillRecipe(0.05, 0.0)}
    first, second, equal, default = (
        drawn(of, guide(of, two, style_weights=weights, **how)) for weights in ((1, 0), (0, 1), (2, 2), ())
    )
    assert float((first - second).abs().mean()) > 0.02 * float(first.std())
    assert torch.equal(equal, default)


def test_a_content_that_does_not_weigh_is_not_read(monkeypatch):
    rows, of = rows_seen(monkeypatch), model()
    drawn(of, guide(of, content=contents() / SCALE), frames=1)
    assert rows == [(1, False), (1, True), (1, True)] * 3
    rows.clear()
    drawn(of, guide(of, content=contents() / SCALE, recipe=DistillRecipe(0.015, 0.3)))
    assert rows == [(1, False), (1, False), (1, True), (1, True)] * 3  # once per level, not per iteration


def test_contents_that_do_not_fit_the_frames_raise_an_error():
    of = model()
    with pytest.raises(ValueError, match="2 frames and the latent 3"):
        drawn(of, guide(of, content=contents(2) / SCALE), frames=3)


def test_another_packs_model_stays_in_inference_mode_and_as_it_was():
    of = model()
    own = {id(m): set(vars(m)) for m in of.model.diffusion_model.modules()}
    drawn(of, guide(of))
    assert {id(m): set(vars(m)) for m in of.model.diffusion_model.modules()} == own


@pytest.mark.parametrize("keep", [False, True], ids=["stop", "keep"])
def test_a_nan_stops_the_sampling_or_leaves_a_level_unguided(keep, monkeypatch):
    of, look = model(), features.FeatureReader.__call__

    def broken(self, z, timestep, names, *, grad=False):
        found = look(self, z, timestep, names, grad=grad)
        if grad and timestep > 400:
            found[0].out = found[0].out * torch.inf
        return found

    monkeypatch.setattr(features.FeatureReader, "__call__", broken)
    settings = guide(of, adain=False, recipe=DistillRecipe(0.015, 0.0, keep_last_good=keep))
    if not keep:
        with pytest.raises(RuntimeError, match="NaN at step 1"):
            drawn(of, settings)
        return
    out = drawn(of, settings)
    assert out.isfinite().all()
    assert not torch.equal(out, drawn(of))  # the lower levels are guided


def test_several_style_pictures_share_their_statistics():
    two = styles(2)
    flat = guided.one_picture(two)
    torch.testing.assert_close(flat.mean((2, 3))[0], two.mean((0, 2, 3)))
