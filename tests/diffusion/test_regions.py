"""Style LoRAs per region: eq. 7 by models with merged weights, rows, chains, and what "off" is."""

import itertools
from dataclasses import replace

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora.file import LowRank
from reelbrush.nodes.diffusion.moving_mask import MovingMask
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import attention_layers, network
from reelbrush.nodes.diffusion.patching.rows import FRAMES, select
from reelbrush.nodes.video.lazy_video import LazyVideo

from . import tiny, tiny_sampling
from .attention_tools import (
    BOTH,
    INSIDE,
    SIZE,
    counted,
    denoised,
    fingerprint,
    latents,
    levels,
    make,
    relative,
    same,
    sample,
    trajectory,
    zstar,
)
from .lora_tools import OTHERS, apply, merged, random_lora, small, soft_masks, two
from .tiny import conditioning

HERE = "comfy" if INSIDE else "tiny"


@BOTH
@pytest.mark.parametrize("layout", ["sd15", "sd21", "sdxl"])
def test_eq_7_is_the_literal_sum_of_separately_patched_models(kind, layout):
    """Two LoRAs with soft, overlapping masks per frame, guidance on, four steps."""
    model, (one, other) = make(kind, layout), two(kind, layout)
    frames, sigmas = 2, levels(model, 4)
    masks = soft_masks(frames)
    apart = [merged(kind, [(one, 1.0)], layout), merged(kind, [(other, 0.7)], layout), model]
    m = [small(mask) for mask in masks]
    total = (m[0] + m[1]).clamp_min(1)
    weights = [m[0] / total, m[1] / total]
    weights.append(1 - weights[0] - weights[1])
    assert (m[0] + m[1] > 1.05).any() and all((w > 0.05).any() and (w < 1e-6).any() for w in weights)

    x = start = latents(frames) * float(sigmas[0])
    for s, following in itertools.pairwise(sigmas):
        x0 = sum(w * denoised(part, x, s, cfg=3.0) for w, part in zip(weights, apart, strict=True))
        x = x + (following - s) * (x - x0) / s
    chain = apply(apply(model, one, mask=masks[0]), other, 0.7, mask=masks[1])
    ours = sample(chain, latent=start, sigmas=sigmas, cfg=3.0)
    off = sample(model, latent=start, sigmas=sigmas, cfg=3.0)
    assert relative(ours, x) < 1e-4
    assert relative(off, x) > 50 * 1e-4
    assert x.std() > 0.1


@BOTH
def test_a_lora_without_a_mask_is_the_merged_model_and_costs_no_rows(kind):
    model, (one, other) = make(kind), two(kind)
    chain = apply(apply(model, one), other, -0.5)
    with counted(model) as rows:
        ours = sample(chain, cfg=2.0)
    assert rows == [4, 4, 4]
    both = sample(merged(kind, [(one, 1.0), (other, -0.5)]), cfg=2.0)
    assert relative(ours, both) < 1e-4 < 0.01 < relative(sample(model, cfg=2.0), both)
    white = apply(apply(model, one, mask=torch.ones(1, 24, 32)), other, -0.5)
    torch.testing.assert_close(sample(white, cfg=2.0), ours, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("layout", ["sd15", "sd21"])
def test_loras_of_other_trainers_change_more_than_attention(kind, layout):
    """Feed-forward layers, and the ways in and out of a transformer (1x1 convolutions on SD1.x)."""
    model, x = make(kind, layout), latents(2) * 2.0
    lora = random_lora(model, 3, projections=OTHERS)
    ours = denoised(apply(model, lora, 0.5), x, 2.0)
    assert relative(ours, denoised(merged(kind, [(lora, 0.5)], layout), x, 2.0)) < 1e-5
    assert relative(denoised(model, x, 2.0), ours) > 1e-3


@BOTH
def test_gradients_flow_through_regions_made_in_inference_mode(kind):
    """As nodes make them, and as Null-Text Optimization and the distillation samplers use them."""
    with torch.inference_mode():
        model = make(kind)
        lora = random_lora(model, 4)
        chain = host.differentiable(apply(model, lora, mask=soft_masks(1)[0]))
    with host.gradients(), host.loaded(chain) as base:
        z = latents(1).requires_grad_()
        given = {k: v.clone() for k, v in host.conditions(base, conditioning(model), z.detach()).items()}
        out = host.evaluate(base, z, 2.0, given, host.transformer_options(chain, torch.tensor([2.0])))
        (slope,) = torch.autograd.grad(out.square().sum(), z)
    assert slope.isfinite().all() and slope.abs().max() > 0


@BOTH
def test_rows_that_no_mask_needs_are_not_computed(kind):
    """Two frames, two sides: four rows per region and four for the base model, in one call."""
    model, (one, other) = make(kind), two(kind)
    left = torch.zeros(1, 24, 32)
    left[..., :16] = 1

    def rows(*regions):
        chain = model
        for lora, mask in regions:
            chain = apply(chain, lora, mask=mask)
        with counted(model) as seen:
            sample(chain, cfg=2.0, sigmas=levels(model, 1))
        return seen

    assert rows((one, left)) == [8]
    assert rows((one, left), (other, left)) == [12]
    assert rows((one, left), (other, 1 - left)) == [8]  # together they cover everything
    assert rows((one, left), (other, torch.ones(1, 24, 32))) == [8]
    assert rows((one, left), (other, None)) == [8]
    assert rows((one, left), (one, left * 0)) == [8]
    per_frame = torch.cat([left * 0, left])
    assert rows((one, left), (other, per_frame)) == [12]
    (split,) = FramesPerCall().patch(apply(apply(model, one, mask=left), other, mask=per_frame), 1)
    with counted(model) as seen:
        sample(split, cfg=2.0, sigmas=levels(model, 1))
    assert seen == [4, 6]  # no second region in the first frame's call


OFF = [
    pytest.param(0.0, {}, id="strength 0"),
    pytest.param(0.0, {"mask": torch.ones(1, 24, 32)}, id="strength 0 with a mask"),
    pytest.param(1.0, {"mask": torch.zeros(2, 24, 32)}, id="a black mask"),
]


@pytest.mark.parametrize(("strength", "more"), OFF)
def test_off_gives_the_model_back(strength, more):
    model = make(HERE)
    assert apply(model, two(HERE)[0], strength, **more) is model


@BOTH
def test_close_to_off_is_close_to_the_plain_result(kind):
    model, lora = make(kind), two(kind)[0]
    plain = sample(model)
    far = lambda **more: relative(sample(apply(model, lora, **more)), plain)  # noqa: E731
    on = far()
    assert on > 0.02
    assert far(strength=0.01) < 0.05 * on
    assert 0 < far(mask=torch.full((1, 24, 32), 0.01)) < 0.05 * on


@BOTH
def test_where_no_mask_is_an_evaluation_is_the_base_models_to_the_bit(kind):
    model, lora = make(kind), two(kind)[0]
    mask = torch.zeros(1, 24, 32)
    mask[..., 16:] = 1
    x = latents(2) * 3.0
    ours, plain = (denoised(m, x, 3.0) for m in (apply(model, lora, mask=mask), model))
    difference = (ours - plain).abs()
    assert difference[..., 8:].max() > 1e-2
    # rows in a larger batch may be multiplied in another order: the last bits of a float
    assert difference[..., :8].max() < 1e-5


@BOTH
def test_a_style_that_overflows_does_so_in_its_own_region_alone(kind):
    model, (one, _) = make(kind), two(kind)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1  # half of latents of 8x8
    sigma = levels(model, 4)[1]
    x = latents(1, size=(8, 8)) * float(sigma)
    broken = replace(one, weights={k: LowRank(p.down, p.up * float("inf")) for k, p in one.weights.items()})
    result, plain = denoised(apply(model, broken, mask=mask), x, sigma), denoised(model, x, sigma)
    assert result[..., :4].isnan().all()
    torch.testing.assert_close(result[..., 4:], plain[..., 4:])


@BOTH
def test_a_region_may_have_its_own_prompt_of_any_length(kind):
    model, (one, other) = make(kind), two(kind)
    masks, x, sigma = soft_masks(2), latents(2) * 2.0, 2.0
    own = conditioning(model, seed=9, tokens=154)
    chain = apply(apply(model, one, mask=masks[0], positive=own), other, mask=masks[1])
    m = [small(mask) for mask in masks]
    total = (m[0] + m[1]).clamp_min(1)
    weights = [m[0] / total, m[1] / total]
    first, second = merged(kind, [(one, 1.0)]), merged(kind, [(other, 1.0)])

    run = tiny_sampling.sample if isinstance(model, tiny.TinyPatcher) else host.sample
    step = (tiny_sampling.euler, model.model.process_latent_out(x), torch.tensor([sigma, 0.0]), own)
    parts = [
        model.model.process_latent_in(run(first, *step)),
        *(denoised(m, x, sigma) for m in (second, model)),
    ]
    weights.append(1 - weights[0] - weights[1])
    expected = sum(w * part for w, part in zip(weights, parts, strict=True))
    assert relative(denoised(chain, x, sigma), expected) < 1e-4
    without = denoised(apply(apply(model, one, mask=masks[0]), other, mask=masks[1]), x, sigma)
    assert relative(without, expected) > 50 * 1e-4


@BOTH
def test_moving_masks_of_sixteen_frames_in_chunks_and_at_once_agree(kind):
    """Overlap, empty frames and full ones among them; temporal anchors cross the chunks."""
    model, (one, other) = make(kind), two(kind)
    frames = 16
    masks = [torch.zeros(frames, 24, 32) for _ in range(2)]
    for i in range(frames):
        masks[0][i, :, : 2 * i] = 1
        masks[1][i, 6:18, max(0, 24 - 2 * i) : 30 - i] = 0.5
    masks[0][14:] = 1
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    chain = TemporalAttention().patch(chain, "first + previous", "last 6", 0.0, 1.0, 1.0)[0]
    sigmas = levels(model, 2)
    whole = sample(chain, frames, sigmas=sigmas, cfg=2.0)
    (split,) = FramesPerCall().patch(chain, 5)
    torch.testing.assert_close(sample(split, frames, sigmas=sigmas, cfg=2.0), whole, rtol=1e-4, atol=1e-4)
    assert relative(sample(model, frames, sigmas=sigmas, cfg=2.0), whole) > 0.01


@BOTH
def test_masks_from_a_video_are_those_of_the_same_frames(kind):
    """Frames as Sample Video asks for them: the first of the shot and a window, then the next window."""
    model, (one, _) = make(kind), two(kind)
    masks = (soft_masks(9)[0] * 255).round() / 255
    video = LazyVideo.from_frames(masks[..., None].expand(-1, -1, -1, 3), 12)
    still, moving = apply(model, one, mask=masks), apply(model, one, mask_video=video)
    for numbers in ((0, 3, 4, 5), (0, 6, 7, 8)):
        made = []
        for chain in (still, moving):
            clone = chain.clone()
            clone.model_options["transformer_options"] = {FRAMES: numbers}
            made.append(sample(clone, latent=latents(4)))
        torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="connect one of them"):
        apply(model, one, mask=masks, mask_video=video)
    single = MovingMask(video.trim(2, 1))
    torch.testing.assert_close(select(single, (7, 8), "mask"), masks[2:3])
    short = apply(model, one, mask_video=video.trim(0, 2)).clone()
    short.model_options["transformer_options"] = {FRAMES: (4, 5)}
    with pytest.raises(ValueError, match="region's mask has 2 frames"):
        sample(short, latent=latents(2))


@BOTH
def test_regions_that_do_not_fit_into_memory_together_run_apart(kind, monkeypatch):
    model, (one, other) = make(kind), two(kind)
    masks = soft_masks(2)
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    together = sample(chain, cfg=2.0)
    monkeypatch.setattr(host, "free_memory", lambda *_: 0)
    with counted(model) as rows:
        apart = sample(chain, cfg=2.0)
    assert max(rows) == 4 and len(rows) % 3 == 0
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


@BOTH
def test_controlnet_output_reaches_every_regions_rows(kind):
    """One evaluation with ControlNet's output given, against merged models with the same output."""
    model, (one, other) = make(kind), two(kind)
    masks, x, sigma = soft_masks(2), latents(2) * 2.0, 2.0
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    g = torch.Generator().manual_seed(5)
    outputs = [torch.randn(2, 128, 2, 2, generator=g), None]

    def run(model):
        control = {"output": list(outputs), "input": []}
        with host.loaded(model) as base:
            given = host.conditions(base, conditioning(model, seed=1), x)
            options = host.transformer_options(model, torch.tensor([sigma]))
            return host.evaluate(base, x / 5**0.5, sigma, {**given, "control": control}, options)

    m = [small(mask) for mask in masks]
    total = (m[0] + m[1]).clamp_min(1)
    weights = [m[0] / total, m[1] / total]
    weights.append(1 - weights[0] - weights[1])
    models = [merged(kind, [(one, 1.0)]), merged(kind, [(other, 1.0)]), model]
    expected = sum(w * run(m) for w, m in zip(weights, models, strict=True))
    assert relative(run(chain), expected) < 1e-4
    outputs = [None, None]
    assert relative(run(chain), expected) > 50 * 1e-4


@BOTH
def test_passes_that_only_read_see_no_style_lora(kind):
    """A Z* style is read through the original model, whatever LoRA its rows carry."""
    model, lora = make(kind), two(kind)[0]
    style, layer = trajectory(model), attention_layers(model)[12]
    seen = {}
    attn = network(model).get_submodule(layer.path)
    hook = attn.to_k.register_forward_hook(
        lambda m, a, out: seen.setdefault(len(out), []).append(out.clone())
    )

    def read(model):
        seen.clear()
        node = zstar(model, style, layers="12", start_percent=0.0)
        sample(node, frames=2, sigmas=levels(model, 1))
        return seen[1][0]

    plain, styled = read(model), read(apply(model, lora))
    hook.remove()
    assert torch.equal(plain, styled)
    assert unet.READING not in apply(model, lora).model_options["transformer_options"]


@BOTH
def test_queued_twice_and_the_base_model_is_as_before(kind):
    model, (one, other) = make(kind), two(kind)
    before, plain = fingerprint(model), sample(model)
    masks = soft_masks(2)
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    first = sample(chain)
    assert torch.equal(sample(chain), first)
    assert torch.equal(sample(model), plain)
    after = fingerprint(model)
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert same(after, before) or kind == "comfy"  # ComfyUI puts `forward` back as an attribute
    assert len(chain.wrappers["diffusion_model"]) == 2  # the regions and their RunningOptions


@BOTH
def test_a_shorter_chain_is_not_changed_by_a_longer_one(kind):
    model, (one, other) = make(kind), two(kind)
    masks = soft_masks(2)
    short = apply(model, one, mask=masks[0])
    before = sample(short)
    longer = apply(short, other, mask=masks[1])
    assert relative(sample(longer), before) > 1e-3
    assert torch.equal(sample(short), before)


def test_wrong_inputs_raise_an_error():
    model, (one, other) = make(HERE), two(HERE)
    with pytest.raises(ValueError, match="another base"):
        apply(make(HERE, "sdxl"), one)
    three = torch.rand(3, 24, 32)
    with pytest.raises(ValueError, match="region's mask has 3 frames, but frame 3 is sampled"):
        sample(apply(model, one, mask=three), frames=4)
    mask = torch.rand(1, 24, 32)
    first = apply(model, one, mask=mask, content=trajectory(model))
    with pytest.raises(ValueError, match="different contents"):
        apply(first, other, mask=mask, content=trajectory(model, seed=11))
    with pytest.raises(ValueError, match="connect an inversion of these latents"):
        sample(apply(model, one, mask=mask, content=trajectory(model, size=(8, 8))))
    foreign = trajectory(make(HERE, "sdxl"))
    with pytest.raises(ValueError, match="this model is sd1"):
        apply(model, one, mask=mask, content=foreign)
    assert SIZE == (12, 16) and random_lora(model, 1).weights.keys() == one.weights.keys()
