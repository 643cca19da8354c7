"""All-to-key attention against eqs. 6-13 as they are written, and its invariants on any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reelbrush.kernels import all_to_key as a2k
from reelbrush.kernels.all_to_key import Arithmetic

CASES = [
    pytest.param(Arithmetic(size=4, heads=2), 1, 8, 16, id="smallest"),
    pytest.param(Arithmetic(size=8, heads=8), 2, 32, 16, id="official: 8 points a side, 8 heads, n + 1"),
    pytest.param(Arithmetic(size=0, count=4, heads=2, extra=0), 2, 8, 24, id="paper: 4 regions a side, n"),
    pytest.param(Arithmetic(size=4, heads=1, scaled=True), 2, 6, 12, id="one head, scaled logits"),
]


def maps(n, c, size, seed=0, count=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else size
    return [torch.randn(n, c, *size, generator=g, dtype=dtype, requires_grad=True) for _ in range(count)]


def literal(q, k, v, how, alpha=1.0, beta=0.0):
    """Eqs. 7-12 with loops over regions, heads and points: nothing shared with the kernel."""
    n, c, size, _ = q.shape
    side = how.region(size, size)[0]
    d, per = c // how.heads, size // side
    scale = d**-0.5 if how.scaled else 1.0
    out_d, out_p = torch.zeros_like(q), torch.zeros_like(q)
    for b in range(n):
        for h in range(how.heads):
            ch = slice(h * d, (h + 1) * d)
            cells = [
                (slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
                for y in range(per)
                for x in range(per)
            ]
            Q, K, V = ([t[b, ch, y, x].reshape(d, -1) for y, x in cells] for t in (q, k, v))
            keys, values = [], []
            for K_r, V_r in zip(K, V, strict=True):
                k_m = K_r.mean(1)
                share = torch.sigmoid(alpha * (k_m @ K_r) + beta)
                total = K_r.shape[1] + how.extra
                keys.append((k_m + (share * K_r).sum(1)) / total)
                values.append((V_r.mean(1) + (share * V_r).sum(1)) / total)
            keys, values = torch.stack(keys, 1), torch.stack(values, 1)
            for (y, x), Q_r in zip(cells, Q, strict=True):
                weights = (scale * Q_r.T @ keys).softmax(1)
                out_d[b, ch, y, x] = (weights @ values.T).T.reshape(d, side, side)
                best = max(range(len(K)), key=lambda m, Q_r=Q_r: float((Q_r * K[m]).sum().detach()))
                weights = (scale * Q_r.T @ K[best]).softmax(1)
                out_p[b, ch, y, x] = (weights @ V[best].T).T.reshape(d, side, side)
    return out_d, out_p


def fast(q, k, v, how):
    key, value = a2k.distribute(k, v, how)
    near = a2k.progressive_attention(q, a2k.regions_of(k, v, how), how)
    return a2k.distributed_attention(q, key, value, how), near


@pytest.mark.parametrize(("how", "n", "c", "size"), CASES)
def test_values_equal_the_equations(how, n, c, size):
    q, k, v = maps(n, c, size)
    for fn in (fast, a2k.all_to_key_reference):
        for got, want in zip(fn(q, k, v, how), literal(q, k, v, how), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("how", "n", "c", "size"), CASES)
def test_gradients_equal_the_einsum_code(how, n, c, size):
    q, k, v = maps(n, c, size)
    grads = []
    for fn in (fast, a2k.all_to_key_reference):
        loss = sum(out.square().sum() for out in fn(q, k, v, how))
        grads.append(torch.autograd.grad(loss, (q, k, v)))
    for got, want in zip(*grads, strict=True):
        assert (got - want).norm() / want.norm() < 1e-5


def test_alpha_and_beta_scale_and_shift_the_likeness_and_learn():
    how = Arithmetic(size=4, heads=2, extra=0)
    q, k, v = maps(1, 8, 12)
    results = []
    for method in ("kernel", "equations"):
        alpha, beta = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.27, -0.4))
        if method == "kernel":
            out = a2k.distributed_attention(q, *a2k.distribute(k, v, how, alpha, beta), how)
        else:
            out = literal(q, k, v, how, alpha, beta)[0]
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v, alpha, beta))))
    plain = literal(q, k, v, how)[0]
    assert (results[0][0] - plain).norm() / plain.norm() > 1e-3, "they must matter for this to say anything"
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() / want.norm() < 1e-9


sizes = st.tuples(st.integers(1, 27), st.integers(1, 27))


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.sampled_from([2, 3]), st.booleans(), st.sampled_from([(4, 0), (8, 0), (0, 3)]))
def test_any_shapes_of_content_and_style(content, style, heads, overlap, cells):
    how = Arithmetic(*cells, heads=heads, overlap=overlap)
    (q,) = maps(3, 6, content, 1, 1)
    k, v = maps(1, 6, style, 2, 2)
    with torch.no_grad():
        for out in fast(q, k, v, how):
            assert out.shape == q.shape
            assert torch.isfinite(out).all()


@settings(max_examples=30, deadline=None)
@given(sizes, st.booleans())
def test_padded_positions_are_never_attended_to(style, overlap):
    """Attention averages: constant values must come back as they are, whatever was padded."""
    how = Arithmetic(4, heads=2, overlap=overlap)
    (q,), (k,) = maps(1, 6, (9, 14), 1, 1), maps(1, 6, style, 2, 1)
    v = torch.full_like(k, 3.0)
    with torch.no_grad():
        near = a2k.progressive_attention(q, a2k.regions_of(k, v, how), how)
    torch.testing.assert_close(near, torch.full_like(near, 3.0))


def test_the_mean_of_a_cut_off_region_is_of_its_own_points():
    how = Arithmetic(4, heads=1, extra=0)
    (k,) = maps(1, 3, (6, 5), 0, 1)
    zero = torch.zeros_like(k)
    _, value = a2k.distribute(zero, k, how)  # likeness 0: every share is 1/2
    corner = k[0, :, 4:, 4:].flatten(1)
    torch.testing.assert_close(value[0, 0, -1], (corner.mean(1) + corner.sum(1) / 2) / corner.shape[1])


@pytest.mark.parametrize("overlap", [False, True])
def test_many_frames_against_one_style_equal_one_by_one(overlap):
    how = Arithmetic(4, heads=2, overlap=overlap)
    (q,), (k, v) = maps(3, 6, (10, 13), 0, 1), maps(1, 6, (9, 7), 1, 2)
    for together, alone in zip(
        fast(q, k, v, how),
        zip(*(fast(frame[None], k, v, how) for frame in q), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(together, torch.cat(alone))


@settings(max_examples=30, deadline=None)
@given(sizes, st.sampled_from([4, 8]), st.booleans())
def test_cutting_and_pasting_give_the_map_back(size, side, overlap):
    (x,) = maps(2, 6, size, 0, 1)
    cells, grid = a2k.cut(x, 3, (side, side), overlap)
    torch.testing.assert_close(a2k.paste(cells, grid, (side, side), *size, overlap), x)


def test_matching_happens_in_single_precision_under_autocast():
    how = Arithmetic(4, heads=2)
    q, k, v = (t.detach().float() for t in maps(1, 8, 32))
    k = k + q  # near ties, which bfloat16 would decide otherwise
    cells = a2k.regions_of(k, v, how)
    queries, _ = a2k.cut(q, 2, (4, 4))
    want = a2k.match_regions(queries, cells, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(a2k.match_regions(queries, cells, (4, 4)), want)


def test_without_matching_the_region_in_the_same_place_serves():
    how = Arithmetic(4, heads=1)
    q, k, _ = maps(1, 4, 8)
    places = (
        torch.arange(4.0, dtype=torch.float64)
        .view(1, 1, 2, 2)
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    v = places.expand(1, 4, 8, 8)
    out = a2k.progressive_attention(q, a2k.regions_of(k, v, how), how, match=False)
    torch.testing.assert_close(out, v)


def test_all_to_all_is_softmax_attention():
    how = Arithmetic(4, heads=2)
    (q,), (k, v) = maps(2, 6, (4, 5), 0, 1), maps(1, 6, (3, 4), 1, 2)
    Q, K, V = (t.reshape(len(t), 2, 3, -1) for t in (q, k, v))
    want = torch.einsum(
        "bhij,bhdj->bhdi",
        torch.einsum("bhdi,bhdj->bhij", Q, K.expand(2, -1, -1, -1)).softmax(-1),
        V.expand(2, -1, -1, -1),
    )
    torch.testing.assert_close(a2k.all_to_all_attention(q, k, v, how), want.reshape(2, 6, 4, 5))


def test_chunked_equals_fused(monkeypatch):
    how = Arithmetic(4, heads=2)
    (q,), (k, v) = maps(1, 8, (20, 12), 0, 1), maps(1, 8, (13, 9), 1, 2)
    with torch.no_grad():
        want = fast(q, k, v, how)
        monkeypatch.setattr(a2k, "CHUNK", 1 << 9)
        got = fast(q, k, v, how)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
