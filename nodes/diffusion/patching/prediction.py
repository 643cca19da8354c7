"""Continue a sampling from other latents than the sampler's.

A patch cannot change a sampler's latents x. But the sampler moves x along (x - D) / sigma, where D are the
denoised latents that it gets. So a patch evaluates the model on the latents x' from which sampling should
continue, and returns a D with which Euler's step from x ends where it would end from x'. This is exact for
Euler and DDIM; a sampler of higher order integrates the same drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....kernels.ddim import to_x
from ... import host
from ..inversion.trajectory import Trajectory
from .rows import frames_of

_LOWER = 1 - 1e-5  # a level is another one if it differs by more than rounding


@dataclass(frozen=True)
class Prediction:
    """One denoising of the whole clip, with guidance, before any splitting; x is in ComfyUI's scale."""

    x: Tensor
    sigma: float
    following: float  # the next level of the sampling
    first: bool  # whether this is the first level of the sampling
    frames: list[int]
    denoise: Callable[[Tensor], Tensor]

    def content(self, trajectory: Trajectory, sigma: float) -> Tensor:
        """The latents of these frames in a content's trajectory, in ComfyUI's scale."""
        return to_x(trajectory.of_frames(sigma, self.frames, self.x).to(self.x), sigma)

    def continued_from(self, latents: Tensor) -> Tensor:
        """Denoised latents with which the sampler continues from `latents` instead of x."""
        share = self.following / (self.sigma - self.following)
        return self.denoise(latents) + (latents - self.x) * share

    def leading_to(self, latents: Tensor) -> Tensor:
        """Denoised latents with which the sampler has `latents` at the next level."""
        return self.x - (latents - self.x) * (self.sigma / (self.following - self.sigma))


def change_predictions(model: Any, key: str, change: Callable[[Prediction], Tensor]) -> None:
    """On a CLONE: `change` returns the denoised latents of every step."""

    def predict(run: Callable, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sigma = float(timestep.flatten()[0])
        options = (kwargs.get("model_options") or next(iter(args), {})).get("transformer_options", {})
        levels = options.get("sample_sigmas")
        levels = [] if levels is None else levels.tolist()
        following = max((s for s in levels if s < sigma * _LOWER), default=0.0)
        first = sigma >= max(levels, default=sigma) * _LOWER
        denoise = lambda latents: run(latents, timestep, *args, **kwargs)  # noqa: E731
        return change(Prediction(x, sigma, following, first, frames_of(options, len(x)), denoise))

    host.add_wrapper(model, "predict_noise", key, predict)
