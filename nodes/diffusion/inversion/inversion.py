"""DDIM inversion of a clip's latents, and sampling back.

Both are sampling functions that run under ComfyUI's guider (`host.sample`), so that SDXL's size conditioning,
ControlNet, areas, previews, cancelling and low-VRAM loading work as in a sampler. Guidance is off (CFG 1).

The clean latent is used as a variance-preserving latent at the first level. At sigma 0 it is x itself; at
Stable Diffusion's first timestep (sigma 0.0292) this is what the official loops do
(`set_alpha_to_one=False`). The levels for `steps` are the official ones too, timesteps 0, 1000 / steps, ...:
for Z*'s 30 steps 0, 33, ... 957. The official loops' first step goes from level 0 to level 0, changes
nothing, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ....kernels import ddim
from ... import host
from ..patching.layers import family
from ..patching.rows import FrameSplitter
from .trajectory import Trajectory

NOISE_TIMESTEPS = ("next timestep", "current timestep")


def levels(model: Any, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """Ascending noise levels for an inversion: the given ones, or `steps` evenly spaced timesteps."""
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "sigmas") or float(sampling.sigma_max) <= 1.0:  # flow models have sigma <= 1
        raise ValueError(
            "DDIM inversion needs a model that predicts noise or velocity (SD1.x, SD2.x, SDXL), and this is "
            "a flow model: load another checkpoint"
        )
    if sigmas is None:
        table = sampling.sigmas  # one per timestep of the training
        count = min(steps, len(table))
        sigmas = table[torch.arange(count) * (len(table) // count)]
    ascending = sigmas.detach().flatten().cpu().float().unique()
    if len(ascending) < 2:
        raise ValueError(
            f"inversion needs at least two noise levels and has {len(ascending)}: raise `steps`, or connect "
            "SIGMAS with more levels"
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
    report: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Trajectory]:
    """The noise of `latent` (scaled as in a LATENT, for a core sampler) and the trajectory to it."""
    if convention not in NOISE_TIMESTEPS:
        raise ValueError(f"convention is {convention!r}: choose {' or '.join(NOISE_TIMESTEPS)}")
    kept = set(_spread(len(sigmas), save_steps))
    latents: list[Tensor] = []

    def sample_upwards(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        lowest = float(denoise.model.model_sampling.sigma_min)
        latents.append(z.float().cpu())
        for index, (low, high) in enumerate(pairwise(sigmas.tolist())):
            noise = NoisePrediction(denoise)
            z = ddim.inverse_step(
                z, noise, low, high, convention=convention.split()[0], refine=refine, lowest=lowest
            )
            if index + 1 in kept:
                latents.append(z.float().cpu())
            denoise.step(index, z, noise.denoised)
        return ddim.to_x(z, float(sigmas[-1]))

    split = _split(model, frames_per_call)
    noise = host.sample(split, sample_upwards, latent, sigmas, positive, report=report, what="DDIM Inversion")
    levels = sigmas[sorted(kept)].clone()
    return noise, Trajectory(torch.stack(latents), levels, positive, family(model), convention)


def reconstruct(model: Any, trajectory: Trajectory, frames_per_call: int = 0) -> Tensor:
    """Sample from the trajectory's noise down its own levels; the latents, scaled as in a LATENT."""
    trajectory.require(family(model))
    start = trajectory.latents[-1]

    def sample_downwards(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        z = start.to(z)  # not the guider's latent, which ComfyUI does not scale where it is all zeros
        for index, (high, low) in enumerate(pairwise(sigmas.tolist())):
            noise = NoisePrediction(denoise)
            z = ddim.step(z, noise(z, high), high, low)
            denoise.step(index, z, noise.denoised)
        return z

    split, down = _split(model, frames_per_call), trajectory.sigmas.flip(0)
    return host.sample(split, sample_downwards, start, down, trajectory.conditioning, what="Inversion Check")


class NoisePrediction:
    """The noise that a model predicts in variance-preserving latents; it keeps x0 for the preview."""

    def __init__(self, denoise: host.Denoiser):
        self.denoise = denoise
        self.denoised: Tensor | None = None

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        x = ddim.to_x(z, sigma)
        self.denoised = self.denoise(x, sigma)
        return ddim.noise_in(x, self.denoised, sigma)


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of pictures in 0..1; 100 where they are equal."""
    error = float((image.double() - other.double()).square().mean())
    return 100.0 if error < 1e-10 else -10 * float(torch.tensor(error).log10())


def centred(images: Tensor, height: int, width: int) -> Tensor:
    """The centre of IMAGE [N, H, W, C]: a VAE crops sides that it cannot divide by 8."""
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"the images are {images.shape[2]}x{images.shape[1]}, the trajectory decodes to "
            f"{width}x{height}: connect the images that were inverted"
        )
    return images[:, top : top + height, left : left + width]


def _spread(total: int, count: int) -> list[int]:
    """`count` evenly spread indices of 0..total-1 with both ends; all for 0."""
    if not 0 < count < total:
        return list(range(total))
    return torch.linspace(0, total - 1, max(count, 2)).round().long().unique().tolist()


def _split(model: Any, frames: int) -> Any:
    """A clone that samples a few frames per call; the model itself for 0."""
    if not frames:
        return model
    clone = model.clone()
    FrameSplitter(frames).attach(clone)
    return clone
