"""The DDIM step against eq. 12, and its inverse against an implicit solve done another way."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reelbrush.kernels.ddim import alpha_bar, interpolate, inverse_step, step, step_reference

SHAPE = (2, 4, 3, 5)
levels = st.floats(0.0, 15.0)

CASES = [
    pytest.param(14.6, 9.0, id="down from the noisiest level"),
    pytest.param(0.0292, 0.0, id="down to clean"),
    pytest.param(0.0, 0.0292, id="up from clean"),
    pytest.param(0.5, 4.0, id="a large step up"),
    pytest.param(1.0, 1.0, id="the official loop's first step, which stays"),
]


def draw(seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("sigma", "sigma_to"), CASES)
def test_step_is_eq_12(sigma, sigma_to):
    z, eps = draw()
    torch.testing.assert_close(step(z, eps, sigma, sigma_to), step_reference(z, eps, sigma, sigma_to))


@given(levels, levels)
def test_a_step_there_and_back_with_the_same_noise_is_nothing(sigma, sigma_to):
    z, eps = draw()
    torch.testing.assert_close(step(step(z, eps, sigma, sigma_to), eps, sigma_to, sigma), z)


@given(levels, levels)
def test_in_comfyui_s_scale_the_step_is_euler_s(sigma, sigma_to):
    z, eps = draw()
    there = lambda t, s: t * (1 + s**2) ** 0.5  # noqa: E731
    euler = there(z, sigma) + (sigma_to - sigma) * eps
    torch.testing.assert_close(there(step(z, eps, sigma, sigma_to), sigma_to), euler)


def test_alpha_bar_of_the_schedule_s_first_level():
    assert alpha_bar((1 / 0.99915 - 1) ** 0.5).item() == pytest.approx(0.99915, rel=1e-12)


def linear_model(seed=1, size=12, gain=0.05):
    """A model whose noise is a matrix times z: then the implicit equation is a linear system."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=g, dtype=torch.float64) * gain
    return matrix, torch.randn(size, generator=g, dtype=torch.float64)


def test_refinement_converges_to_the_solution_of_the_implicit_equation():
    matrix, z = linear_model()
    sigma, sigma_to = 1.0, 1.5
    # z = gain_down * z' + coefficient_down * matrix z': solved exactly
    down = step(torch.eye(len(z), dtype=z.dtype), matrix, sigma_to, sigma)
    exact = torch.linalg.solve(down, z)
    errors = [
        (inverse_step(z, lambda t, _: matrix @ t, sigma, sigma_to, refine=n) - exact).norm() / exact.norm()
        for n in range(5)
    ]
    assert all(after < before / 4 for before, after in pairwise(errors))
    assert errors[0] > 1e-3 > 1e-5 > errors[4]


@pytest.mark.parametrize(
    ("convention", "refine", "asked"),
    [("next", 0, [2.0]), ("current", 0, [0.5]), ("next", 2, [2.0] * 3), ("current", 2, [0.5, 2.0, 2.0])],
)
def test_which_noise_level_the_model_is_asked_at(convention, refine, asked):
    z, calls = torch.zeros(3), []
    model = lambda z, sigma: calls.append(sigma) or z  # noqa: E731
    inverse_step(z, model, 0.5, 2.0, convention=convention, refine=refine)
    assert calls == asked


def test_clean_latents_are_asked_at_the_lowest_level_the_model_knows():
    calls = []
    inverse_step(
        torch.zeros(1), lambda z, s: calls.append(s) or z, 0.0, 0.1, convention="current", lowest=0.03
    )
    assert calls == [0.03]


def test_another_convention_raises_an_error():
    with pytest.raises(ValueError, match="next or current"):
        inverse_step(torch.zeros(1), lambda z, s: z, 0.0, 0.1, convention="previous")


def test_interpolation_meets_the_points_and_holds_the_ends():
    values, places = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([1.0, 2.0, 4.0])
    found = [interpolate(values, places, at).item() for at in (-5, 1, 1.5, 2, 3, 4, 99)]
    assert found == [0, 0, 5, 10, 15, 20, 20]
