"""A picture in another's palette: against quantiles taken the slow way, and where it must hold still."""

import numpy
import pytest
import torch

from reelbrush.kernels.palette import BEND, GAIN, look_up, palette_table, sample

from .colors import match_colors, match_palette


def cloud(seed, height=90, width=70, n=1):
    """Pictures whose colours are no Gaussian: a few paints, blended, with grain."""
    g = torch.Generator().manual_seed(seed)
    paints = torch.rand(n, 3, 4, generator=g)
    amounts = torch.nn.functional.interpolate(
        torch.randn(n, 4, 9, 7, generator=g) * 4, (height, width), mode="bicubic"
    ).softmax(1)
    x = torch.einsum("ncp,nphw->nchw", paints, amounts)
    return (x + 0.02 * torch.randn(n, 3, height, width, generator=g)).clamp(0, 1)


def miss(a, b):
    """Mean distance of sorted projections on 40 random directions: sliced Wasserstein, of colours."""
    rng = numpy.random.default_rng(5)
    total = 0.0
    for d in rng.normal(size=(40, 3)):
        d = d / numpy.linalg.norm(d)
        rows = [numpy.quantile(d @ x[0].flatten(1).numpy(), numpy.linspace(0, 1, 500)) for x in (a, b)]
        total += numpy.abs(rows[0] - rows[1]).mean() / 40
    return total


@pytest.mark.parametrize("seed", [0, 2, 4, 6])
def test_palettes_bent_alike_agree_far_better_than_moments_can_make_them(seed):
    """The reference is another picture of the same paints through a tone curve, which is no linear map."""
    x, reference = cloud(seed, 90, 70), cloud(seed, 64, 101)
    reference = 0.1 + 0.8 * reference**1.6
    by_moments, by_palette = (f(x, reference).clamp(0, 1) for f in (match_colors, match_palette))
    assert miss(by_palette, reference) < 0.6 * miss(by_moments, reference)


def test_any_palettes_agree_better_than_moments_can_make_them():
    """Paints that have nothing to do with each other: the curves may bend only so far."""
    pairs = [(cloud(seed), cloud(seed + 1, 64, 101)) for seed in range(0, 12, 2)]
    by_moments, by_palette = (
        sum(miss(f(x, y).clamp(0, 1), y) for x, y in pairs) for f in (match_colors, match_palette)
    )
    assert by_palette < 0.9 * by_moments


def test_a_grey_ramp_takes_a_grey_references_quantiles():
    """Along one axis the map is the monotone map between two distributions: numpy's quantiles."""
    ramp = torch.linspace(0, 1, 80 * 80).view(1, 1, 80, 80).expand(1, 3, -1, -1)
    reference = ramp**2 * 0.8 + 0.1
    made = match_palette(ramp, reference)
    for q in numpy.linspace(0.05, 0.95, 10):
        want = numpy.quantile(reference[0, 0].numpy(), q)
        assert numpy.quantile(made[0].numpy(), q) == pytest.approx(want, abs=0.02)
    rise = made[0, 1].flatten().diff()
    assert rise.min() > -1e-4, "monotone"


def test_a_picture_in_its_own_palette_stays_as_it_is():
    x = cloud(3)
    assert (match_palette(x, x) - x).abs().max() < 0.02


def test_the_grain_of_a_flat_picture_does_not_become_a_palette():
    g = torch.Generator().manual_seed(0)
    flat = 0.5 + 0.004 * torch.randn(1, 3, 64, 64, generator=g)
    made = match_palette(flat, cloud(1))
    assert made.std((2, 3)).max() < GAIN * BEND**3 * 0.004 * 1.2


def test_a_grey_picture_has_no_coloured_grain():
    g = torch.Generator().manual_seed(0)
    grey = torch.rand(1, 1, 64, 64, generator=g).expand(1, 3, -1, -1)
    grey = grey + 0.002 * torch.randn(1, 3, 64, 64, generator=g)
    made = match_palette(grey, cloud(1))
    near = made[0].flatten(1)[:, grey[0].mean(0).flatten().sub(0.5).abs() < 0.01]
    assert near.std(1).max() < 0.08  # pixels of one grey get one colour


def test_neighbouring_colours_stay_neighbours():
    x = cloud(0)
    table = palette_table(sample(x), sample(cloud(1)))
    nudged = (x + 1 / 255).clamp(0, 1)
    assert (look_up(nudged, table) - look_up(x, table)).abs().max() < 0.12


def test_many_pictures_against_one_reference_equal_one_by_one():
    x, reference = cloud(0, n=3), cloud(7)
    together = match_palette(x, reference)
    torch.testing.assert_close(together, torch.cat([match_palette(p[None], reference) for p in x]))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3)])
def test_tiny_pictures_and_references_are_finite(size):
    for x, reference in ((cloud(0)[..., : size[0], : size[1]], cloud(1)), (cloud(0), cloud(1)[..., :1, :1])):
        assert torch.isfinite(match_palette(x, reference)).all()


def test_half_precision_comes_back_in_half_precision():
    x = cloud(0).to(torch.bfloat16)
    made = match_palette(x, cloud(1))
    assert made.dtype == torch.bfloat16
    assert (made.float() - match_palette(x.float(), cloud(1))).abs().max() < 0.02


def test_autocast_does_not_coarsen_colours():
    x, reference = sample(cloud(0)), sample(cloud(1))
    with torch.autocast("cpu", torch.bfloat16):
        made = palette_table(x, reference)
    torch.testing.assert_close(made, palette_table(x, reference))
