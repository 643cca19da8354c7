"""Patches around the UNet, attention wrapped, features read: with the tests' UNet and with ComfyUI's."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import (
    attention_layers,
    network,
    pick_layers,
)

from ..attention_tools import BOTH, fingerprint, latents, make, same, sample
from ..tiny import conditioning


@BOTH
@pytest.mark.parametrize("layout", ["sd15", "sd21", "sdxl"])
def test_captured_features_are_what_the_layer_computes(kind, layout):
    """q, k, v against the projections' own outputs, out against attention written out, on chosen layers."""
    model = make(kind, layout)
    every = attention_layers(model)
    chosen = [every[0], every[len(every) // 2], every[-1]]
    z, seen = latents(2), {}
    hooks = []
    for layer in chosen:
        attn = network(model).get_submodule(layer.path)
        for name in ("to_q", "to_k", "to_v"):
            store = lambda m, a, out, key=(layer.number, name[-1]): seen.update({key: out})  # noqa: E731
            hooks.append(getattr(attn, name).register_forward_hook(store))
        before = lambda m, args, key=(layer.number, "o"): seen.update({key: args[0]})  # noqa: E731
        hooks.append(attn.to_out.register_forward_pre_hook(before))
    with host.loaded(model) as base:
        given = host.conditions(base, conditioning(model), z, 1.5)
        host.evaluate(base, z, 1.5, given, {})  # ComfyUI's own forward, nothing of ours in it
        plain = dict(seen)
        for hook in hooks:
            hook.remove()
        found = unet.capture(base, z, 1.5, given, chosen)
    for layer in chosen:
        features = found[layer.number]
        assert features.size[0] * features.size[1] == features.q.shape[1]
        for name in ("q", "k", "v"):
            torch.testing.assert_close(getattr(features, name), plain[layer.number, name], rtol=0, atol=0)
        torch.testing.assert_close(features.out, plain[layer.number, "o"], rtol=1e-5, atol=1e-6)
        q, k, v = (features.heads(n).double() for n in "qkv")
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(features.heads("out").double(), weights @ v, rtol=1e-4, atol=1e-5)


@BOTH
def test_capture_stops_after_the_last_layer(kind):
    model = make(kind)
    ran = []
    hook = network(model).out.register_forward_hook(lambda *a: ran.append(1))
    with host.loaded(model) as base:
        given = host.conditions(base, conditioning(model), latents())
        unet.capture(base, latents(), 1.0, given, pick_layers(model, "3"), "k")
        assert not ran
        host.evaluate(base, latents(), 1.0, given, {})
        assert ran
    hook.remove()


@BOTH
def test_gradients_reach_the_latents_when_asked(kind):
    model = make(kind)
    chosen = pick_layers(model, "last 2")
    with host.loaded(model) as base:
        given = host.conditions(base, conditioning(model), latents())
        z = latents().requires_grad_()
        loss = lambda z: sum(f.out.square().mean() for f in read(z).values())  # noqa: E731
        read = lambda z: unet.capture(base, z, 1.0, given, chosen, "o", grad=True)  # noqa: E731
        (gradient,) = torch.autograd.grad(loss(z), z)
        direction = torch.randn_like(z)
        plus, minus = (loss(z.detach() + e * direction).item() for e in (1e-2, -1e-2))
        assert (gradient * direction).sum().item() == pytest.approx((plus - minus) / 2e-2, rel=0.05, abs=1e-4)
        assert not unet.capture(base, z, 1.0, given, chosen)[15].out.requires_grad


@BOTH
def test_a_patch_that_changes_nothing_leaves_the_sample_bit_equal_and_the_model_untouched(kind):
    model = make(kind)
    before, plain = fingerprint(model), sample(model, cfg=2.0)
    patched = model.clone()

    def part(call):
        attend = lambda q, k, v, site: site.inner(q, k, v)  # noqa: E731
        return call.run(options=unet.with_attention(call.options, attention_layers(model), attend))

    unet.attach(patched, "test", part)
    assert torch.equal(sample(patched, cfg=2.0), plain)
    assert same(fingerprint(model), before)
    assert torch.equal(sample(model, cfg=2.0), plain)


@BOTH
def test_patches_wrap_what_other_nodes_set_before_and_after(kind):
    """Another pack's replacement halves a layer; a part of ours doubles it, whichever node comes first."""
    model = make(kind)
    layer = attention_layers(model)[12]
    plain = sample(model)

    def halve(q, k, v, extra):
        return unet.AttentionSite(layer, extra, None).inner(q, k, v) * 0.5

    def part(call):
        attend = lambda q, k, v, site: site.inner(q, k, v) * 2  # noqa: E731
        return call.run(options=unet.with_attention(call.options, [layer], attend))

    for order in ("theirs first", "ours first"):
        for address in (layer.address, layer.address[:2]):
            m = model.clone()
            if order == "theirs first":
                m.set_model_attn1_replace(halve, *address)
            unet.attach(m, "test", part)
            m = m.clone()
            if order == "ours first":
                m.set_model_attn1_replace(halve, *address)
            assert torch.equal(sample(m), plain), order
    alone = model.clone()
    alone.set_model_attn1_replace(halve, *layer.address)
    assert not torch.equal(sample(alone), plain)


@BOTH
def test_patches_of_a_higher_rank_see_q_k_v_first_whatever_the_order_of_nodes(kind):
    model, calls = make(kind), []
    layer = attention_layers(model)[3]

    def named(name):
        def attend(q, k, v, site):
            calls.append(name)
            return site.inner(q, k, v)

        return lambda call: call.run(options=unet.with_attention(call.options, [layer], attend))

    for order in (("inner", 8), ("outer", 5)), (("outer", 5), ("inner", 8)):
        m = model.clone()
        for name, rank in order:
            unet.attach(m, name, named(name), rank=rank)
        calls.clear()
        sample(m, sigmas=torch.tensor([1.0, 0.0]))
        assert calls == ["inner", "outer"]


@BOTH
def test_reading_inside_a_run_equals_reading_alone_and_skips_other_patches(kind):
    model = make(kind)
    chosen = pick_layers(model, "5, 12")
    other, cond, found = latents(3, seed=4), conditioning(model, seed=6), []

    def loud(call):
        attend = lambda q, k, v, site: site.inner(q, k, v) * 7  # noqa: E731
        return call.run(options=unet.with_attention(call.options, attention_layers(model), attend))

    def reading(call):
        given = host.conditions(model, cond, other, call.sigma)
        found.append(call.read(other, given, chosen, "qkv"))
        return call.run()

    m = model.clone()
    unet.attach(m, "loud", loud, rank=2)
    unet.attach(m, "reading", reading, rank=5)
    unet.attach(m, "louder", loud, rank=8)
    sample(m, cfg=3.0, sigmas=torch.tensor([2.0, 0.0]))
    with host.loaded(model) as base:
        alone = unet.capture(base, other, 2.0, host.conditions(base, cond, other), chosen, "qkv")
    for layer in chosen:
        for name in "qkv":
            inside, outside = (getattr(f[layer.number], name) for f in (found[0], alone))
            torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)


@BOTH
def test_merged_tokens_raise_an_error(kind):
    model = make(kind).clone()
    model.set_model_attn1_patch(lambda n, k, v, extra: (n[:, ::2], k, v))
    attend = lambda q, k, v, site: site.inner(q, k, v)  # noqa: E731
    first = attention_layers(model)[:1]
    unet.attach(
        model, "test", lambda call: call.run(options=unet.with_attention(call.options, first, attend))
    )
    with pytest.raises(RuntimeError, match="Token Merging"):
        sample(model)
