"""The diffusion judge against its formulas, on a tiny model."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reelbrush.nodes import host
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.diffusion_judge import SHARPNESS, DiffusionJudge
from reelbrush.nodes.attnstyle.train import Settings, train

from ..diffusion.tiny import LAYOUTS, comfy_model, tiny_model

SMALL = {
    **LAYOUTS["sd15"],
    "channel_mult": (1, 1),
    "num_res_blocks": (1, 2),
    "transformer_depth": (1, 1, 1),
    "transformer_depth_output": (1, 1, 1, 1, 1),
    "context_dim": 16,
}


class Vae:
    """Stands in for ComfyUI's VAE: eight times smaller, four channels."""

    def __init__(self):
        class Stage(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 8, 8)

            def encode(self, pixels):
                return self.conv(pixels)

        torch.manual_seed(0)
        self.first_stage_model = Stage()

    def process_input(self, images):
        return images * 2 - 1


class Clip:
    """Every text its own random conditioning."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        g = torch.Generator().manual_seed(sum(map(ord, text)))
        return [[torch.randn(1, 7, 16, generator=g), {}]]


HERE = pytest.mark.skipif(bool(os.environ.get("COMFYUI_PATH")), reason="the real one runs")


@pytest.fixture(
    params=[pytest.param("stand-in", marks=HERE), pytest.param("comfyui", marks=pytest.mark.comfyui)]
)
def judge(request):
    make = tiny_model if request.param == "stand-in" else comfy_model
    with torch.inference_mode():  # as a node makes it
        return DiffusionJudge(make(SMALL), Vae(), Clip(), "0.2-0.6", 2, size=64)


def literal_error(judge, image, text, generator):
    """err_T(I), a level at a time."""
    total, base = 0.0, judge._base
    z = torch.func.functional_call(judge._encoder, judge._weights, (image[None] * 2 - 1,)) * 0.18215
    for sigma in judge.levels(generator):
        noise = torch.randn(z.shape, generator=generator)
        given = host.conditions(base, judge.text(text), z)
        options = host.transformer_options(judge.model, torch.tensor([sigma]))
        x = z + sigma * noise
        denoised = host.evaluate(base, x / math.sqrt(1 + sigma**2), sigma, given, options)
        predicted = (x - denoised) / sigma
        total += float((predicted - noise).square().mean()) / judge.samples
    return total


def test_errors_and_probability_are_those_of_the_formula(judge, pictures):
    x = pictures(1, 64, 64)
    texts = ["red", "a photo"]
    with judge.ready(), torch.no_grad():
        got = judge.errors(x, [judge.text(t) for t in texts], torch.Generator().manual_seed(0)).mean(
            (-1, -2)
        )[0]
        expected = [literal_error(judge, x[0], t, torch.Generator().manual_seed(0)) for t in texts]
    assert got.tolist() == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3 * expected[0]  # the texts differ
    p = judge.probability(x, texts)[0]
    scores = torch.tensor(expected) / (sum(expected) / 2)
    torch.testing.assert_close(p, (-SHARPNESS * scores).softmax(0), atol=1e-3, rtol=1e-2)


def test_levels_cover_the_range_one_in_each_part(judge):
    with judge.ready():
        sigmas = judge._base.model_sampling.sigmas
        low, middle, high = (float(sigmas[round(s * 999)]) for s in (0.2, 0.4, 0.6))
        for seed in range(5):
            first, second = judge.levels(torch.Generator().manual_seed(seed))
            assert low <= first <= middle <= second <= high


def test_the_gradient_is_that_of_the_loss(judge, pictures):
    cont = pictures(1, 64, 64)
    with torch.inference_mode(False), torch.enable_grad(), judge.ready():
        aim = judge.aim("red", "a photo", cont)
        # a gentle k: with the real one tanh is saturated for a network of random weights
        aim.typical = aim.typical * 100
        styl = (
            cont + 0.01 * torch.randn(cont.shape, generator=torch.Generator().manual_seed(0))
        ).requires_grad_()

        def loss(x):
            aim.generator.manual_seed(5)
            return aim.loss(x, torch.tensor([0])).sum()

        (slope,) = torch.autograd.grad(loss(styl), styl)
        way = slope / slope.norm()
        with torch.no_grad():
            change = (loss(styl + 0.05 * way) - loss(styl - 0.05 * way)) / 0.1
        assert slope.norm() > 1e-4
        assert change.item() == pytest.approx(float((slope * way).sum()), rel=0.05)


def test_doubt_is_minus_the_log_share_of_the_style_text(judge, pictures):
    cont = pictures(1, 64, 64)
    with torch.inference_mode(False), torch.no_grad(), judge.ready():
        aim = judge.aim("red", "a photo", cont, ["blue"])
        aim.generator.manual_seed(5)
        got = aim.doubt(cont).item()
        texts = [judge.text(t) for t in ("red", "a photo", "blue")]
        errors = judge.errors(cont, texts, torch.Generator().manual_seed(5)).mean((-1, -2))[0].tolist()
    scores = [math.exp(-SHARPNESS * (e - errors[0]) / aim.typical.item()) for e in errors]
    assert got == pytest.approx(math.log(sum(scores)) / SHARPNESS, rel=1e-3)
    assert len(set(errors)) == 3


@pytest.mark.parametrize("others", [[], ["blue", "green"]])
def test_doubt_shares_the_passes_that_the_loss_made(judge, pictures, monkeypatch, others):
    cont, passes = pictures(2, 64, 64), []
    one = DiffusionJudge._error
    monkeypatch.setattr(DiffusionJudge, "_error", lambda *given: passes.append(1) or one(*given))
    with torch.inference_mode(False), torch.no_grad(), judge.ready():
        aim = judge.aim("red", "a photo", cont, others)
        aim.generator.manual_seed(5)
        alone = aim.doubt(cont)
        del passes[:]
        aim.generator.manual_seed(5)
        with aim.sharing(cont):
            aim.loss(cont, torch.arange(2))
            together = aim.doubt(cont)
        assert len(passes) == 2 * 2 * (2 + len(others))  # pictures, levels, texts: each once
        torch.testing.assert_close(together, alone)
        state = aim.generator.get_state()
        other = aim.doubt(cont.flip(0))  # not shared: passes of its own, under new noise
        aim.generator.set_state(state)
        torch.testing.assert_close(other, aim.doubt(cont.flip(0)), atol=0, rtol=0)
    assert (alone[0] - alone[1]).abs() > 1e-4


def test_it_trains_inside_inference_mode_and_leaves_the_model_alone(judge, pictures):
    before = [p.clone() for p in judge.model.model.parameters()]
    weights = Weights(content=0.0, temporal=0.0)
    settings = Settings(epochs=2, patches=2, threshold=0.0, weights=weights, patch_scales="local 1")
    with torch.inference_mode():
        result = train(judge, pictures(1, 32, 32), "red", "a photo", settings)
    assert all(torch.isfinite(torch.tensor(v)).all() for v in result.losses.values())
    assert set(result.losses) == {"classification", "confidence", "patches", "attention", "layout", "tv"}
    assert result.losses["layout"][0] == pytest.approx(0, abs=1e-6)
    after = judge.model.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert judge._weights is None and judge._base is None


@pytest.mark.comfyui
def test_the_gradient_goes_through_comfyuis_own_encoder(pictures):
    from comfy.ldm.models.autoencoder import AutoencoderKL

    vae = Vae()
    shape = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    shape |= {"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    with torch.inference_mode():  # as core loaders make it
        vae.first_stage_model = AutoencoderKL(ddconfig=shape, embed_dim=4)
        g = torch.Generator().manual_seed(0)
        for p in vae.first_stage_model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1))
        judge = DiffusionJudge(comfy_model(SMALL), vae, Clip(), "0.2-0.6", 1, size=64)
    with torch.inference_mode(False), torch.enable_grad(), judge.ready():
        x = pictures(1, 64, 64).requires_grad_()
        goal = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        (slope,) = torch.autograd.grad((judge.encode(x) * goal).sum(), x)
        way = slope / slope.norm()
        with torch.no_grad():
            near = [(judge.encode(x + s * 0.02 * way) * goal).sum() for s in (1, -1)]
    assert (near[0] - near[1]).item() / 0.04 == pytest.approx(slope.norm().item(), rel=0.05)


def test_a_flow_model_is_rejected():
    sampling = SimpleNamespace(timestep=lambda sigma: 1000 * sigma, sigmas=torch.linspace(1e-3, 1, 1000))
    flow = SimpleNamespace(model=SimpleNamespace(model_sampling=sampling, diffusion_model=nn.Module()))
    flow.clone = lambda: flow
    with pytest.raises(ValueError, match="not a Stable Diffusion"):
        DiffusionJudge(flow, Vae(), Clip())
