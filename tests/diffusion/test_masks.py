"""Masks from words: token positions, the map by slow literal code, a planted object, and wrong inputs."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion import masks
from reelbrush.nodes.diffusion.nodes_inject import PromptMask
from reelbrush.nodes.diffusion.patching.layers import attention_layers, network

from .attention_tools import BOTH, INSIDE, make, trajectory
from .small_clip import SmallClip
from .tiny import comfy_model, tiny_model

TEXT = "a deer on the grass, a red deer hut"


def test_words_are_found_among_the_tokens():
    clip = SmallClip()
    assert masks.positions(clip, TEXT, "deer") == [[2, 9]]  # 0 is the start token
    assert masks.positions(clip, TEXT, "red deer, grass") == [[8, 9], [5]]
    assert masks.positions(clip, "a deer", "") == [[1, 2]]
    assert masks.positions(SmallClip(pad=0, key="g"), TEXT, "hut") == [[10]]  # padded as SDXL's and SD2's are


def test_words_beyond_the_first_77_tokens_keep_their_place():
    text = " ".join(["word"] * 80) + " deer"
    assert masks.positions(SmallClip(), text, "deer") == [[77 + 1 + 5]]


@pytest.mark.parametrize("words", ["harbour", "deer grass", "deer, harbour", "!"])
def test_words_that_are_not_in_the_text_raise_an_error(words):
    with pytest.raises(ValueError, match="are not in the text"):
        masks.positions(SmallClip(), TEXT, words)


def softmax(logits):
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


SIZES = {32: (4, 8), 128: (8, 16)}


@BOTH
def test_the_map_is_what_its_formula_says(kind):
    """Two frames, two levels, two blocks of one size, one refinement, with everything read by forward
    hooks."""
    model = make(kind)
    content = trajectory(model, frames=2, seed=20, size=(8, 16))
    clip = SmallClip()
    text = clip.encode_from_tokens_scheduled(clip.tokenize(TEXT))
    chosen = [attention_layers(model)[i] for i in (10, 11)]
    sigmas = [3.0, 0.7]
    expected = []
    for frame in range(2):
        total = 0
        for sigma in sigmas:
            seen = {}
            hooks = [
                network(model).get_submodule(f"{layer.path.removesuffix('1')}{n}.{p}").register_forward_hook(
                    lambda m, a, out, seen=seen, key=(layer.number, n, p): seen.update({key: out.double()})
                )
                for layer in chosen for n in "12" for p in ("to_q", "to_k")
            ]  # fmt: skip
            with host.loaded(model) as base:
                z = content.at(sigma)[frame : frame + 1]
                given = host.conditions(base, text, z, sigma)
                host.evaluate(base, z, sigma, given, host.transformer_options(model, torch.tensor([sigma])))
            for hook in hooks:
                hook.remove()

            def attention(number, n, seen=seen):
                pair = [seen[number, n, p] for p in ("to_q", "to_k")]
                q, k = (t[0].unflatten(-1, (8, -1)).movedim(1, 0) for t in pair)
                return softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).mean(0)

            def sized(x, h, w, how):
                x = torch.nn.functional.interpolate(x.view(1, 1, *SIZES[x.numel()]), (h, w), mode=how)
                return x.flatten()

            rough = [attention(layer.number, "2")[:, [2, 9]].sum(-1) for layer in chosen]
            rough = sized(sum(sized(r, 8, 16, "bilinear") for r in rough) / 2, 4, 8, "area")
            spread = [attention(layer.number, "1") @ rough for layer in chosen]
            total = total + sum(sized(s, 8, 16, "bilinear") for s in spread) / 2
        expected.append(total.view(8, 16))
    expected = torch.stack(expected)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert chosen[0].block_number == 6
    got = masks.heat(model, content, text, [[2, 9]], chosen, sigmas, 1)
    assert (got - expected).abs().max() < 2e-3  # single precision, scaled to 0..1
    one_level = masks.heat(model, content, text, [[2, 9]], chosen, sigmas[:1], 1)
    assert (one_level - expected).abs().max() > 2e-2, "the levels differ, so that averaging them matters"


def test_an_object_that_attention_names_is_masked_where_it_is():
    """A model that attends to one word where a channel of the latents is high: the mask is that place, and
    moves with it from frame to frame."""
    model = (comfy_model if INSIDE else tiny_model)("sd15")  # its own: weights are changed
    clip, net = SmallClip(), network(model)
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a deer on the grass"))[0][0][0]
    block = net.output_blocks[9][1].transformer_blocks[0]  # one layer, at the latents' own size
    net.output_blocks[9][1].proj_in.weight.zero_()
    clean = torch.full((2, 4, 8, 16), -1.0)
    clean[0, :, 2:6, 2:6], clean[1, :, 2:6, 9:13] = 1.0, 1.0
    content = trajectory(model, frames=2, size=(8, 16))
    content.latents = clean.expand(len(content.sigmas), -1, -1, -1, -1).clone()
    seen = torch.zeros(2, 128, 32)
    for frame in range(2):
        seen[frame] = clean[frame, 0].flatten()[:, None]
    frames = iter([0, 1])
    hook = block.attn2.to_q.register_forward_hook(
        lambda m, a, out: (seen[next(frames)] * torch.ones(32))[None]
    )
    other = block.attn2.to_k.register_forward_hook(
        lambda m, a, out: (
            torch.nn.functional.one_hot(torch.tensor(2), 77)[None, :, None] * torch.full((32,), 3.0)
        )
    )
    try:
        mask, heat = PromptMask().find(
            model, clip, content, "a deer on the grass", "deer", 0.5, steps=1, refine=0, blocks="9"
        )
    finally:
        hook.remove()
        other.remove()
    assert mask.shape == (2, 64, 128) and heat.shape == (2, 64, 128, 3) and text.shape == (77, 768)
    wanted = (clean[:, 0] > 0).float().repeat_interleave(8, 1).repeat_interleave(8, 2)
    overlap = (mask * wanted).sum() / (mask + wanted).clamp_max(1).sum()
    assert overlap > 0.9
    assert set(mask.unique().tolist()) == {0.0, 1.0}


@BOTH
def test_thresholds_shrink_the_mask_and_frames_are_independent_of_their_number(kind):
    model = make(kind)
    content = trajectory(model, frames=3, seed=20, size=(8, 8))
    find = lambda threshold, **more: PromptMask().find(  # noqa: E731
        model, SmallClip(), content, TEXT, "deer", threshold, steps=2, **more
    )
    sizes = [float(find(t)[0].mean()) for t in (0.0, 0.3, 0.6, 1.0)]
    assert sizes[0] == 1.0 and sizes == sorted(sizes, reverse=True) and sizes[3] < 0.05 < sizes[1] < 0.95
    mask, heat = find(0.5)
    assert mask.shape == (3, 64, 64) and heat.shape == (3, 64, 64, 3)
    assert heat.min() >= 0 and heat.max() <= 1
    rough, smooth = (find(0.5, refine=n)[1] for n in (0, 4))
    roughness = lambda t: float(t.diff(dim=2).abs().mean() / t.std())  # noqa: E731
    assert roughness(smooth) < roughness(rough)
