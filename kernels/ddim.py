"""The deterministic DDIM step and its inverse (Song et al. 2021, eq. 12 with sigma_t = 0), on alpha-bar.

    x0 = (z - sqrt(1 - a) eps) / sqrt(a),        z' = sqrt(a') x0 + sqrt(1 - a') eps

z is the variance-preserving latent at alpha-bar `a`, eps the noise the model sees in it; a' > a denoises,
a' < a inverts. Here a level is a sigma, as ComfyUI counts: a = 1 / (1 + sigma^2), and x = z sqrt(1 + sigma^2)
is what ComfyUI's models take. In x the step is Euler's: x' = x + (sigma' - sigma) eps.

Inverting is implicit: the noise of the step belongs to the *noisier* latent, which is not known yet. The two
conventions evaluate the model at the latent that is known, and differ in the noise level they name beside it:

    next      the level that the step goes to (the official inversion loops of Z*, DiffStyler, AD, null-text)
    current   the level that the latent has

`refine` then solves the implicit equation by fixed-point iterations, each evaluating the model at the last
guess and the level that the step goes to; the round trip's error shrinks with every one while the model
is smooth at this step size (as in Pan et al. 2023, AIDI).

Shapes: any; one level for all rows. Limits: sigma' > 0 where the model is evaluated; a level of 0 is left
with the noise at the lowest level that the model knows (`lowest`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

CONVENTIONS = ("next", "current")


def alpha_bar(sigma: Tensor | float) -> Tensor:
    """1 / (1 + sigma^2): what diffusers calls alphas_cumprod."""
    return 1 / (1 + torch.as_tensor(sigma, dtype=torch.float64) ** 2)


def reference(z: Tensor, eps: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """Eq. 12 as it is written."""
    a, a_to = (float(alpha_bar(s)) for s in (sigma, sigma_to))
    x0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
    return a_to**0.5 * x0 + (1 - a_to) ** 0.5 * eps


def step(z: Tensor, eps: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """One step from level `sigma` to `sigma_to`, up or down; two multiplications, no division by sqrt(a)."""
    gain = ((1 + sigma**2) / (1 + sigma_to**2)) ** 0.5
    return z * gain + eps * ((sigma_to - sigma) / (1 + sigma_to**2) ** 0.5)


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
    if convention not in CONVENTIONS:
        raise ValueError(f"{convention!r} is no convention of DDIM inversion: {' or '.join(CONVENTIONS)}")
    at = sigma_to if convention == "next" else max(sigma, lowest)
    raised = step(z, noise(z, at), sigma, sigma_to)
    for _ in range(refine):
        raised = step(z, noise(raised, sigma_to), sigma, sigma_to)
    return raised


def interpolate(values: Tensor, places: Tensor, at: float) -> Tensor:
    """values[S, ...] at a place between places[S] (ascending), linear; the ends serve beyond them."""
    index = int(torch.searchsorted(places, at))
    if index == 0 or index == len(places):
        return values[min(index, len(places) - 1)]
    low, high = float(places[index - 1]), float(places[index])
    return values[index - 1].lerp(values[index], (at - low) / (high - low))
