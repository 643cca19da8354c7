"""Moments, AdaIN and the colour map against their equations."""

import pytest
import torch

from reelbrush.kernels.moments import color_map, color_moments, match_moments, moments, normalize

from .colors import match_colors


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels last"]
)
def test_moments_are_torchs_with_n_minus_1(layout):
    x = draw(2, 5, 7, 4).contiguous(memory_format=layout)
    mean, std = moments(x)
    torch.testing.assert_close(mean[..., 0, 0], x.mean((2, 3)))
    torch.testing.assert_close(std[..., 0, 0], (x.var((2, 3)) + 1e-5).sqrt())


def test_adain_gives_the_references_moments():
    x, ref = draw(3, 4, 9, 9), draw(1, 4, 5, 8, seed=1) * 3 + 2
    mean, std = moments(match_moments(x, ref, eps=0))
    want_mean, want_std = moments(ref, eps=0)
    torch.testing.assert_close(mean, want_mean.expand_as(mean))
    torch.testing.assert_close(std, want_std.expand_as(std), rtol=1e-4, atol=1e-4)


def test_half_precision_survives_large_maps():
    x = (torch.rand(1, 2, 256, 256) * 60).half()  # a plain sum of squares would be infinite
    assert torch.isfinite(normalize(x)).all()
    assert normalize(x).float().std() == pytest.approx(1, abs=1e-2)


def test_one_position_has_no_spread():
    assert torch.equal(normalize(draw(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1, dtype=torch.float64))


def test_colours_get_the_references_mean_and_covariance():
    x, ref = draw(2, 3, 20, 20), draw(1, 3, 11, 13, seed=1).pow(2)
    mean, cov = color_moments(match_colors(x, ref, gain=1e9))
    want_mean, want_cov = color_moments(ref)
    torch.testing.assert_close(mean, want_mean.expand_as(mean))
    torch.testing.assert_close(cov, want_cov.expand_as(cov), rtol=1e-4, atol=1e-5)


def test_the_colour_map_is_symmetric_and_positive_so_it_moves_colours_least():
    matrix, _ = color_map(color_moments(draw(1, 3, 9, 9)), color_moments(draw(1, 3, 9, 9, seed=1)))
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_a_pictures_own_colours_are_left_as_they_are():
    x = draw(1, 3, 9, 9)
    torch.testing.assert_close(match_colors(x, x), x)


def test_the_noise_of_a_grey_picture_does_not_become_colour():
    grey = draw(1, 1, 16, 16).expand(-1, 3, -1, -1) + 0.002 * draw(1, 3, 16, 16, seed=2)
    colourful = draw(1, 3, 16, 16, seed=3)
    matrix, _ = color_map(color_moments(grey), color_moments(colourful))
    assert torch.linalg.eigvalsh(matrix).max() <= 4 + 1e-9
