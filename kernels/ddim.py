"""The deterministic DDIM step and its inverse (Song et al. 2021, eq. 12 with sigma_t = 0), on alpha-bar.

    x0 = (z - sqrt(1 - a) eps) / sqrt(a),        z' = sqrt(a') x0 + sqrt(1 - a') eps

z is the variance-preserving latent at alpha-bar `a`, eps the noise that the model predicts in it; a' > a
denoises, a' < a inverts. Levels are given as sigma, as in ComfyUI: a = 1 / (1 + sigma^2), and
x = z sqrt(1 + sigma^2) is the input of ComfyUI's models. In x the step is Euler's step:
x' = x + (sigma' - sigma) eps.

Inversion is an implicit equation: the noise of the step belongs to the noisier latent, which is unknown. The
two conventions evaluate the model on the known latent, and differ in the noise level that they pass with it:

    next      the level that the step goes to (the official inversion loops of Z*, DiffStyler, AD, null-text)
    current   the level of the latent

`refine` solves the implicit equation by fixed-point iterations. Each evaluates the model on the last result
at the level that the step goes to (as in Pan et al. 2023, AIDI).

Shapes: any; one level for all rows. Limits: sigma' > 0 where the model is evaluated; the step from level 0
evaluates the model at its lowest level (`lowest`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

NOISE_LEVELS = ("next", "current")
Level = Tensor | float


def alpha_bar(sigma: Level) -> Tensor:
    """1 / (1 + sigma^2), which diffusers calls alphas_cumprod."""
    return 1 / (1 + torch.as_tensor(sigma, dtype=torch.float64) ** 2)


def x_scale(sigma: Level) -> Level:
    """sqrt(1 + sigma^2): x = z * x_scale(sigma)."""
    return (1 + sigma**2) ** 0.5


def to_x(z: Tensor, sigma: Level) -> Tensor:
    """Variance-preserving latents in ComfyUI's scale."""
    return z * x_scale(sigma)


def to_z(x: Tensor, sigma: Level) -> Tensor:
    """ComfyUI's latents in variance-preserving scale."""
    return x / x_scale(sigma)


def noised(clean: Tensor, noise: Tensor, sigma: Level) -> Tensor:
    """Clean latents with noise at a level, in variance-preserving scale."""
    return to_z(clean + sigma * noise, sigma)


def noise_in(x: Tensor, denoised: Tensor, sigma: Level) -> Tensor:
    """The noise eps that a model has predicted, from its denoised latents; x is in ComfyUI's scale."""
    return (x - denoised) / sigma


def step_reference(z: Tensor, eps: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """Eq. 12 as it is written."""
    a, a_to = (float(alpha_bar(s)) for s in (sigma, sigma_to))
    x0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
    return a_to**0.5 * x0 + (1 - a_to) ** 0.5 * eps


def step(z: Tensor, eps: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """One step from level `sigma` to `sigma_to`, up or down, without a division by sqrt(a)."""
    gain = ((1 + sigma**2) / (1 + sigma_to**2)) ** 0.5
    return z * gain + eps * ((sigma_to - sigma) / x_scale(sigma_to))


def inverse_step(
    z: Tensor,
    noise: Callable[[Tensor, float], Tensor],
    sigma: float,
    sigma_to: float,
    *,
    convention: str = "next",
    refine: int = 0,
    lowest: float = 0.0,
) -> Tensor:
    """One step up, from `sigma` to `sigma_to`; `noise(z, sigma)` is the model, called 1 + refine times."""
    if convention not in NOISE_LEVELS:
        raise ValueError(
            f"{convention!r} is not a convention of DDIM inversion: use {' or '.join(NOISE_LEVELS)}"
        )
    at = sigma_to if convention == "next" else max(sigma, lowest)
    raised = step(z, noise(z, at), sigma, sigma_to)
    for _ in range(refine):
        raised = step(z, noise(raised, sigma_to), sigma, sigma_to)
    return raised


def interpolate(values: Tensor, places: Tensor, at: float) -> Tensor:
    """values[S, ...] at a position between places[S] (ascending), linear; beyond the ends the end values."""
    index = int(torch.searchsorted(places, at))
    if index == 0 or index == len(places):
        return values[min(index, len(places) - 1)]
    low, high = float(places[index - 1]), float(places[index])
    return values[index - 1].lerp(values[index], (at - low) / (high - low))
