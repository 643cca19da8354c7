"""The network: identity at the start, any size, and its attention against the formula."""

import pytest
import torch

from reelbrush.nodes.attnstyle.network import MEMORY_SIDE, AttnStyleNet, CrossAttention, recolor


def trained_a_little(seed=0):
    torch.manual_seed(seed)
    net = AttnStyleNet()
    torch.nn.init.normal_(net.leave.weight, std=0.2)
    return net


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 3), (16, 16), (33, 47)])
def test_untrained_it_gives_the_input_back_bit_for_bit(h, w, pictures):
    x = pictures(2, h, w)
    x[0, 0], x[1, 2] = 0.0, 1.0
    assert torch.equal(AttnStyleNet()(x), x)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 3), (16, 16), (33, 47), (70, 24)])
def test_any_size_comes_back_and_frames_do_not_mix(h, w, pictures):
    net, x = trained_a_little(), pictures(3, h, w)
    with torch.no_grad():
        out = net(x)
        alone = torch.cat([net(f[None]) for f in x])
    assert out.shape == x.shape
    assert not torch.equal(out, x)
    assert out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(out, alone, atol=1e-5, rtol=1e-4)


def test_every_weight_but_the_last_layers_own_start_learns(pictures):
    net = trained_a_little()
    out, pairs = net.with_features(pictures(1))
    (out.square().mean() + sum((a - b).square().mean() for a, b in pairs)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_black_and_white_can_be_left():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    h = torch.zeros_like(x).requires_grad_()
    (slope,) = torch.autograd.grad(recolor(x, h).sum(), h)
    assert torch.equal(recolor(x, h), x)
    assert (slope[..., 1] > 0.2).all()
    assert recolor(x, h + 9)[..., 0].min() > 0.95 and recolor(x, h - 9)[..., 2].max() < 0.05


def test_attention_is_the_formula(pictures):
    torch.manual_seed(1)
    attention = CrossAttention(16).double()
    styl, cont = (torch.randn(1, 16, 3, 4, dtype=torch.float64) for _ in range(2))
    out, (f_styl, aligned) = attention(styl, cont)

    def normalised(x):  # groups of 8 channels over the whole frame
        groups = x.view(2, -1)
        deviation = (groups.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return ((groups - groups.mean(1, keepdim=True)) / deviation).view(16, -1)

    fs, fc = normalised(styl[0]), normalised(cont[0])
    q, k, v = (
        m.weight[:, :, 0, 0] @ f
        for m, f in ((attention.query, fs), (attention.key, fc), (attention.value, fc))
    )
    found = torch.zeros(16, 12, dtype=torch.float64)
    for head in range(4):
        rows = slice(4 * head, 4 * head + 4)
        for p in range(12):
            weights = torch.stack([q[rows, p] @ k[rows, m] / 4**0.5 for m in range(12)]).softmax(0)
            found[rows, p] = sum(weights[m] * v[rows, m] for m in range(12))
    expected = (attention.out.weight[:, :, 0, 0] @ found).view(1, 16, 3, 4)
    torch.testing.assert_close(f_styl[0], fs.view(16, 3, 4))
    torch.testing.assert_close(aligned, expected)
    torch.testing.assert_close(out, styl + expected)


def test_features_of_any_scale_give_the_same_alignment():
    attention = CrossAttention(16)
    styl, cont = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    _, (a, b) = attention(styl, cont)
    _, (c, d) = attention(styl * 7, cont * 0.1)
    torch.testing.assert_close(a, c, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b, d, atol=1e-2, rtol=1e-2)


def test_large_frames_are_remembered_at_32_by_32(monkeypatch):
    seen = []
    from reelbrush.nodes.attnstyle import network

    monkeypatch.setattr(network, "attend", lambda q, k, v: seen.append(k.shape) or torch.zeros(q.shape))
    CrossAttention(16)(torch.randn(1, 16, 70, 20), torch.randn(1, 16, 70, 20))
    assert seen[0][2] == MEMORY_SIDE * 20
