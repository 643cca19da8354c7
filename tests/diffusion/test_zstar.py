"""Z*: the equations in a model's layers, one style for all frames, and what "off" is."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import attention_layers, network

from .attention_tools import (
    BOTH,
    FREE,
    INSIDE,
    SIZE,
    counted,
    fingerprint,
    heads,
    latents,
    levels,
    make,
    same,
    sample,
    softmax_of,
    trajectory,
    zstar,
)
from .tiny import conditioning


@BOTH
@pytest.mark.parametrize("mix", ["reweight", "swap", "add"])
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_layer_computes_the_papers_equation(kind, layout, mix):
    """What goes into `to_out`, against eqs. 12, 7 and 8 with the style's k and v read on their own."""
    model = make(kind, layout)
    layer = attention_layers(model)[-2]
    style = trajectory(model)
    sigma = float(levels(model)[1])
    with host.loaded(model) as base:
        given = host.conditions(base, style.conditioning, latents(), sigma)
        held = unet.capture(base, style.at(sigma), sigma, given, [layer], "kv")[layer.number]
    seen = {}
    attn = network(model).get_submodule(layer.path)
    hooks = [
        getattr(attn, f"to_{n}").register_forward_hook(lambda m, a, out, n=n: seen.update({n: out}))
        for n in "qkv"
    ]
    hooks.append(attn.to_out.register_forward_pre_hook(lambda m, args: seen.update(out=args[0])))
    patched = zstar(model, style, layers=str(layer.number), start_percent=0.0, mix=mix, add_weight=0.3)
    sample(patched, frames=3, sigmas=torch.tensor([sigma, 0.0]))
    for hook in hooks:
        hook.remove()
    q, k, v, out = (heads(seen[n], layer.heads) for n in ("q", "k", "v", "out"))
    k_s, v_s = (heads(t, layer.heads) for t in (held.k, held.v))
    root = q.shape[-1] ** 0.5
    to_style, to_own = q @ k_s.transpose(-1, -2) / root, q @ k.transpose(-1, -2) / root
    values = torch.cat([v_s.expand(3, -1, -1, -1), v], dim=2)
    expected = {
        "reweight": lambda: softmax_of(torch.cat([1.2 * to_style, to_own], dim=-1), values),
        "swap": lambda: softmax_of(to_style, v_s),
        "add": lambda: 0.3 * softmax_of(to_style, v_s) + 0.7 * softmax_of(to_own, v),
    }[mix]()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


OFF = [
    pytest.param({"layers": "none"}, id="no layers"),
    pytest.param({"start_percent": 0.5, "end_percent": 0.5}, id="an empty range"),
    pytest.param({"start_percent": 0.9, "end_percent": 0.2}, id="a range that ends before it starts"),
    pytest.param({"mix": "add", "add_weight": 0.0}, id="a weight of 0 in the sum"),
    pytest.param({"style_mask": torch.zeros(1, 24, 32)}, id="a black style mask"),
    pytest.param({"content_mask": torch.zeros(1, 24, 32)}, id="a black content mask"),
]


@pytest.mark.parametrize("settings", OFF)
def test_off_gives_the_model_back(settings):
    model = make("comfy" if INSIDE else "tiny")
    assert zstar(model, trajectory(model), **settings) is model


@BOTH
def test_out_of_range_nothing_happens(kind):
    model = make(kind)
    with counted(model) as rows:
        result = sample(zstar(model, trajectory(model), start_percent=0.95), sigmas=levels(model))
    assert rows == [2, 2, 2]
    assert torch.equal(result, sample(model))


@BOTH
def test_close_to_off_is_close_to_the_plain_result_and_on_is_far(kind):
    model = make(kind)
    style, plain = trajectory(model), sample(model)
    far = lambda **s: (sample(zstar(model, style, **FREE, **s)) - plain).norm() / plain.norm()  # noqa: E731
    on = far()
    assert on > 0.005
    assert far(mix="add", add_weight=0.01) < 0.05 * far(mix="add", add_weight=1.0)
    assert far(content_mask=torch.full((1, 24, 32), 0.01)) < 0.05 * on
    assert far(style_mask=torch.full((1, 24, 32), 1e-4)) < 0.05 * on


@BOTH
def test_a_white_mask_is_no_mask_and_content_masks_belong_to_their_frames(kind):
    model = make(kind)
    style = trajectory(model)
    full = sample(zstar(model, style, **FREE), frames=3)
    white = sample(zstar(model, style, content_mask=torch.ones(1, 24, 32), **FREE), frames=3)
    torch.testing.assert_close(white, full, rtol=1e-4, atol=1e-4)
    shown = sample(zstar(model, style, style_mask=torch.ones(1, 24, 32), **FREE), frames=3)
    assert torch.equal(shown, full)
    per_frame = torch.stack([torch.ones(24, 32), torch.zeros(24, 32), torch.ones(24, 32)])
    (split,) = FramesPerCall().patch(zstar(model, style, content_mask=per_frame, **FREE), 2)
    result, plain = sample(split, frames=3, cfg=2.0), sample(model, frames=3, cfg=2.0)
    full = sample(zstar(model, style, **FREE), frames=3, cfg=2.0)
    torch.testing.assert_close(result[1], plain[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result[[0, 2]], full[[0, 2]], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="content mask has 2 frames"):
        sample(zstar(model, style, content_mask=per_frame[:2], **FREE), frames=3)


@BOTH
def test_a_style_mask_shows_a_part_of_the_picture(kind):
    """The upper half of a style whose mask is white above equals a style that is only that half."""
    model = make(kind)
    layer = attention_layers(model)[15]
    style, sigma = trajectory(model), float(levels(model)[0])
    mask = torch.zeros(1, 24, 32)
    mask[:, :12] = 1
    seen = []
    hook = (
        network(model)
        .get_submodule(layer.path)
        .to_out.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    )
    sample(
        zstar(model, style, layers="15", start_percent=0.0, style_mask=mask),
        sigmas=torch.tensor([sigma, 0.0]),
    )
    hook.remove()
    with host.loaded(model) as base:
        given = host.conditions(base, style.conditioning, latents(), sigma)
        held = unet.capture(base, style.at(sigma), sigma, given, [layer], "kv")[15]
        z = latents(2) * sigma / (1 + sigma**2) ** 0.5
        own = unet.capture(
            base, z, sigma, host.conditions(base, conditioning(model, seed=1), z), [layer], "qkv"
        )[15]
    upper = SIZE[0] // 2 * SIZE[1]
    k_s, v_s = (heads(t, layer.heads)[:, :, :upper] for t in (held.k, held.v))
    q, k, v = (heads(getattr(own, n), layer.heads) for n in "qkv")
    logits = torch.cat([1.2 * q @ k_s.transpose(-1, -2), q @ k.transpose(-1, -2)], -1) / q.shape[-1] ** 0.5
    expected = softmax_of(logits, torch.cat([v_s.expand(2, -1, -1, -1), v], 2))
    torch.testing.assert_close(heads(seen[-1], layer.heads), expected, rtol=1e-3, atol=1e-4)


@BOTH
def test_several_style_pictures_are_used_together(kind):
    model = make(kind)
    one, two = trajectory(model), trajectory(model, frames=2, seed=10)
    twice = trajectory(model)
    twice.latents = twice.latents.repeat(1, 2, 1, 1, 1)
    swap = {**FREE, "mix": "swap"}
    torch.testing.assert_close(
        sample(zstar(model, twice, **swap)), sample(zstar(model, one, **swap)), rtol=1e-4, atol=1e-4
    )
    assert (sample(zstar(model, two, **swap)) - sample(zstar(model, one, **swap))).abs().max() > 1e-3
    with pytest.raises(ValueError, match="style mask has 3 pictures, the style 2"):
        sample(zstar(model, two, style_mask=torch.rand(3, 24, 32), **FREE))


@BOTH
def test_frames_together_and_one_by_one_agree_and_the_model_is_untouched(kind):
    model = make(kind)
    before = fingerprint(model)
    node = zstar(model, trajectory(model), **FREE)
    start = latents(3) * float(levels(model)[0])
    together = sample(node, latent=start, cfg=2.0)
    apart = torch.cat([sample(node, latent=frame[None], cfg=2.0) for frame in start])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(node, latent=start, cfg=2.0), together)  # queued twice
    assert same(fingerprint(model), before)


@BOTH
def test_the_style_branch_looks_back_at_the_content(kind):
    """style_branch_scale: both directions of eq. 12 in one layer, row by row, output of the style dropped."""
    model = make(kind)
    layer = attention_layers(model)[12]
    style, sigma, seen = trajectory(model), float(levels(model)[1]), {}
    attn = network(model).get_submodule(layer.path)
    hooks = [
        getattr(attn, f"to_{n}").register_forward_hook(lambda m, a, out, n=n: seen.update({n: out}))
        for n in "qkv"
    ]
    hooks.append(attn.to_out.register_forward_pre_hook(lambda m, args: seen.update(out=args[0])))
    settings = {"layers": "12", "start_percent": 0.0, "style_branch_scale": 1.5}
    with counted(model) as rows:
        sample(zstar(model, style, **settings), frames=2, cfg=3.0, sigmas=torch.tensor([sigma, 0.0]))
    for hook in hooks:
        hook.remove()
    assert rows == [8]
    q, k, v, out = (heads(seen[n], layer.heads) for n in ("q", "k", "v", "out"))
    for row in range(8):
        partner, scale = (row + 4, 1.5) if row < 4 else (row - 4, 1.2)
        logits = torch.cat(
            [scale * q[row] @ k[partner].transpose(-1, -2), q[row] @ k[row].transpose(-1, -2)], -1
        )
        expected = softmax_of(logits / q.shape[-1] ** 0.5, torch.cat([v[partner], v[row]], 1))
        torch.testing.assert_close(out[row], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one style picture of the content's size"):
        sample(zstar(model, trajectory(model, frames=2), **settings))


@BOTH
def test_content_pull_under_euler_is_the_official_overwriting_of_latents(kind):
    model = make(kind)
    content, sigmas = trajectory(model, frames=2, seed=20), levels(model, 4)
    start = latents(2) * float(sigmas[0])

    def overwriting(denoise, x, sigmas):
        for i in range(len(sigmas) - 1):
            s, following = sigmas[i], sigmas[i + 1]
            x = 0.9 * x + 0.1 * content.at(s) * (1 + s**2) ** 0.5
            x = x + (following - s) * (x - denoise(x, s)) / s
        return x

    node = zstar(model, trajectory(model), layers="none", content=content, content_pull=0.1)
    pulled = sample(node, latent=start, sigmas=sigmas)
    torch.testing.assert_close(
        pulled, sample(model, latent=start, sigmas=sigmas, function=overwriting), rtol=1e-4, atol=1e-4
    )
    assert (pulled - sample(model, latent=start, sigmas=sigmas)).norm() > 1e-2 * pulled.norm()
    with pytest.raises(ValueError, match="connect `content`"):
        zstar(model, trajectory(model), content_pull=0.1)
    other = trajectory(make(kind, "sdxl"))
    with pytest.raises(ValueError, match="sdxl model, this model is sd1"):
        zstar(model, trajectory(model), content=other, content_pull=0.1)


@BOTH
def test_a_trajectory_of_another_model_raises_an_error(kind):
    model, other = make(kind), make(kind, "sdxl")
    with pytest.raises(ValueError, match="sdxl model, this model is sd1"):
        zstar(model, trajectory(other))


@BOTH
def test_heun_evaluates_between_steps_and_still_gets_its_style(kind):
    """Seven calls in four steps; a level that is visited twice in a row is read once."""

    def heun(denoise, x, sigmas):
        for i in range(len(sigmas) - 1):
            s, t = sigmas[i], sigmas[i + 1]
            slope = (x - denoise(x, s)) / s
            guess = x + slope * (t - s)
            if t > 0:
                slope = (slope + (guess - denoise(guess, t)) / t) / 2
            x = x + slope * (t - s)
        return x

    model = make(kind)
    with counted(model) as rows:
        sample(zstar(model, trajectory(model), **FREE), function=heun, sigmas=levels(model, 4))
    assert rows.count(2) == 7 and rows.count(1) == 4


@BOTH
def test_control_reaches_content_rows_only(kind):
    """With a style row per content row: ControlNet changes the content's keys, and not the style's."""
    model = make(kind)
    layer = attention_layers(model)[12]
    style, sigma = trajectory(model), float(levels(model)[1])
    patched = zstar(model, style, layers="12", start_percent=0.0, style_branch_scale=1.5)
    x = latents(2) * sigma
    control = {"output": [None, torch.ones(2, 128, 2, 2)], "input": []}
    keys = network(model).get_submodule(layer.path).to_k

    def run(control):
        seen = []
        hook = keys.register_forward_hook(lambda m, a, out: seen.append(out))
        with host.loaded(patched) as base:
            given = {**host.conditions(base, conditioning(model), x), "control": control}
            host.evaluate(base, x, sigma, given, host.transformer_options(patched, torch.tensor([sigma])))
        hook.remove()
        return seen[0]

    with_control, without = run({kind: list(outputs) for kind, outputs in control.items()}), run(None)
    assert len(with_control) == 4
    torch.testing.assert_close(with_control[:2], without[:2], rtol=1e-4, atol=1e-4)
    assert (with_control[2:] - without[2:]).abs().max() > 1e-2
    assert control["output"][1].shape[0] == 2 and control["output"][1].eq(1).all()
