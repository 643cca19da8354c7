"""Gradients through a clone of a MODEL, from inside inference mode, the shared model untouched."""

import gc
import weakref

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.patching.layers import attention_layers, recomputable

from ..diffusion import tiny


def loss_and_gradient(model, patch=None):
    """The gradient of a run's last x0 by the latent it started from, as a node would compute it."""
    found = {}

    def climb(denoise, x, sigmas):
        with host.gradients():
            x = x.clone().requires_grad_()
            text = denoise.guider.conds["positive"][0]["cross_attn"].clone() * 1.1
            loss = denoise.predict(x, 2.0, context=text).square().mean() + denoise(x, 0.5).mean()
            found["gradient"] = torch.autograd.grad(loss, x)[0]
            found["loss"] = float(loss.detach())
        return x.detach()

    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        host.sample(model, climb, latent, torch.tensor([1.0, 2.0]), tiny.conditioning(model))
    return found


def plain_gradient(model):
    """The same in ordinary PyTorch, no guider, no inference mode, on the stand-in."""
    base = model.model
    text = tiny.conditioning(model)[0][0].expand(2, -1, -1)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.18215
    x.requires_grad_()
    out = base.apply_model(x, torch.full((2,), 2.0), c_crossattn=text * 1.1).square().mean()
    out = out + base.apply_model(x, torch.full((2,), 0.5), c_crossattn=text).mean()
    return float(out.detach()), torch.autograd.grad(out, x)[0]


@pytest.fixture(params=["stand-in", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def model(request, monkeypatch):
    if request.param == "comfyui":
        with torch.inference_mode():
            return tiny.comfy_model("mini")  # weights made in inference mode, as a loader makes them
    tiny.stand_in(monkeypatch)
    return tiny.tiny_model("mini")


def test_the_gradient_is_the_gradient(model):
    loss, gradient = plain_gradient(tiny.tiny_model("mini"))
    found = loss_and_gradient(host.differentiable(model))
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(found["gradient"], gradient, rtol=1e-3, atol=1e-6)
    assert gradient.abs().max() > 1e-3


def test_the_shared_model_stays_as_it_was(model):
    def run(some):
        latent = torch.ones(1, 4, 8, 8)
        with torch.inference_mode():
            one = lambda denoise, x, sigmas: denoise(x, sigmas[0])  # noqa: E731
            return host.sample(some, one, latent, torch.tensor([3.0, 0.0]), tiny.conditioning(some)).clone()

    before, weights = run(model), {k: v.clone() for k, v in model.model.state_dict().items()}
    clone = host.differentiable(model)
    torch.testing.assert_close(run(clone), before, rtol=0, atol=0)
    loss_and_gradient(clone)
    assert torch.equal(run(model), before)
    assert model.weight_wrapper_patches == {}
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())


@pytest.mark.comfyui
def test_without_the_clone_comfyui_refuses():
    """Why the clone is there: weights from inference mode cannot take part in autograd."""
    with torch.inference_mode():
        model = tiny.comfy_model("mini")
    with pytest.raises(RuntimeError, match=r"(?i)inference tensor"):
        loss_and_gradient(model)


def test_what_is_computed_again_sees_the_options_of_its_first_pass(model):
    """The UNet writes the address of the running block into its options; patches read it there."""

    def attend(q, k, v, options):
        kind, number = options["block"]
        return v * (len(kind) + number + 10 * options["block_index"])

    def gradient(recompute):
        clone = host.differentiable(model)
        recomputation = host.Recomputation(clone, recomputable(clone))
        recomputation.on = recompute
        replaced = {layer.address: attend for layer in attention_layers(model)}
        with host.gradients(), host.loaded(clone) as base:
            options = {"patches_replace": {"attn1": replaced}, "sigmas": torch.ones(1)}
            z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
            conditions = host.conditions(base, tiny.conditioning(model), z)
            conditions = {k: v.clone() for k, v in conditions.items() if torch.is_tensor(v)}
            out = host.evaluate(base, z, 2.0, conditions, options)
            return torch.autograd.grad(out.square().sum(), z)[0]

    kept = gradient(False)
    assert float(kept.abs().max()) > 1e-3
    assert torch.equal(gradient(True), kept)


def test_measuring_a_graph_keeps_nothing():
    x, alive = torch.ones(1000, requires_grad=True), []

    def run():
        outputs = [x.exp() for _ in range(5)]  # exp saves its own output
        alive.extend(weakref.ref(t) for t in outputs)
        return outputs[0].sigmoid().sum()

    gc.disable()  # a cycle would need the collector
    try:
        assert host.graph_bytes(run) == 4 * 1000 * 6
        assert not any(reference() is not None for reference in alive)
    finally:
        gc.enable()
