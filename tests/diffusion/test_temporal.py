"""Temporal attention: anchors by shot, the same however a clip is split."""

import gc

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.nodes_style import ReferenceAttention
from reelbrush.nodes.diffusion.patching.layers import SigmaRange, attention_layers, network, pick_layers
from reelbrush.nodes.diffusion.patching.unet import AttentionSite
from reelbrush.nodes.diffusion.temporal import ANCHORS, AnchorFeatures, TemporalPatch

from .attention_tools import (
    BOTH,
    INSIDE,
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


def temporal(model, anchors="first + previous", layers="all", start=0.0, end=1.0, strength=1.0, images=None):
    return TemporalAttention().patch(model, anchors, layers, start, end, strength, images)[0]


def with_cuts(model, cuts, anchors="first + previous", layers="all"):
    patched = model.clone()
    TemporalPatch(pick_layers(model, layers), SigmaRange(1e9, 0), anchors, 1.0, cuts).attach(patched)
    return patched


# anchors of frames 0..5, cut at 4: by frame number; a frame without an anchor attends to itself
BY_NAME = {
    "first": [[0], [0], [0], [0], [4], [4]],
    "previous": [[0], [0], [1], [2], [4], [4]],
    "first + previous": [[0, 0], [0, 0], [0, 1], [0, 2], [4, 4], [4, 4]],
}


@BOTH
@pytest.mark.parametrize("anchors", BY_NAME)
@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_layer_looks_at_the_anchors(kind, anchors, size):
    """What goes into `to_out`, against attention over the anchors' and the frame's own tokens."""
    model = make(kind)
    layer, seen = attention_layers(model)[12], {name: [] for name in ("q", "k", "v", "out")}
    attn = network(model).get_submodule(layer.path)
    hooks = [
        getattr(attn, f"to_{n}").register_forward_hook(lambda m, a, out, n=n: seen[n].append(out))
        for n in "qkv"
    ]
    hooks.append(attn.to_out.register_forward_pre_hook(lambda m, args: seen["out"].append(args[0])))
    (patched,) = FramesPerCall().patch(with_cuts(model, [4], anchors, "12"), size or 6)
    sample(patched, frames=6, sigmas=levels(model, 1))
    for hook in hooks:
        hook.remove()
    q, k, v, out = (heads(torch.cat(seen[n]), layer.heads) for n in ("q", "k", "v", "out"))
    for frame, others in enumerate(BY_NAME[anchors]):
        keys, values = (torch.cat([*(t[o] for o in others), t[frame]], dim=1) for t in (k, v))
        expected = softmax_of(q[frame] @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5, values)
        torch.testing.assert_close(out[frame], expected, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("anchors", BY_NAME)
def test_the_result_does_not_depend_on_the_split(kind, anchors):
    model = make(kind)
    patched, few = with_cuts(model, [3], anchors), {"frames": 5, "sigmas": levels(model, 2)}
    whole = sample(patched, **few)
    for size in (1, 2):
        parts = sample(FramesPerCall().patch(patched, size)[0], **few)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert (whole - sample(model, **few)).abs().max() > 1e-3


@BOTH
def test_a_cut_parts_the_shots(kind):
    """Frames before a cut and after it give what two clips would, also when the cut falls inside a call."""
    model = make(kind)
    start = latents(6) * float(levels(model)[0])
    for anchors in ANCHORS[:3]:
        cut = sample(FramesPerCall().patch(with_cuts(model, [3], anchors), 2)[0], latent=start)
        apart = [sample(with_cuts(model, [], anchors), latent=part) for part in (start[:3], start[3:])]
        torch.testing.assert_close(cut, torch.cat(apart), rtol=1e-4, atol=1e-4)


def test_all_looks_at_every_frame_of_the_shot_in_the_call_and_at_what_was_left_behind():
    patch = TemporalPatch([], SigmaRange(1, 0), "all", cuts=[4])
    assert [sorted(row) for row in patch.anchors_of((0, 1, 2), (0, 1, 2))] == [[1, 2], [0, 2], [0, 1]]
    pool = (6, 7, 4, 5)  # this call's frames, then the shot's first and the last of the call before
    assert [sorted(pool[p] for p in row) for row in patch.anchors_of((6, 7), pool)] == [[4, 5, 7], [4, 5, 6]]
    assert [len(row) for row in patch.anchors_of((2, 3, 4), (2, 3, 4, 0, 1))] == [3, 3, 3]
    assert patch.anchors_of((9,), (9,)) == [[0]]


def test_windows_out_of_order_use_the_nearest_earlier_frame_at_hand():
    patch = TemporalPatch([], SigmaRange(1, 0), "first + previous")
    pool = (6, 7, 0, 3)
    found = [[pool[p] for p in row] for row in patch.anchors_of((6, 7), pool)]
    assert found == [[0, 3], [0, 6]]
    assert [pool[p] for p in patch.kept_after((6, 7), pool)] == [0, 7]


@BOTH
def test_a_still_clip_stays_as_it_is(kind):
    """Equal frames: anchors repeat the frame's own tokens, which does not change a softmax."""
    model = make(kind)
    start = (latents(1) * float(levels(model)[0])).repeat(3, 1, 1, 1)
    torch.testing.assert_close(
        sample(temporal(model), latent=start), sample(model, latent=start), rtol=1e-4, atol=1e-4
    )


@BOTH
@pytest.mark.parametrize("other", ["zstar", "zstar with a style mask", "reference"])
def test_anchors_do_not_weaken_another_picture(kind, other):
    """On a still clip the anchors are copies of the frame: the style's share and the result stay the same."""
    model, free = make(kind), {"start_percent": 0.0}
    style = trajectory(model)
    if other == "reference":
        settings = {
            "mode": "concat",
            "query_keep": 0.75,
            "temperature": 1.5,
            "layers": "all",
            "end_percent": 1.0,
        }
        with_style = lambda m: ReferenceAttention().patch(m, style, **free, **settings)[0]  # noqa: E731
    else:
        mask = {"style_mask": torch.linspace(0, 1, 16).expand(1, 12, 16)} if "mask" in other else {}
        with_style = lambda m: zstar(m, style, **free, **mask)  # noqa: E731
    start = (latents(1) * float(levels(model)[0])).repeat(3, 1, 1, 1)
    alone = sample(with_style(model), latent=start)
    assert (alone - sample(model, latent=start)).abs().max() > 0.05, "the other picture does something"
    for together in (with_style(temporal(model)), temporal(with_style(model))):
        torch.testing.assert_close(sample(together, latent=start), alone, rtol=1e-4, atol=1e-4)


def test_where_no_mask_can_be_used_the_other_picture_is_repeated():
    """Another pack's attention takes no mask."""
    g = torch.Generator().manual_seed(0)
    q, k, v, k_s, v_s = (torch.randn(2, 6, 8, generator=g) for _ in range(5))

    def plain(q, k, v, options):
        return (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v

    one = AttentionSite(None, {}, plain)
    expected = one.beside(q, (k, v), (k_s, v_s), scale=1.2)
    tripled = tuple(t.repeat(1, 3, 1) for t in (k, v))
    torch.testing.assert_close(one.with_copies(3).beside(q, tripled, (k_s, v_s), scale=1.2), expected)
    assert (one.beside(q, tripled, (k_s, v_s), scale=1.2) - expected).abs().max() > 0.05


@BOTH
def test_z_star_and_temporal_attention_work_together_in_either_order(kind):
    model = make(kind)
    style, free = trajectory(model), {"start_percent": 0.0}
    one = zstar(temporal(model), style, **free)
    other = temporal(zstar(model, style, **free))
    results = [sample(m, frames=3, cfg=2.0) for m in (one, other)]
    assert torch.equal(*results)
    for alone in (zstar(model, style, **free), temporal(model)):
        assert (results[0] - sample(alone, frames=3, cfg=2.0)).abs().max() > 1e-4
    split = sample(FramesPerCall().patch(other, 2)[0], frames=3, cfg=2.0)
    torch.testing.assert_close(split, results[0], rtol=1e-4, atol=1e-4)


@BOTH
def test_off_and_strength(kind):
    model = make(kind)
    before = fingerprint(model)
    assert temporal(model, layers="none") is model and temporal(model, strength=0.0) is model
    assert temporal(model, start=0.6, end=0.6) is model
    plain, full = sample(model, frames=3), sample(temporal(model), frames=3)
    little = sample(temporal(model, strength=0.02), frames=3)
    assert 0 < (little - plain).norm() < 0.05 * (full - plain).norm()
    assert torch.equal(sample(temporal(model), frames=3), full)
    assert same(fingerprint(model), before)


@BOTH
def test_nothing_is_left_after_a_run(kind):
    node, alive = temporal(make(kind)), []

    def anchors_alive():
        gc.collect()
        return sum(type(thing) is AnchorFeatures for thing in gc.get_objects())

    def cancelled(denoise, x, sigmas):
        denoise(x, sigmas[0])
        alive.append(anchors_alive())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(node, function=cancelled)
    assert alive == [16] and anchors_alive() == 0
    sample(node)
    assert anchors_alive() == 0


def test_cuts_are_found_in_the_contents_frames():
    g = torch.Generator().manual_seed(0)
    big = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 8, generator=g), (96, 128), mode="bilinear")
    frames = torch.cat([big[:1].repeat(3, 1, 1, 1), 1 - big[1:].repeat(3, 1, 1, 1) ** 2]).movedim(1, -1)
    model = make("comfy" if INSIDE else "tiny")
    found = sample(temporal(model, images=frames), frames=6)
    assert torch.equal(found, sample(with_cuts(model, [3], "first + previous"), frames=6))
    assert not torch.equal(found, sample(temporal(model), frames=6))
