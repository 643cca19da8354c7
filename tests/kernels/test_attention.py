"""Attention backends against the equation as it is written."""

import pytest
import torch

from reelbrush.kernels import attention
from reelbrush.kernels.attention import BACKENDS, attend

CASES = [
    pytest.param(1, 1, 1, 1, 4, 4, False, id="one token"),
    pytest.param(2, 3, 5, 7, 8, 8, False, id="more keys than queries, odd counts"),
    pytest.param(3, 2, 16, 9, 8, 6, False, id="values narrower than keys"),
    pytest.param(2, 2, 6, 6, 40, 40, True, id="a mask; SD1.5's head width"),
]


def literally(q, k, v, mask, scale):
    """Query by query, key by key."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                logits = torch.stack(
                    [(q[b, h, i] * k[b % len(k), h, j]).sum() * scale for j in range(k.shape[2])]
                )
                if mask is not None:
                    logits = logits + mask[i]
                weights = logits.exp() / logits.exp().sum()
                out[b, h, i] = sum(w * row for w, row in zip(weights, v[b % len(v), h], strict=True))
    return out


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize(("rows", "heads", "n", "m", "d", "e", "masked"), CASES)
def test_every_backend_is_the_equation(backend, rows, heads, n, m, d, e, masked):
    g = torch.Generator().manual_seed(0)
    draw = lambda b, t, w: torch.randn(b, heads, t, w, generator=g, dtype=torch.float64)  # noqa: E731
    q, k, v = draw(rows, n, d), draw(rows, m, d), draw(rows, m, e)
    mask = torch.randn(n, m, generator=g, dtype=torch.float64) if masked else None
    for scale in (None, 0.3):
        expected = literally(q, k, v, mask, d**-0.5 if scale is None else scale)
        torch.testing.assert_close(attend(q, k, v, mask, scale, backend=backend), expected)


def test_one_row_of_keys_serves_all_queries():
    q, kv = torch.randn(4, 2, 5, 8), torch.randn(1, 2, 6, 8)
    for backend in ("torch", "reference"):
        many = attend(q, kv, kv, backend=backend)
        single = torch.cat([attend(row[None], kv, kv, backend=backend) for row in q])
        torch.testing.assert_close(many, single)


def test_a_backend_that_cannot_compute_a_call_raises_by_name_and_is_skipped_otherwise():
    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="xformers"):
        attend(q, q, q, backend="xformers")  # not installed, or these tensors are on the CPU
    with pytest.raises(ValueError, match="auto, xformers, torch, reference"):
        attend(q, q, q, backend="flash")
    torch.testing.assert_close(attend(q, q, q), attention.attend_reference(q, q, q))


def test_the_reasons_for_refusing_xformers_are_checked_before_the_call(monkeypatch):
    monkeypatch.setattr(attention, "_has_xformers", lambda: True)
    refuse = BACKENDS["xformers"][1]
    q = torch.empty(1, 1, 2, 4)
    assert "CUDA" in refuse(q, q, q, None)
    meta = torch.empty(9000, 8, 1, 4)
    monkeypatch.setattr(type(meta), "device", torch.device("cuda"), raising=False)
    assert "mask" in refuse(q, q, q, q)
    assert "float64" in refuse(q.double(), q, q, None)
    assert "65535" in refuse(meta, meta, meta, None)
    assert refuse(q, q, q, None) == ""
