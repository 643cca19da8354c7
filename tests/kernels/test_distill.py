"""The attention-distillation loss against eqs. 3, 4, 11 and 12 as they are written."""

import json

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from reelbrush.kernels import distill

CASES = [
    pytest.param(1, 1, 16, 16, 8, id="smallest"),
    pytest.param(3, 2, 35, 70, 16, id="three frames against two style pictures side by side"),
    pytest.param(2, 8, 24, 13, 40, id="style of another size; SD1.5's head width"),
    pytest.param(2, 2, 1, 5, 8, id="one token"),
]


def tensors(frames, heads, n, m, d, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    draw = lambda b, t: torch.randn(b, heads, t, d, generator=g, dtype=dtype)  # noqa: E731
    q, k, v = (draw(frames, n).requires_grad_() for _ in range(3))
    return q, k, v, (draw(1, m), draw(1, m))


def some_labels(rows, n, m, count=3):
    """Labels where the style has them all, in scattered places."""
    g = torch.Generator().manual_seed(1)
    of_style = torch.randint(count, (m,), generator=g)
    return of_style, of_style[torch.randint(m, (rows, n), generator=g)]


def loss_of(q, k, v, style, **more):
    """The fast path on a layer's own attention."""
    return distill.distance(scaled_dot_product_attention(q, k, v), q, style, **more)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("masked", ["no mask", "one mask", "a mask per frame"])
@pytest.mark.parametrize("scores", [1 << 26, 64], ids=["one piece", "many pieces"])
@pytest.mark.parametrize(("frames", "heads", "n", "m", "d"), CASES)
def test_values_and_gradients_equal_the_equation(frames, heads, n, m, d, scores, masked, monkeypatch):
    monkeypatch.setattr(distill, "SCORES", scores)
    q, k, v, style = tensors(frames, heads, n, m, d)
    labels = None if masked == "no mask" else some_labels(1 if masked == "one mask" else frames, n, m)
    weights = torch.arange(1.0, frames + 1, dtype=q.dtype)  # a frame's loss must reach that frame only
    results = []
    for fn in (loss_of, distill.distance_reference):
        loss = fn(q, k, v, style, scale=1.2, labels=labels)
        # A single token attends to itself alone: q and k have no gradient there, in either.
        results.append((loss, torch.autograd.grad(loss @ weights, [q, k, v])))
    (loss, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(loss, expected)
    assert relative(torch.cat(gradients), torch.cat(expected_gradients)) < 1e-5
    if n > 1:
        assert all(relative(a, b) < 1e-5 for a, b in zip(gradients, expected_gradients, strict=True))


def test_content_loss_is_the_mean_distance_of_queries():
    q, *_ = tensors(2, 2, 6, 6, 4)
    other = torch.randn_like(q[:1])
    loss = distill.query_distance(q, other)
    by_hand = [
        sum(abs(a - b) for a, b in zip(frame, other.flatten().tolist(), strict=True)) / 48
        for frame in q.flatten(1).tolist()
    ]
    assert loss.tolist() == pytest.approx(by_hand)


def test_the_style_itself_has_no_loss():
    q, k, v, _ = tensors(1, 2, 20, 1, 8)
    assert float(loss_of(q, k, v, (k, v)).detach()) < 1e-12
    assert float(distill.query_distance(q, q).detach()) == 0


def test_a_frame_does_not_depend_on_the_others_in_the_call():
    q, k, v, style = tensors(3, 2, 12, 9, 8)
    together = loss_of(q, k, v, style)
    alone = [loss_of(q[i:][:1], k[i:][:1], v[i:][:1], style) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_half_precision_stays_near():
    q, k, v, style = tensors(2, 4, 64, 64, 16)
    expected = distill.distance_reference(q, k, v, style)
    half = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    loss = loss_of(*half, tuple(t.bfloat16() for t in style))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=0.02, atol=0)
    loss.sum().backward()
    assert half[0].grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masked"])
@pytest.mark.parametrize(
    ("weights", "order"), [((2, 1), "AAB"), ((1, 3), "ABBB"), ((1, 1), "AB"), ((0, 1), "B")]
)
def test_a_style_of_weight_2_counts_as_if_it_were_there_twice(weights, order, masked):
    q, k, v, (k_s, v_s) = tensors(2, 3, 24, 20, 8)
    of_style, of_target = some_labels(2, 24, 10)
    both = (torch.cat([of_style, of_style]), of_target) if masked else None
    picture = {"A": slice(0, 10), "B": slice(10, 20)}
    repeated = tuple(torch.cat([t[:, :, picture[name]] for name in order], 2) for t in (k_s, v_s))
    expected = distill.distance_reference(
        q, k, v, repeated, labels=(of_style.repeat(len(order)), of_target) if masked else None
    )
    loss = loss_of(q, k, v, (k_s, v_s), labels=both, weights=weights)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), [q, k, v]) for x in (loss, expected)), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (0, 2)])
def test_the_mean_of_styles_is_a_weighted_mean_of_their_outputs(weights):
    q, k, v, (k_s, v_s) = tensors(2, 3, 24, 20, 8)
    ideals = [
        (q @ k_i.transpose(-1, -2) / 8**0.5).softmax(-1) @ v_i
        for k_i, v_i in zip(k_s.split(10, 2), v_s.split(10, 2), strict=True)
    ]
    ideal = (weights[0] * ideals[0] + weights[1] * ideals[1]) / sum(weights)
    own = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    expected = (own - ideal.detach()).abs().mean((1, 2, 3))
    loss = loss_of(q, k, v, (k_s, v_s), weights=weights, blend=True)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), [q, k, v]) for x in (loss, expected)), strict=True):
        assert relative(a, b) < 1e-5


def test_masks_shrink_to_each_resolution_as_names():
    mask = torch.zeros(1, 8, 12)
    mask[:, :, 6:] = 0.5
    small = distill.labels_at(mask, 4, 3)
    assert small.view(4, 3)[0].tolist() == [0, 0, 128]
    assert sorted(distill.labels_at(mask, 3, 5).unique().tolist()) == [0, 128]  # no level in between appears


def test_a_target_label_that_the_style_lacks_raises_an_error():
    q, k, v, style = tensors(1, 2, 12, 9, 8)
    of_style, of_target = some_labels(1, 12, 9)
    of_target[0, 3] = 128
    with pytest.raises(ValueError, match=r"the label 0.502, which the style mask does not have"):
        loss_of(q, k, v, style, labels=(of_style, of_target))


def test_style_features_of_another_model_raise_an_error():
    q, k, v, (k_style, v_style) = tensors(1, 4, 8, 8, 16)
    with pytest.raises(ValueError, match="same model"):
        loss_of(q, k, v, (k_style[:, :2], v_style[:, :2]))


def peak(n, masked, path):
    """Peak memory of forward and backward over n tokens in bytes, by the allocator's own count."""
    q, k, v, style = tensors(1, 2, n, n, 32, torch.float32)
    labels = some_labels(1, n, n) if masked else None
    with profile(profile_memory=True) as seen:
        loss_of(q, k, v, style, labels=labels).sum().backward()
    seen.export_chrome_trace(str(path))
    events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    total = [e["Total Allocated"] for e in events]
    return max(total) - (total[0] - events[0]["Bytes"])


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masked"])
def test_memory_grows_with_the_tokens_not_with_their_square(masked, tmp_path):
    peak(256, masked, tmp_path / "warm.json")
    small, middle, large = (peak(n, masked, tmp_path / f"{n}.json") for n in (512, 2048, 8192))
    assert middle <= 4.4 * small
    assert large <= 4.4 * middle
