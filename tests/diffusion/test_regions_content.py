"""Style LoRAs per region with the inverted clip outside them: eq. 6 by its literal overwriting, exactly."""

import itertools

import torch

from .attention_tools import BOTH, counted, denoised, latents, levels, make, relative, sample, trajectory
from .lora_tools import apply, merged, small, two


@BOTH
def test_eq_6_keeps_the_inverted_content_outside_the_masks(kind):
    """Euler with a soft mask is the literal overwriting of latents at every step; outside, the result is the
    content's own latents to the last bit."""
    model, lora = make(kind), two(kind)[0]
    sigmas = levels(model, 4)
    content = trajectory(model, frames=2, seed=20, sigmas=sigmas)
    mask = torch.zeros(2, 24, 32)
    mask[0, 4:20, 8:24], mask[1, 8:24, 12:28] = 1, 1
    mask[:, 10:14] *= 0.5
    share, alone = small(mask), merged(kind, [(lora, 1.0)])
    at = lambda s: content.at(float(s)) * (1 + float(s) ** 2) ** 0.5  # noqa: E731

    start = latents(2) * float(sigmas[0])
    x = share * start + (1 - share) * at(sigmas[0])
    for s, following in itertools.pairwise(sigmas):
        stepped = x + (following - s) * (x - denoised(alone, x, s, cfg=2.0)) / s
        x = share * stepped + (1 - share) * at(following)
    node = apply(model, lora, mask=mask, content=content)
    with counted(model) as rows:
        ours = sample(node, latent=start, sigmas=sigmas, cfg=2.0)
    assert rows == [4] * 4  # no base rows
    assert relative(ours, x) < 1e-4
    outside = (share == 0).expand_as(ours)
    clean = model.model.process_latent_in(model.model.process_latent_out(content.at(0)))
    assert torch.equal(ours[outside], clean[outside])
    inside = (share == 1).expand_as(ours)
    assert relative(ours[inside], sample(model, latent=start, sigmas=sigmas, cfg=2.0)[inside]) > 0.05


@BOTH
def test_a_black_mask_with_content_is_the_content(kind):
    model = make(kind)
    content = trajectory(model, frames=2, seed=20)
    node = apply(model, two(kind)[0], mask=torch.zeros(1, 24, 32), content=content)
    clean = model.model.process_latent_in(model.model.process_latent_out(content.at(0)))
    assert torch.equal(sample(node, cfg=2.0), clean)


@BOTH
def test_content_with_any_sampler_ends_on_the_content(kind):
    """Heun, and a two-step method with memory."""

    def heun(denoise, x, sigmas):
        for s, t in itertools.pairwise(sigmas):
            slope = (x - denoise(x, s)) / s
            guess = x + slope * (t - s)
            slope = (slope + (guess - denoise(guess, t)) / t) / 2 if t > 0 else slope
            x = x + slope * (t - s)
        return x

    def dpmpp_2m(denoise, x, sigmas):
        old = None
        for i in range(len(sigmas) - 1):
            d, ratio = denoise(x, sigmas[i]), sigmas[i + 1] / sigmas[i]
            used = d
            if old is not None and sigmas[i + 1] > 0:
                r = (sigmas[i - 1] / sigmas[i]).log() / (sigmas[i] / sigmas[i + 1]).log()
                used = d + (d - old) / (2 * r)
            x, old = x * ratio + used * (1 - ratio), d
        return x

    model, sigmas = make(kind), levels(make(kind), 5)
    content = trajectory(model, frames=1, seed=20, sigmas=sigmas)
    mask = torch.zeros(1, 24, 32)
    mask[:, :, 16:] = 1
    node = apply(model, two(kind)[0], mask=mask, content=content)
    for function in (heun, dpmpp_2m):
        out = sample(node, 1, function=function, sigmas=sigmas)
        torch.testing.assert_close(out[..., :8], content.at(0)[..., :8], rtol=1e-4, atol=1e-4)
