"""DDIM inversion of a clip's latents, and the way back.

Both are sampling functions that run under ComfyUI's guider (`host.sample`), so that SDXL's size conditioning,
ControlNet, areas, previews, cancelling and low-VRAM loading work as in a sampler. Guidance is off (CFG 1).

The clean latent counts as a variance-preserving latent at the first level. From sigma 0 it is x itself;
from Stable Diffusion's first timestep (sigma 0.0292) it is what the official loops make of it
(`set_alpha_to_one=False`). The levels that `steps` stands for are the official ones too, timesteps 0,
1000 / steps, ...: Z*'s 30 are 0, 33, ... 957. The official loops' first step (from level 0 to level 0)
changes nothing and is left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...kernels import ddim
from .. import host
from .layers import family
from .rows import FramesPerCall
from .trajectory import Trajectory

CONVENTIONS = ("next timestep", "current timestep")


def levels(model: Any, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """Noise levels to invert through, ascending: those given, or `steps` evenly spaced timesteps."""
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "sigmas") or float(sampling.sigma_max) <= 1.0:  # flow models mix, sigma <= 1
        raise ValueError(
            "DDIM inversion needs a model that predicts noise or velocity (SD1.x, SD2.x, SDXL), and this is "
            "a flow model: load another checkpoint"
        )
    if sigmas is None:
        table = sampling.sigmas  # of every timestep the model was trained with
        count = min(steps, len(table))
        sigmas = table[torch.arange(count) * (len(table) // count)]
    ascending = sigmas.detach().flatten().cpu().float().unique()
    if len(ascending) < 2:
        raise ValueError(
            f"inversion needs at least two noise levels, not {len(ascending)}: raise `steps`, or give SIGMAS "
            "with more"
        )
    return ascending


def invert(
    model: Any,
    positive: list,
    latent: Tensor,
    sigmas: Tensor,
    *,
    convention: str = "next timestep",
    refine: int = 0,
    save_steps: int = 0,
    frames_per_call: int = 0,
) -> tuple[Tensor, Trajectory]:
    """The noise of `latent` (as LATENT carries it, ready for a core sampler) and the way there."""
    if convention not in CONVENTIONS:
        raise ValueError(f"{convention!r} is no convention of inversion: {' or '.join(CONVENTIONS)}")
    kept = set(_spread(len(sigmas), save_steps))
    found: list[Tensor] = []
    model_family = family(model)

    def climb(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        lowest = float(denoise.model.model_sampling.sigma_min)
        found.append(z.float().cpu())
        for index, (low, high) in enumerate(pairwise(sigmas.tolist())):
            seen = Seen(denoise)
            z = ddim.inverse_step(
                z, seen, low, high, convention=convention.split()[0], refine=refine, lowest=lowest
            )
            if index + 1 in kept:
                found.append(z.float().cpu())
            denoise.step(index, z, seen.denoised)
        return z * (1 + float(sigmas[-1]) ** 2) ** 0.5

    noise = host.sample(_few(model, frames_per_call), climb, latent, sigmas, positive, what="DDIM Inversion")
    levels = sigmas[sorted(kept)].clone()
    return noise, Trajectory(torch.stack(found), levels, positive, model_family, convention)


def reconstruct(model: Any, trajectory: Trajectory, frames_per_call: int = 0) -> Tensor:
    """Sampling down the trajectory's own levels from its noise: the latents that come out, as LATENT."""
    trajectory.require(family(model))
    start = trajectory.latents[-1]

    def descend(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        z = start.to(z)  # the guider leaves an all-zero latent unscaled; start from what was kept
        for index, (high, low) in enumerate(pairwise(sigmas.tolist())):
            seen = Seen(denoise)
            z = ddim.step(z, seen(z, high), high, low)
            denoise.step(index, z, seen.denoised)
        return z

    down = trajectory.sigmas.flip(0)
    few = _few(model, frames_per_call)
    return host.sample(few, descend, start, down, trajectory.conditioning, what="Inversion Check")


class Seen:
    """The noise that a model sees in variance-preserving latents; keeps the last x0 for the preview."""

    def __init__(self, denoise: host.Denoiser):
        self.denoise = denoise
        self.denoised: Tensor | None = None

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        x = z * (1 + sigma**2) ** 0.5
        self.denoised = self.denoise(x, sigma)
        return (x - self.denoised) / sigma


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of pictures in 0..1; 100 where they are equal."""
    error = float((image.double() - other.double()).square().mean())
    return 100.0 if error < 1e-10 else -10 * float(torch.tensor(error).log10())


def centred(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of IMAGE [N, H, W, C], as a VAE crops what it cannot divide by 8."""
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"the images are {images.shape[2]}x{images.shape[1]}, the trajectory decodes to "
            f"{width}x{height}: give the images that were inverted"
        )
    return images[:, top : top + height, left : left + width]


def _spread(total: int, count: int) -> list[int]:
    """`count` indices of 0..total-1, evenly spread, both ends among them; all for 0."""
    if not 0 < count < total:
        return list(range(total))
    return torch.linspace(0, total - 1, max(count, 2)).round().long().unique().tolist()


def _few(model: Any, frames: int) -> Any:
    if not frames:
        return model
    clone = model.clone()
    FramesPerCall(frames).attach(clone)
    return clone
