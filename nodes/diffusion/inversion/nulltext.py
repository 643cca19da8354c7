"""Null-text optimization (Mokady et al. 2023): one empty-text embedding per step for guided sampling.

Sampling with guidance leaves the inverted trajectory. At every step the unconditional text embedding is
optimized until the guided step reaches the trajectory's next latent. The next step starts with this embedding
and at the latent that the guided step has really reached. As in the official loops: Adam, learning rate
lr (1 - i / 100) at step i, stopped early when the mean squared error is below 1e-5 + 2e-5 i.

Departures: several frames are optimized in one batch, each until its own error is small (the same result as
one by one). The embeddings are returned as CONDITIONING whose ranges end between the trajectory's levels,
halfway in timestep. So rounding cannot put a level into two ranges or none, and samplers that evaluate
between the levels (DPM-2 at the geometric mean) have exactly one embedding too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ....kernels import ddim
from ... import host
from ..patching.layers import family
from .trajectory import Trajectory


def optimize(
    model: Any,
    positive: list,
    null: list,
    trajectory: Trajectory,
    *,
    cfg: float = 7.5,
    inner_steps: int = 10,
    learning_rate: float = 0.01,
    frames_per_call: int = 4,
) -> list:
    """CONDITIONING for a sampler's negative input, for the trajectory's levels and `cfg`."""
    trajectory.require(family(model))
    texts: list[Tensor] = []
    down = trajectory.sigmas.flip(0)

    def sample_downwards(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        with host.gradients():
            z, text = trajectory.latents[-1].to(z).clone(), null[0][0].to(z).clone()
            text = text.expand(len(z), -1, -1).clone()
            for i, (high, low) in enumerate(pairwise(sigmas.tolist())):
                target = trajectory.at(low).to(z).clone()
                step = NullTextStep(denoise, high, low, cfg, learning_rate * (1 - i / 100), 1e-5 + 2e-5 * i)
                batches = [
                    step.fit(z[rows], text[rows], target[rows], inner_steps)
                    for rows in torch.arange(len(z)).split(frames_per_call or len(z))
                ]
                text, z, denoised = (torch.cat(t) for t in zip(*batches, strict=True))
                texts.append(text.cpu())
                denoise.step(i, z, denoised)
            return z

    host.sample(
        host.differentiable(model),
        sample_downwards,
        trajectory.latents[-1],
        down,
        positive,
        null,
        cfg=cfg,
        what="Null-Text Optimization",
    )
    return scheduled(texts, null[0][1], down, model.get_model_object("model_sampling"))


class NullTextStep:
    """One guided step, and the embedding with which it reaches a target."""

    def __init__(
        self, denoise: host.Denoiser, high: float, low: float, cfg: float, rate: float, tolerance: float
    ):
        self.denoise, self.high, self.low = denoise, high, low
        self.cfg, self.rate, self.tolerance = cfg, rate, tolerance

    def fit(self, z: Tensor, text: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding, reached latents and x0 of some frames."""
        with torch.no_grad():
            cond = self._x0(z, "positive")
        text = text.clone().requires_grad_()
        adam = torch.optim.Adam([text], lr=self.rate)
        active = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(count):
            host.check_interrupt()
            error = (self._step(z, cond, text)[0] - target).square().mean((1, 2, 3))
            before = text.detach().clone()
            # the sum, not the mean: a frame's gradient does not depend on the other frames of the batch
            (text.grad,) = torch.autograd.grad(error[active].sum(), text)
            adam.step()
            with torch.no_grad():
                text[~active] = before[~active]
            active &= error.detach() >= self.tolerance
            if not active.any():
                break
        with torch.no_grad():
            reached, denoised = self._step(z, cond, text)
        return text.detach(), reached, denoised

    def _x0(self, z: Tensor, side: str, text: Tensor | None = None) -> Tensor:
        return self.denoise.predict(ddim.to_x(z, self.high), self.high, side, text)

    def _step(self, z: Tensor, cond: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        uncond = self._x0(z, "negative", text)
        denoised = uncond + self.cfg * (cond - uncond)
        eps = ddim.noise_in(ddim.to_x(z, self.high), denoised, self.high)
        return ddim.step(z, eps, self.high, self.low), denoised


def scheduled(texts: list[Tensor], options: dict, sigmas: Tensor, sampling: Any) -> list:
    """One conditioning entry per step of descending `sigmas`, whose range ends between the levels."""
    places = [percent(sampling, float(sigma)) for sigma in sigmas[: len(texts)]]
    ends = [0.0, *((a + b) / 2 for a, b in pairwise(places)), 1.0]
    return [
        [text, {**options, "start_percent": start, "end_percent": end}]
        for text, (start, end) in zip(texts, pairwise(ends), strict=True)
    ]


def percent(sampling: Any, sigma: float) -> float:
    """The position in the sampling schedule, 0..1, at which it reaches `sigma`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return (low + high) / 2
