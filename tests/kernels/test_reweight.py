"""Reweighted attention against eq. 12 as it is written."""

import pytest
import torch

from reelbrush.kernels.reweight import extend, reweighted_attention, reweighted_attention_reference

CASES = [
    pytest.param(1, 1, 16, 16, 8, False, id="smallest"),
    pytest.param(3, 4, 35, 35, 16, False, id="three frames, one style"),
    pytest.param(2, 8, 24, 77, 40, False, id="style of another size; SD1.5's head width"),
    pytest.param(2, 2, 1, 5, 8, False, id="one token"),
    pytest.param(2, 2, 12, 6, 8, True, id="a soft mask over the style"),
]


def tensors(frames, heads, n, m, d, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    draw = lambda b, t: torch.randn(b, heads, t, d, generator=g, dtype=dtype, requires_grad=True)  # noqa: E731
    return draw(frames, n), (draw(frames, n), draw(frames, n)), (draw(1, m), draw(1, m))


def eq12(q, content, style, scale, bias):
    """Row by row, with the softmax written out."""
    (k_c, v_c), (k_s, v_s) = content, style
    rows = []
    for b in range(len(q)):
        to_style = scale * torch.einsum("hnd,hmd->hnm", q[b], k_s[0]) / q.shape[-1] ** 0.5
        to_style = to_style if bias is None else to_style + bias
        weight_s = to_style.exp()
        weight_c = (torch.einsum("hnd,hmd->hnm", q[b], k_c[b]) / q.shape[-1] ** 0.5).exp()
        mixed = torch.einsum("hnm,hmd->hnd", weight_s, v_s[0]) + torch.einsum(
            "hnm,hmd->hnd", weight_c, v_c[b]
        )
        rows.append(mixed / (weight_s.sum(-1) + weight_c.sum(-1))[..., None])
    return torch.stack(rows)


@pytest.mark.parametrize("fn", [reweighted_attention, reweighted_attention_reference])
@pytest.mark.parametrize(("frames", "heads", "n", "m", "d", "masked"), CASES)
def test_values_and_gradients_equal_the_equation(fn, frames, heads, n, m, d, masked):
    q, content, style = tensors(frames, heads, n, m, d)
    bias = torch.linspace(0.1, 1, m, dtype=torch.float64).log() if masked else None
    results = []
    for out in (fn(q, content, style, scale=1.2, bias=bias), eq12(q, content, style, 1.2, bias)):
        results.append((out, *torch.autograd.grad(out.square().sum(), [q, *content, *style])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_style_that_no_query_resembles_leaves_self_attention():
    q, (k, v), (k_s, v_s) = tensors(2, 2, 12, 12, 8)
    q, far = q.abs(), torch.full_like(k_s, -100.0)
    own = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(reweighted_attention(q, (k, v), (far, v_s)), own)


def test_more_lambda_gives_more_to_a_style_that_resembles():
    _, (k, v), _ = tensors(1, 2, 12, 12, 8)
    style = (k.detach().clone(), torch.ones_like(v))  # the style's keys are the content's, its values are 1
    share = [
        reweighted_attention(k * 3, (k, v * 0), style, scale=scale).mean().item()
        for scale in (0.8, 1.0, 1.2, 1.6)
    ]
    assert share == sorted(share)
    assert share[1] == pytest.approx(0.5)


def test_folded_heads_give_the_keys_that_split_heads_give():
    _, content, style = tensors(2, 4, 6, 9, 8)
    fold = lambda t: t.transpose(1, 2).flatten(2)  # noqa: E731
    split = extend(content, style, scale=1.4)
    folded = extend(tuple(map(fold, content)), tuple(map(fold, style)), scale=1.4)
    for a, b in zip(split, folded, strict=True):
        torch.testing.assert_close(fold(a), b)


def test_masked_out_style_tokens_are_not_there():
    q, content, (k_s, v_s) = tensors(2, 2, 8, 6, 8)
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    kept = bias == 0
    masked = reweighted_attention(q, content, (k_s, v_s), bias=bias)
    torch.testing.assert_close(masked, reweighted_attention(q, content, (k_s[:, :, kept], v_s[:, :, kept])))


def test_a_style_of_another_model_raises_an_error():
    q, content, (k_s, v_s) = tensors(1, 4, 8, 8, 16)
    with pytest.raises(ValueError, match="same model"):
        reweighted_attention(q, content, (k_s[:, :2], v_s[:, :2]))
