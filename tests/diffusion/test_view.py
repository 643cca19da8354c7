"""Pictures of attention: the numbers in them against the equations."""

from dataclasses import replace

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import AttentionView, TemporalAttention
from reelbrush.nodes.diffusion.patching.layers import attention_layers
from reelbrush.nodes.diffusion.patching.unet import READING, Features
from reelbrush.nodes.diffusion.view import VIEWS, attention_maps, maps, principal, style_share

from .attention_tools import BOTH, FREE, INSIDE, fingerprint, make, same, trajectory, zstar
from .attention_tools import heads as heads_of


def features(model, seed, size=(3, 4)):
    layer = attention_layers(model)[9]
    g = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, size[0] * size[1], layer.heads * 8, generator=g)
    return Features(layer, size, q, k, v)


@BOTH
@pytest.mark.parametrize("what", VIEWS)
def test_every_view_gives_one_picture_per_frame_and_leaves_the_model_alone(kind, what):
    model = make(kind)
    clip, style = trajectory(model, frames=2), trajectory(model, seed=3)
    before = fingerprint(model)
    (pictures,) = AttentionView().view(model, clip, what, 5, 0.4, style)
    assert pictures.shape[0] == 2 and pictures.shape[-1] == 3
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.01
    assert same(fingerprint(model), before) or (kind == "comfy" and what == "features PCA")
    if what == "features PCA":
        assert pictures.shape[1:3] == (96, 128)


def test_style_share_is_the_softmax_mass_on_the_style():
    g = torch.Generator().manual_seed(0)
    q, k, k_s = (torch.randn(1, 2, n, 8, generator=g, dtype=torch.float64) for n in (7, 7, 5))
    logits = torch.cat([1.2 * q @ k_s.transpose(-1, -2), q @ k.transpose(-1, -2)], -1) / 8**0.5
    expected = logits.softmax(-1)[..., :5].sum(-1).mean(1)[0]
    torch.testing.assert_close(style_share(q, k, k_s, 1.2), expected)


def test_the_map_of_a_point_is_its_row_of_the_attention():
    f = features(make(ANY), 1)
    (values,) = maps(f, None, "self-attention", (0.99, 0.4), 1.2).values()
    q, k = f.heads("q"), f.heads("k")
    weights = torch.stack(
        [(q[0, h, 7] @ k[0, h].T / q.shape[-1] ** 0.5).softmax(-1) for h in range(len(k[0]))]
    )
    assert values.shape == (3, 4)
    torch.testing.assert_close(values.flatten(), weights.mean(0))
    assert values.sum().item() == pytest.approx(1)


def test_content_similarity_is_1_where_the_style_is_the_content():
    f, other = features(make(ANY), 1), features(make(ANY), 2)
    own = maps(f, f, "content similarity", (0, 0), 1.0)
    assert len(own) == 3
    for values in own.values():
        torch.testing.assert_close(values, torch.ones(3, 4))
    swap, add, reweight = (m.mean() for m in maps(f, other, "content similarity", (0, 0), 1.2).values())
    assert swap < reweight and swap < add  # eq. 7 ignores the content


def test_principal_components_find_what_varies():
    """Features made of three known patterns on unequal axes: each component is one of them, up to scale."""
    g = torch.Generator().manual_seed(0)
    patterns = torch.randn(2, 3, 16, 16, generator=g, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(8, 3, generator=g, dtype=torch.float64)).Q
    mixed = torch.einsum("ck,nkhw->nchw", axes * torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64), patterns)
    found = principal(mixed + 5).double()
    for i in range(3):
        pair = torch.stack([found[:, i].flatten(), patterns[:, i].flatten()])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.97


def sampler_share(model, clip, sigma, number, tokens, monkeypatch):
    """The style's share of the softmax that ComfyUI's attention function really gets in one call of the UNet
    with all patches: per frame, mean over heads. The style is in front."""
    calls, plain, layer = [], host.attention, attention_layers(model)[number]

    def attention(q, k, v, heads, mask, precision, options):
        if not options.get(READING) and options["block"] == layer.address[:2]:
            q_h, k_h = heads_of(q, heads), heads_of(k, heads)
            logits = q_h @ k_h.transpose(-1, -2) / q_h.shape[-1] ** 0.5
            if mask is not None:
                logits = logits + mask.double().view(1, 1, *mask.shape[-2:])
            calls.append(logits.softmax(-1)[..., :tokens].sum(-1).mean(1))
        return plain(q, k, v, heads, mask, precision, options)

    monkeypatch.setattr(host, "attention", attention)
    with host.loaded(model) as base:
        z = clip.at(sigma)
        conditions = host.conditions(base, clip.conditioning, z, sigma)
        options = host.transformer_options(model, torch.tensor([sigma]))
        host.evaluate(base, z, sigma, conditions, options)
    monkeypatch.setattr(host, "attention", plain)
    (share,) = calls
    return share


@BOTH
@pytest.mark.parametrize("order", ["Z* first", "anchors first"])
@pytest.mark.parametrize("anchors", ["first + previous", "all"])
def test_the_style_share_is_the_one_that_the_sampler_sees_with_anchors(kind, order, anchors, monkeypatch):
    plain = make(kind)
    clip, style = trajectory(plain, frames=3), trajectory(plain, seed=3)
    sigma, number, both = float(clip.sigmas[1]), 12, plain
    for name in ("zstar", "anchors") if order == "Z* first" else ("anchors", "zstar"):
        if name == "zstar":
            both = zstar(both, style, **FREE)
        else:
            (both,) = TemporalAttention().patch(both, anchors, "all", 0.0, 1.0, 1.0)
    tokens = 6 * 8  # of layer 12
    wanted = sampler_share(both, clip, sigma, number, tokens, monkeypatch)
    layer = attention_layers(plain)[number]

    def shown(model):
        seen = list(attention_maps(model, clip, style, "style share", layer, sigma))
        return torch.stack([values.flatten() for f in seen for values in f.values()])

    torch.testing.assert_close(shown(both).double(), wanted, rtol=1e-4, atol=1e-5)
    assert float((shown(plain) - shown(both)).abs().max()) > 0.01  # what version 0.1 showed


@BOTH
def test_on_a_still_clip_anchors_leave_the_style_share_as_it_is(kind):
    plain = make(kind)
    one, style = trajectory(plain), trajectory(plain, seed=3)
    still = replace(one, latents=one.latents.expand(-1, 3, -1, -1, -1))
    (anchored,) = TemporalAttention().patch(plain, "first + previous", "all", 0.0, 1.0, 1.0)
    layer = attention_layers(plain)[12]
    shares = [
        next(attention_maps(model, still, style, "style share", layer, float(one.sigmas[1]))).popitem()[1]
        for model in (plain, anchored)
    ]
    torch.testing.assert_close(*shares, rtol=0, atol=1e-4)


@BOTH
def test_the_style_rows_of_the_official_variant_are_not_shown(kind):
    """In the first layer that Z* changes, nothing has changed the frames' own queries and keys yet."""
    plain = make(kind)
    clip, style, layer = trajectory(plain, frames=2), trajectory(plain, seed=3), attention_layers(plain)[12]
    official = zstar(plain, style, layers="12", start_percent=0.0, style_branch_scale=1.5)
    seen = [
        torch.stack([m for f in attention_maps(*given) for m in f.values()])
        for given in (
            (model, clip, None, "self-attention", layer, float(clip.sigmas[1])) for model in (plain, official)
        )
    ]
    torch.testing.assert_close(*seen)
    assert not torch.allclose(seen[0][0], seen[0][1], atol=1e-4)


@BOTH
def test_self_attention_shows_the_anchors_and_sums_to_1_with_them(kind):
    plain = make(kind)
    (anchored,) = TemporalAttention().patch(plain, "first + previous", "all", 0.0, 1.0, 1.0)
    clip, layer = trajectory(plain, frames=3), attention_layers(plain)[12]
    seen = list(attention_maps(anchored, clip, None, "self-attention", layer, float(clip.sigmas[1])))
    for titled in seen:
        assert list(titled)[1:] == ["anchor 1", "anchor 2"]
        assert float(sum(values.sum() for values in titled.values())) == pytest.approx(1)
    own, first, previous = seen[2].values()
    assert not torch.allclose(first, previous, atol=1e-4)
    own, first, previous = seen[0].values()  # without an anchor a frame has itself
    torch.testing.assert_close(own, first)
    torch.testing.assert_close(own, previous)


def test_wrong_numbers_are_answered_in_words():
    model = make(ANY)
    clip = trajectory(model)
    view = AttentionView().view
    with pytest.raises(ValueError, match=r"no attention layer 16 in this model: it has 0\.\.15"):
        view(model, clip, "self-attention", 16, 0.4)
    with pytest.raises(ValueError, match=r"no decoder block 12 in this model: it has 0\.\.11"):
        view(model, clip, "features PCA", 12, 0.4)
    with pytest.raises(ValueError, match="connect `style`"):
        view(model, clip, "style share", 3, 0.4)


ANY = "comfy" if INSIDE else "tiny"
