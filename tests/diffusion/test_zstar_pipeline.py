"""DDIM Inversion -> Null-Text Optimization -> Z*, end to end against the official loops, written literally.

The loops of the official code (demo.py, diffuser_utils.py, zstar.py) in float64: inversion with the noise of
the next timestep; null-text optimization of the content; sampling at CFG 7.5 with four rows (style and
content, each with the null text and the text), the style reset to its inversion and the content pulled by
0.01 at every step; attention with loops over rows and heads. With `branch` None the style's rows keep their
own attention (eq. 12 as the paper has it): what the cached path computes.
"""

import pytest
import torch

from reelbrush.nodes.diffusion.inversion.inversion import invert, levels
from reelbrush.nodes.diffusion.inversion.nulltext import optimize

from . import tiny
from .attention_tools import zstar

STEPS, INNER, CFG, LAYERS, START = 7, 3, 7.5, (2, 3), 0.3


@pytest.fixture
def model(monkeypatch):
    tiny.stand_in(monkeypatch)
    model = tiny.tiny_model("mini", prediction="v")
    model.model.diffusion_model.double()
    for name, weight in model.model.diffusion_model.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.mul_(3)  # so that attention has something to choose
    return model


def picture(seed):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4


class Official:
    """The loops; `z` is a variance-preserving latent."""

    def __init__(self, model):
        self.base, self.sigmas = model.model, levels(model, STEPS).double()
        self.abar = 1 / (1 + self.sigmas**2)
        self.branch, self.active, self.layer = None, False, 0

    def eps(self, z, level, context):
        sigma, self.layer = self.sigmas[level], 0
        x = z * (1 + sigma**2).sqrt()
        replaced = {(kind, n, 0): self.attention for kind in ("input", "middle", "output") for n in range(12)}
        options = {"patches_replace": {"attn1": replaced}, "sigmas": sigma[None]}
        x0 = self.base.apply_model(x, sigma.expand(len(x)), c_crossattn=context, transformer_options=options)
        return (x - x0) / sigma

    def move(self, z, eps, here, there):
        clean = (z - (1 - self.abar[here]).sqrt() * eps) / self.abar[here].sqrt()
        return self.abar[there].sqrt() * clean + (1 - self.abar[there]).sqrt() * eps

    def inversion(self, latent, text):
        walk = [latent]
        for level in range(1, STEPS):
            walk.append(self.move(walk[-1], self.eps(walk[-1], level, text), level - 1, level))
        return walk

    def null_text(self, walk, text, null):
        current, found = walk[-1], []
        for i, level in enumerate(range(STEPS - 1, 0, -1)):
            null = null.detach().clone().requires_grad_()
            adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            with torch.no_grad():
                with_text = self.eps(current, level, text)
            for _ in range(INNER):
                without = self.eps(current, level, null)
                there = self.move(current, without + CFG * (with_text - without), level, level - 1)
                loss = torch.nn.functional.mse_loss(there, walk[level - 1])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 1e-5 + i * 2e-5:
                    break
            found.append(null.detach())
            with torch.no_grad():
                without = self.eps(current, level, null)
                current = self.move(current, without + CFG * (with_text - without), level, level - 1)
        return found

    @torch.no_grad()
    def stylized(self, content, style, text, nulls, pull, branch):
        z, self.branch = content[-1], branch
        for i, level in enumerate(range(STEPS - 1, 0, -1)):
            z = pull * content[level] + (1 - pull) * z
            self.active = float(self.sigmas[level]) <= self.starts_at
            rows = torch.cat([style[level], z] * 2)
            context = torch.cat([nulls[i], nulls[i], text, text])
            without, with_text = self.eps(rows, level, context).chunk(2)
            eps = without + CFG * (with_text - without)
            z, self.active = self.move(z, eps[1:], level, level - 1), False
        return z

    def attention(self, q, k, v, extra):
        number, self.layer = self.layer, self.layer + 1
        heads, out = extra["n_heads"], torch.empty_like(q)
        for row in range(len(q)):
            other = row - 1 if row % 2 else row + 1
            for head in range(heads):
                part = slice(head * extra["dim_head"], (head + 1) * extra["dim_head"])
                own = q[row, :, part] @ k[row, :, part].T / extra["dim_head"] ** 0.5
                values = v[row, :, part]
                scale = (1.2 if row % 2 else self.branch) if self.active and number in LAYERS else None
                if scale is not None:
                    beside = scale * q[row, :, part] @ k[other, :, part].T / extra["dim_head"] ** 0.5
                    own = torch.cat([beside, own], 1)
                    values = torch.cat([v[other, :, part], values])
                out[row, :, part] = own.softmax(-1) @ values
        return out


@pytest.mark.parametrize("variant", ["official code", "cached"])
def test_inversion_null_text_and_zstar_are_the_official_loops(model, variant):
    pull, branch = (0.01, 1.5) if variant == "official code" else (0.0, None)
    text, null = ([[c[0][0].double(), {}]] for c in (tiny.conditioning(model, seed=s) for s in (1, 2)))
    own = model.model.process_latent_in
    loops = Official(model)
    loops.starts_at = model.model.model_sampling.percent_to_sigma(START)
    content, style = (loops.inversion(own(picture(seed)), text[0][0]) for seed in (4, 5))
    nulls = loops.null_text(content, text[0][0], null[0][0])
    want = loops.stylized(content, style, text[0][0], nulls, pull, branch)

    with torch.inference_mode():
        made = [invert(model, text, picture(seed), levels(model, STEPS)) for seed in (4, 5)]
        (noise, frames), (_, look) = made
    frames.latents = torch.stack(content)  # trajectories are kept in float32
    look.latents = torch.stack(style)
    torch.testing.assert_close(made[0][1].latents[-1], content[-1], rtol=1e-4, atol=1e-4)
    negative = optimize(model, text, null, frames, cfg=CFG, inner_steps=INNER)
    settings = {
        "layers": "2-3",
        "start_percent": START,
        "style_branch_scale": branch or 0.0,
    }

    def sampled(patched):
        start, sigmas = noise.double(), frames.sigmas.flip(0).double()
        out = tiny.sample(patched, tiny.euler, start, sigmas, text, negative, cfg=CFG)
        return own(out) / (1 + sigmas[-1] ** 2).sqrt()

    got, off = sampled(zstar(model, look, content=frames, content_pull=pull, **settings)), sampled(model)
    error = ((got - want).norm() / want.norm()).item()
    assert ((off - want).norm() / want.norm()).item() > 0.05, "the method must matter"
    assert error < 1e-6  # version 0.1, cached: 0.8
