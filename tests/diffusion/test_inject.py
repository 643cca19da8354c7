"""Injection by the most literal code there is: forward hooks that copy a source's outputs into other rows."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.nodes_inject import Inject
from reelbrush.nodes.diffusion.patching.layers import decoder_blocks, network

from .attention_tools import (
    BOTH,
    INSIDE,
    counted,
    fingerprint,
    latents,
    levels,
    make,
    same,
    sample,
    trajectory,
    zstar,
)
from .lora_tools import apply, merged, random_lora, soft_masks, two
from .tiny import conditioning

HERE = "comfy" if INSIDE else "tiny"
PAPER = {
    "feature_blocks": "4-11",
    "attention_blocks": "all",
    "feature_end": 0.6,
    "attention_end": 0.5,
    "self_attention": True,
    "cross_attention": True,
    "blend": "replace",
}
ALWAYS = {"feature_end": 1.0, "attention_end": 1.0}
OFFICIAL = {"feature_blocks": "4", "attention_blocks": "4-11", "cross_attention": False, "blend": "fade"}


def inject(model, content, **changes):
    return Inject().patch(model, content, **{**PAPER, **changes})[0]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def denoised(model, x, sigma, **more):
    return sample(model, latent=x, sigmas=torch.tensor([float(sigma), 0.0]), **more)


def paths(model, blocks, features, kinds):
    """Modules whose output is injected: convolutions of blocks, to_q and to_k beside them."""
    every, found = decoder_blocks(model), []
    for number in features:
        found.append((f"{every[number].path}.out_layers.3", "features"))
    for number in blocks:
        for layer in every[number].layers:
            base = layer.path.removesuffix("attn1")
            found += [(f"{base}{kind}.{p}", "attention") for kind in kinds for p in ("to_q", "to_k")]
    return found


class Literal:
    """The source's module outputs kept, then put over those of other rows, by forward hooks."""

    def __init__(self, model, content, found):
        self.model, self.content, self.found = model, content, found

    def run(self, sampler, sigma, rate=1.0, rows=slice(None)):
        """`sampler()` with everything injected into its rows `rows`."""
        net, kept = network(self.model), {}
        modules = [(net.get_submodule(path), path, what) for path, what in self.found]
        hooks = [
            m.register_forward_hook(lambda m, a, out, p=p: kept.update({p: out.clone()}))
            for m, p, _ in modules
        ]
        with host.loaded(self.model) as base:
            z = self.content.at(sigma)
            given = host.conditions(base, self.content.conditioning, z, sigma)
            host.evaluate(base, z, sigma, given, host.transformer_options(self.model, torch.tensor([sigma])))
        for hook in hooks:
            hook.remove()

        def over(module, args, out, path, what):
            source, out = kept[path], out.clone()
            mine = out[rows].unflatten(0, (-1, len(source)))
            mine.copy_(source if what == "features" else source * rate + mine * (1 - rate))
            return out

        hooks = [
            m.register_forward_hook(lambda m, a, out, p=p, w=w: over(m, a, out, p, w)) for m, p, w in modules
        ]
        try:
            return sampler()
        finally:
            for hook in hooks:
                hook.remove()


BOTH_KINDS = ("attn1", "attn2")
VARIANTS = [
    pytest.param({}, range(4, 12), range(12), BOTH_KINDS, id="the paper's"),
    pytest.param(OFFICIAL, [4], range(4, 12), ("attn1",), id="the official code's"),
    pytest.param({"feature_blocks": "none"}, [], range(12), BOTH_KINDS, id="attention only"),
    pytest.param(
        {"attention_blocks": "none", "feature_blocks": "0, 7"}, [0, 7], [], BOTH_KINDS, id="features"
    ),
    pytest.param(
        {"self_attention": False, "feature_blocks": "none"}, [], range(12), ("attn2",), id="cross-attention"
    ),
]


@BOTH
@pytest.mark.parametrize(("settings", "features", "blocks", "kinds"), VARIANTS)
def test_an_evaluation_is_what_forward_hooks_make_of_it(kind, settings, features, blocks, kinds):
    """Two frames, two sides, at a level where the official code fades."""
    model = make(kind)
    content = trajectory(model, frames=2, seed=20)
    sigma = float(model.model.model_sampling.sigmas[300])
    x = latents(2) * (1 + sigma**2) ** 0.5
    literal = Literal(model, content, paths(model, blocks, features, kinds))
    rate = 0.6 if settings.get("blend") == "fade" else 1.0
    expected = literal.run(lambda: denoised(model, x, sigma, cfg=3.0), sigma, rate)
    with counted(model) as rows:
        ours = denoised(inject(model, content, **{**ALWAYS, **settings}), x, sigma, cfg=3.0)
    assert rows == [2, 4]  # a source row per frame, then both sides
    assert relative(ours, expected) < 1e-5
    assert relative(denoised(model, x, sigma, cfg=3.0), expected) > 1e-3


@BOTH
def test_sdxl_and_sd2_are_injected_too(kind):
    for layout, found in (("sdxl", range(4, 9)), ("sd21", range(4, 12))):
        model = make(kind, layout)
        content = trajectory(model, frames=1, seed=20)
        sigma = float(model.model.model_sampling.sigmas[600])
        x = latents(1) * sigma
        settings = {**ALWAYS, "feature_blocks": f"4-{found[-1]}"}
        literal = Literal(model, content, paths(model, range(found[-1] + 1), found, BOTH_KINDS))
        expected = literal.run(lambda m=model, x=x, s=sigma: denoised(m, x, s), sigma)
        assert relative(denoised(inject(model, content, **settings), x, sigma), expected) < 1e-5


@BOTH
def test_thirty_and_twenty_five_of_fifty_steps(kind):
    """Stable Diffusion's 50 timesteps 981, 961, ... 1: rows of the source, and how long each thing is on."""
    model = make(kind)
    table = model.model.model_sampling.sigmas
    sigmas = torch.cat([table[torch.arange(981, 0, -20)], torch.zeros(1)])
    content = trajectory(model, seed=20, sigmas=sigmas)
    for settings, count in (({"attention_blocks": "none"}, 30), ({"feature_blocks": "none"}, 25)):
        short = {"feature_blocks": "4", "attention_blocks": "4", **settings}
        with counted(model) as rows:
            sample(inject(model, content, **short), 2, sigmas=sigmas)
        assert rows.count(1) == count and rows.count(2) == 50
    close = inject(model, content, feature_end=0.6)
    far = [
        relative(denoised(close, latents(1) * s, s), denoised(model, latents(1) * s, s))
        for s in table[[401, 381]]
    ]
    assert far[0] > 1e-3 and far[1] == 0.0


# Decoder levels and the blocks in them, in diffusers' numbers. The official code (pnp_utils_combine.py):
# up_blocks[1].resnets[1]; attn1 of up_blocks[1].attentions[1, 2] and of all in up_blocks 2 and 3. The paper:
# features of layers 4-11, attention of all decoder layers. SDXL's up_blocks[0] is Stable Diffusion's
# up_blocks[1]: the same resolution, as the lowest one is missing.
EVERY = [(level, i) for level in range(4) for i in range(3)]
NAMED = {"paper": (EVERY[4:], EVERY, BOTH_KINDS), "official code": ([(1, 1)], EVERY[4:], ("attn1",))}


@BOTH
@pytest.mark.parametrize("preset", NAMED)
@pytest.mark.parametrize(("layout", "missing"), [("sd15", 0), ("sd21", 0), ("sdxl", 1)])
def test_a_preset_injects_what_paper_and_code_name_for_each_family(kind, layout, missing, preset):
    """At 30 % of the sampling both kinds, at 55 % only features, at 70 % nothing; the other inputs do not
    matter."""
    model = make(kind, layout)
    content = trajectory(model, frames=1, seed=20)
    *places, kinds = NAMED[preset]
    features, blocks = ([3 * (a - missing) + b for a, b in chosen if a >= missing] for chosen in places)
    ours = inject(model, content, preset=preset, feature_blocks="0", attention_end=1.0, blend="fade")

    def seen(place, *settings):
        sigma = float(model.model.model_sampling.sigmas[place])
        x = latents(1) * (1 + sigma**2) ** 0.5
        literal = Literal(model, content, paths(model, *settings))
        return denoised(ours, x, sigma), literal.run(lambda: denoised(model, x, sigma), sigma)

    early, expected = seen(700, blocks, features, kinds)
    assert relative(early, expected) < 1e-5
    other = inject(model, content, preset=next(name for name in NAMED if name != preset))
    sigma = float(model.model.model_sampling.sigmas[700])
    assert relative(denoised(other, latents(1) * (1 + sigma**2) ** 0.5, sigma), early) > 1e-3
    late, expected = seen(450, [], features, kinds)
    assert relative(late, expected) < 1e-5
    end, plain = seen(300, [], [], kinds)
    assert torch.equal(end, plain) and relative(late, plain) > 1e-3


OFF = [
    pytest.param({"feature_end": 0.0, "attention_end": 0.0}, id="ends of 0"),
    pytest.param({"feature_blocks": "none", "attention_blocks": "none"}, id="no blocks"),
    pytest.param(
        {"feature_blocks": "none", "self_attention": False, "cross_attention": False}, id="nothing chosen"
    ),
]


@pytest.mark.parametrize("settings", OFF)
def test_off_gives_the_model_back(settings):
    model = make(HERE)
    assert inject(model, trajectory(model), **settings) is model


@BOTH
def test_the_contents_own_noise_with_its_own_text_comes_out_as_without_injection(kind):
    """Injected values equal the values that they replace."""
    model = make(kind)
    sigmas = levels(model, 3)
    content = trajectory(model, frames=2, seed=20, sigmas=sigmas)
    sigma = float(sigmas[1])
    x = content.at(sigma) * (1 + sigma**2) ** 0.5
    found = []
    for made in (inject(model, content, **ALWAYS), model):
        with host.loaded(made) as base:
            given = host.conditions(base, content.conditioning, x, sigma)
            options = host.transformer_options(made, torch.tensor([sigma]))
            found.append(host.evaluate(base, content.at(sigma), sigma, given, options))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@BOTH
def test_three_regions_with_guidance_are_nine_rows(kind):
    """2 sides x (3 regions + base) and one source row per frame; seven where masks cover everything."""
    model, (one, other) = make(kind), two(kind)
    content = trajectory(model, seed=20)
    third = torch.zeros(1, 24, 32)
    third[:, :12, :8] = 1
    masks = [third, third.roll(8, 2), third.roll(16, 2)]

    def rows(masks, **settings):
        chain = model
        for lora, mask in zip((one, other, one), masks, strict=True):
            chain = apply(chain, lora, mask=mask)
        with counted(model) as seen:
            sample(inject(chain, content, **settings), 1, cfg=3.0, sigmas=levels(model, 1))
        return seen

    assert rows(masks) == [1, 8]
    assert rows([masks[0], masks[1], 1 - masks[0] - masks[1]]) == [1, 6]


@BOTH
def test_regions_are_injected_and_the_outside_is_not_until_it_is_asked_for(kind):
    """Eq. 7: injection is in the LoRAs' terms; the source is the original model's."""
    model, (one, other) = make(kind), two(kind)
    content = trajectory(model, frames=2, seed=20)
    sigma = float(model.model.model_sampling.sigmas[700])
    x, masks = latents(2) * sigma, soft_masks(2)
    m = [mask.view(2, 12, 2, 16, 2).mean((2, 4))[:, None] for mask in masks]
    total = (m[0] + m[1]).clamp_min(1)
    weights = [m[0] / total, m[1] / total]
    weights.append(1 - weights[0] - weights[1])
    every = paths(model, range(12), range(4, 12), BOTH_KINDS)

    def with_source_of(base, target):
        """Injected from `base` into the rows of `target`, another model with the same modules."""
        literal = Literal(base, content, every)
        kept = {}
        hooks = [
            network(base)
            .get_submodule(p)
            .register_forward_hook(lambda m, a, out, p=p: kept.update({p: out.clone()}))
            for p, _ in every
        ]
        literal.run(lambda: None, sigma)
        for hook in hooks:
            hook.remove()
        hooks = [
            network(target)
            .get_submodule(p)
            .register_forward_hook(
                lambda m, a, out, p=p: kept[p].repeat(len(out) // 2, *[1] * (out.ndim - 1))
            )
            for p, _ in every
        ]
        try:
            return denoised(target, x, sigma, cfg=3.0)
        finally:
            for hook in hooks:
                hook.remove()

    parts = [with_source_of(model, merged(kind, [(lora, 1.0)])) for lora in (one, other)]
    plain = denoised(model, x, sigma, cfg=3.0)
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    expected = sum(w * p for w, p in zip(weights, [*parts, plain], strict=True))
    ours = denoised(inject(chain, content), x, sigma, cfg=3.0)
    assert relative(ours, expected) < 1e-4
    base = with_source_of(model, merged(kind, []))
    all_injected = sum(w * p for w, p in zip(weights, [*parts, base], strict=True))
    assert relative(all_injected, expected) > 50 * 1e-4
    everywhere = inject(chain, content, outside_end=1.0)
    assert relative(denoised(everywhere, x, sigma, cfg=3.0), all_injected) < 1e-4
    # the order of the nodes does not matter
    before = apply(apply(inject(model, content), one, mask=masks[0]), other, mask=masks[1])
    assert torch.equal(denoised(before, x, sigma, cfg=3.0), ours)


@BOTH
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_the_official_codes_preset_lets_more_of_a_lora_arrive_than_the_papers(kind, layout):
    """Random weights: only whether the presets differ in this direction. Seen: 0.04 against 0.14 of SD1.5's
    layout, 0.03 against 0.11 of SDXL's."""
    model = make(kind, layout)
    table = model.model.model_sampling.sigmas
    sigmas = torch.cat([table[torch.arange(901, 0, -100)], torch.zeros(1)])
    content = trajectory(model, seed=21, sigmas=sigmas)
    styled = apply(model, random_lora(model, 1))
    start = content.at(float(sigmas[0])) * (1 + float(sigmas[0]) ** 2) ** 0.5

    def run(node):
        return sample(node, sigmas=sigmas, latent=start, cfg=3.0)

    style = run(styled)
    paper, official = (relative(run(inject(styled, content, preset=p)), style) for p in NAMED)
    assert official < 0.5 * paper


@BOTH
def test_the_official_codes_preset_injects_the_outside_until_the_end_and_the_papers_never(kind):
    model, (one, other) = make(kind), two(kind)
    content, masks = trajectory(model, frames=2, seed=20), soft_masks(2)
    chain = apply(apply(model, one, mask=masks[0]), other, mask=masks[1])
    sigma = float(model.model.model_sampling.sigmas[300])
    x = latents(2) * (1 + sigma**2) ** 0.5
    plain, paper, official, literal = (
        denoised(node, x, sigma, cfg=3.0)
        for node in (
            chain,
            inject(chain, content, preset="paper"),
            inject(chain, content, preset="official code"),
            inject(chain, content, **OFFICIAL, outside_end=1.0),
        )
    )
    assert torch.equal(paper, plain)
    assert torch.equal(official, literal) and relative(official, plain) > 1e-3


@BOTH
def test_sixteen_frames_in_chunks_and_at_once_agree_and_a_level_is_read_once(kind):
    model, (one, other) = make(kind), two(kind)
    content = trajectory(model, frames=16, seed=20)
    masks = [torch.zeros(16, 24, 32) for _ in range(2)]
    for i in range(16):
        masks[0][i, :, : 2 * i] = 1
        masks[1][i, 6:18, max(0, 24 - 2 * i) :] = 0.5
    chain = inject(apply(apply(model, one, mask=masks[0]), other, mask=masks[1]), content)
    sigmas = levels(model, 2)
    whole = sample(chain, 16, sigmas=sigmas, cfg=2.0)
    for size in (1, 5):
        (split,) = FramesPerCall().patch(chain, size)
        torch.testing.assert_close(sample(split, 16, sigmas=sigmas, cfg=2.0), whole, rtol=1e-4, atol=1e-4)
    with counted(model) as rows:
        sample(split, 16, sigmas=sigmas[[0, 2]], cfg=2.0)
    assert rows[::2] == [5, 5, 5, 1]  # one source row per frame, whatever the regions and sides

    def twice(denoise, x, sigmas):
        return denoise(denoise(x, sigmas[0]) + x, sigmas[0])

    with counted(model) as rows:
        sample(inject(model, content), 16, sigmas=sigmas, function=twice)
    assert rows == [16, 16, 16]


@BOTH
def test_beside_z_star_and_temporal_attention(kind):
    """Z* adds its style in front of injected keys; anchors are injected frames; chunks agree."""
    model = make(kind)
    content, style = trajectory(model, frames=4, seed=20), trajectory(model, seed=30)
    node = inject(model, content, feature_blocks="4")
    node = zstar(node, style, layers="10-15", start_percent=0.0)
    node = TemporalAttention().patch(node, "first + previous", "last 6", 0.0, 1.0, 1.0)[0]
    sigmas = levels(model, 2)
    whole = sample(node, 4, sigmas=sigmas)
    (split,) = FramesPerCall().patch(node, 2)
    torch.testing.assert_close(sample(split, 4, sigmas=sigmas), whole, rtol=1e-4, atol=1e-4)
    # the other order of nodes is the same model
    other = TemporalAttention().patch(model, "first + previous", "last 6", 0.0, 1.0, 1.0)[0]
    other = zstar(other, style, layers="10-15", start_percent=0.0)
    assert torch.equal(sample(inject(other, content, feature_blocks="4"), 4, sigmas=sigmas), whole)
    assert relative(sample(model, 4, sigmas=sigmas), whole) > 0.01


@BOTH
def test_texts_of_other_lengths_are_read_again_from_their_start(kind):
    model = make(kind)
    content = trajectory(model, seed=20)
    twice = trajectory(model, seed=20)
    twice.conditioning = [[content.conditioning[0][0].repeat(1, 2, 1), {}]]
    settings = {**ALWAYS, "feature_blocks": "none", "self_attention": False}
    x, sigma = latents(1) * 2.0, 2.0
    one = denoised(inject(model, content, **settings), x, sigma)
    torch.testing.assert_close(
        denoised(inject(model, twice, **settings), x, sigma), one, rtol=1e-4, atol=1e-4
    )


@BOTH
def test_two_injections_may_stand_on_one_model(kind):
    """Features by one node and attention by another are both by one."""
    model = make(kind)
    content = trajectory(model, frames=2, seed=20)
    both = sample(inject(model, content), cfg=2.0)
    first = inject(model, content, attention_blocks="none")
    second = inject(first, content, feature_blocks="none")
    torch.testing.assert_close(sample(second, cfg=2.0), both, rtol=1e-4, atol=1e-4)


@BOTH
def test_queued_twice_and_the_base_model_is_as_before(kind):
    model = make(kind)
    before, plain = fingerprint(model), sample(model)
    node = inject(model, trajectory(model, frames=2, seed=20))
    first = sample(node)
    assert torch.equal(sample(node), first) and relative(first, plain) > 1e-2
    assert torch.equal(sample(model), plain)
    after = fingerprint(model)
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert same(after, before) or kind == "comfy"  # ComfyUI puts `forward` back as an attribute


def test_wrong_inputs_raise_an_error():
    model = make(HERE)
    with pytest.raises(ValueError, match=r"no block 4-11 in this model.*blocks are 0\.\.8"):
        inject(make(HERE, "sdxl"), trajectory(make(HERE, "sdxl")))
    with pytest.raises(ValueError, match="preset is 'x': choose custom, paper, official code"):
        inject(model, trajectory(model), preset="x")
    with pytest.raises(ValueError, match="content trajectory has 2 frames, but frame 2 is sampled"):
        sample(inject(model, trajectory(model, frames=2)), frames=3)
    with pytest.raises(ValueError, match="connect an inversion of these latents"):
        sample(inject(model, trajectory(model, size=(8, 8))), frames=1)
    assert conditioning(model)[0][0].shape == (1, 77, 768)
