"""Both networks: the official arithmetic where the official code runs, any shape elsewhere."""

import pytest
import torch

from reelbrush.nodes.stya2k.attention import KINDS, MODES
from reelbrush.nodes.stya2k.small import SmallStyA2K


def planes(n, h, w, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, h, w, generator=g)


def test_official_weights_give_the_official_output(official, parts, paper):
    content, style = planes(1, 128, 128), planes(1, 128, 128, 1)
    with torch.no_grad():
        want = official.stylize(content, style, parts)
        encoded = paper.encode(content)
        got = paper.decode(paper.transfer(encoded, paper.encode_style(style)), encoded.size)
        off = paper.decode(paper.plain(encoded), encoded.size)
    assert want.std() > 0.1
    assert (got - want).abs().max() < 1e-4
    assert (off - want).abs().mean() > 50 * 1e-4, "the attention must matter for this to say anything"


@pytest.mark.parametrize("size", [(48, 80), (45, 37), (33, 90)], ids=["landscape", "odd", "wide and odd"])
@pytest.mark.parametrize("which", ["small", "paper"])
def test_output_has_the_contents_size_whatever_the_styles(which, size, request):
    network = request.getfixturevalue("paper") if which == "paper" else SmallStyA2K().train(False)
    with torch.no_grad():
        out = network(planes(1, *size), network.encode_style(planes(1, 70, 41, 1)))
    assert out.shape == (1, 3, *size)
    assert torch.isfinite(out).all()


def test_tiny_pictures_pass(paper):
    small = SmallStyA2K().train(False)
    with torch.no_grad():
        for network in (paper, small):
            assert network(planes(1, 2, 3), network.encode_style(planes(1, 5, 4))).shape == (1, 3, 2, 3)


@pytest.mark.parametrize("which", ["small", "paper"])
def test_a_batch_equals_its_frames_one_by_one(which, request):
    network = request.getfixturevalue("paper") if which == "paper" else SmallStyA2K().train(False)
    clip = planes(2, 40, 56)
    with torch.no_grad():
        code = network.encode_style(planes(1, 48, 48, 1))
        together = network(clip, code)
        alone = torch.cat([network(f[None], code) for f in clip])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_trains(kind):
    network = SmallStyA2K(kind=kind)
    style = planes(2, 64, 64, 1)
    network(planes(2, 48, 64), network.encode_style(style)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert network.decode8[0].a.weight.grad.abs().sum() > 0


def test_the_modes_differ():
    network = SmallStyA2K().train(False)
    content, outs = planes(1, 72, 72), []
    with torch.no_grad():
        code = network.encode_style(planes(1, 72, 72, 1))
        outs = [network(content, code, mode) for mode in MODES]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().max() > 1e-4
