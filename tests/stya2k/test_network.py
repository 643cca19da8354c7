"""Both networks: the official arithmetic where the official code runs, any shape elsewhere."""

from dataclasses import replace

import cv2
import numpy
import pytest
import torch
from torch.nn import functional

from reelbrush.nodes.stya2k.attention import KINDS, MODES
from reelbrush.nodes.stya2k.modulated import Halve, ModulatedStyA2K
from reelbrush.nodes.stya2k.small import SmallStyA2K, Soften


def planes(n, h, w, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, h, w, generator=g)


OURS = {"small": SmallStyA2K, "modulated": ModulatedStyA2K}


@pytest.fixture(params=["small", "modulated", "paper"])
def network(request):
    """Each network."""
    return OURS[request.param]().train(False) if request.param in OURS else request.getfixturevalue("paper")


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
def test_output_has_the_contents_size_whatever_the_styles(network, size):
    with torch.no_grad():
        out = network(planes(1, *size), network.encode_style(planes(1, 70, 41, 1)))
    assert out.shape == (1, 3, *size)
    assert torch.isfinite(out).all()


def test_tiny_pictures_pass(network):
    with torch.no_grad():
        assert network(planes(1, 2, 3), network.encode_style(planes(1, 5, 4))).shape == (1, 3, 2, 3)


def test_a_batch_equals_its_frames_one_by_one(network):
    clip = planes(2, 40, 56)
    with torch.no_grad():
        code = network.encode_style(planes(1, 48, 48, 1))
        together = network(clip, code)
        alone = torch.cat([network(f[None], code) for f in clip])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "layer"), [("small", "decode8.0.a.weight"), ("modulated", "block8.a.weight")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_trains(kind, ours, layer):
    network = OURS[ours](kind=kind)
    style = planes(2, 64, 64, 1)
    network(planes(2, 48, 64), network.encode_style(style)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert network.get_parameter(layer).grad.abs().sum() > 0


@pytest.mark.parametrize("ours", OURS)
def test_the_modes_differ(ours):
    network = OURS[ours]().train(False)
    content, outs = planes(1, 72, 72), []
    with torch.no_grad():
        code = network.encode_style(planes(1, 72, 72, 1))
        outs = [network(content, code, mode) for mode in MODES]
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert (a - b).abs().max() > 1e-4


def test_a_halved_map_is_the_mean_of_its_surroundings():
    """A binomial of four points a side, between whose middle two the new point lies; borders are repeated."""
    x = planes(2, 8, 12)
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    weights = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    want = torch.zeros(2, 3, 4, 6)
    for i, a in enumerate(weights):
        for j, b in enumerate(weights):
            want += a * b * padded[..., i : i + 8 : 2, j : j + 12 : 2]
    torch.testing.assert_close(Halve()(x), want)


def test_a_style_changes_what_the_decoder_makes_of_the_same_features():
    """The signals alone: with the codes of one style and the signals of another the picture is another."""
    network = ModulatedStyA2K().train(False)
    torch.nn.init.normal_(network.signal[2].weight, std=0.1)
    with torch.no_grad():
        a, b = (network.encode_style(planes(1, 64, 64, seed) ** (1 + 2 * seed)) for seed in (0, 1))
        content = planes(1, 48, 48, 2)
        mixed = network(content, replace(a, signals=b.signals))
        assert (mixed - network(content, a)).abs().max() > 1e-3


def test_a_softened_map_keeps_what_is_flat_up_to_its_borders():
    flat = torch.arange(1.0, 4.0).view(1, 3, 1, 1).expand(1, 3, 2, 7)
    torch.testing.assert_close(Soften()(flat), flat)
    x = planes(1, 9, 8)
    want = cv2.sepFilter2D(x[0].permute(1, 2, 0).numpy(), -1, *[numpy.array([0.25, 0.5, 0.25])] * 2)
    inside = slice(1, -1)  # OpenCV's borders are others
    torch.testing.assert_close(
        Soften()(x)[0, :, inside, inside], torch.from_numpy(want).permute(2, 0, 1)[:, inside, inside]
    )


def test_softened_maps_move_with_the_picture():
    """Moved by half a point of a map: it should be what lies between its points. Noise has all there is to
    go wrong; the bounds are halfway to what a network misses by whose map alone is halved as it is."""
    torch.manual_seed(0)
    soft, plain = SmallStyA2K().train(False), SmallStyA2K(halving="plain").train(False)
    plain.load_state_dict(soft.state_dict())
    noise = torch.rand(1, 3, 392, 392, generator=torch.Generator().manual_seed(1))
    for level, most in enumerate((0.7, 0.5, 0.25, 0.1)):  # of what the plain one misses, at 1/2 to 1/16
        by, missed = 2**level, []
        for network in (soft, plain):
            with torch.no_grad():
                pictures = noise[..., :384, :384], noise[..., by : by + 384, by : by + 384]
                here, moved = (network.encode(x).maps[level] for x in pictures)
            between = functional.avg_pool2d(here, 2, 1)
            gap = (moved[..., :-1, :-1] - between)[..., 4:-4, 4:-4]
            missed.append(gap.square().mean() / here.var())
        assert missed[0] < most * missed[1], by
