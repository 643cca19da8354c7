"""Pictures of attention: the numbers in them against the equations."""

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import AttentionView
from reelbrush.nodes.diffusion.patching.layers import attention_layers
from reelbrush.nodes.diffusion.patching.unet import Features
from reelbrush.nodes.diffusion.view import VIEWS, maps, principal, style_share

from .attention_tools import BOTH, INSIDE, fingerprint, make, same, trajectory


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
