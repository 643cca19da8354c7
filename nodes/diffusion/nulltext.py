"""Null-text optimisation (Mokady et al. 2023): empty texts, one a step, that keep guidance on an inversion.

With guidance on, sampling leaves the inverted trajectory. At every step the unconditional text is moved until
the guided step from where sampling stands arrives at the trajectory's next latent; the next step starts from
that text and from where the guided step really arrived. As in the official loops: Adam, at step i the rate
lr (1 - i / 100), left early when the mean squared error falls below 1e-5 + 2e-5 i.

Departures: frames are optimised side by side, each leaving when it is done (the same result as one by one);
and the texts come back as CONDITIONING whose ranges end *between* the trajectory's levels, in the middle by
timestep, so that rounding cannot put a level into two ranges or none, and samplers with points of their own
(Heun's are levels, DPM-2's lie at the geometric middle) find one text too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...kernels import ddim
from .. import host
from .layers import family
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
    """CONDITIONING for the negative input of a sampler that goes down the trajectory's levels with `cfg`."""
    trajectory.require(family(model))
    texts: list[Tensor] = []
    down = trajectory.sigmas.flip(0)

    def descend(denoise: host.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
        with host.gradients():
            z, text = trajectory.latents[-1].to(z).clone(), null[0][0].to(z).clone()
            text = text.expand(len(z), -1, -1).clone()
            for i, (high, low) in enumerate(pairwise(sigmas.tolist())):
                target = trajectory.at(low).to(z).clone()
                step = Step(denoise, high, low, cfg, learning_rate * (1 - i / 100), 1e-5 + 2e-5 * i)
                parts = [
                    step.fit(z[part], text[part], target[part], inner_steps)
                    for part in torch.arange(len(z)).split(frames_per_call or len(z))
                ]
                text, z, denoised = (torch.cat(t) for t in zip(*parts, strict=True))
                texts.append(text.cpu())
                denoise.step(i, z, denoised)
            return z

    clone = host.differentiable(model)
    host.sample(
        clone, descend, trajectory.latents[-1], down, positive, null, cfg=cfg, what="Null-Text Optimization"
    )
    return scheduled(texts, null[0][1], down, model.get_model_object("model_sampling"))


class Step:
    """One guided step, and the text that makes it arrive at a target."""

    def __init__(
        self, denoise: host.Denoiser, high: float, low: float, cfg: float, rate: float, enough: float
    ):
        self.denoise, self.high, self.low = denoise, high, low
        self.cfg, self.rate, self.enough = cfg, rate, enough

    def fit(self, z: Tensor, text: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Text, arrived latents and x0 of some frames."""
        with torch.no_grad():
            cond = self._x0(z, "positive")
        text = text.clone().requires_grad_()
        adam = torch.optim.Adam([text], lr=self.rate)
        working = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(count):
            host.check_interrupt()
            error = (self._arrive(z, cond, text)[0] - target).square().mean((1, 2, 3))
            before = text.detach().clone()
            # The sum, not the mean: each frame's own gradient, whatever stands beside it.
            (text.grad,) = torch.autograd.grad(error[working].sum(), text)
            adam.step()
            with torch.no_grad():
                text[~working] = before[~working]
            working &= error.detach() >= self.enough
            if not working.any():
                break
        with torch.no_grad():
            arrived, denoised = self._arrive(z, cond, text)
        return text.detach(), arrived, denoised

    def _x0(self, z: Tensor, side: str, text: Tensor | None = None) -> Tensor:
        return self.denoise.predict(z * (1 + self.high**2) ** 0.5, self.high, side, text)

    def _arrive(self, z: Tensor, cond: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        uncond = self._x0(z, "negative", text)
        denoised = uncond + self.cfg * (cond - uncond)
        eps = (z * (1 + self.high**2) ** 0.5 - denoised) / self.high
        return ddim.step(z, eps, self.high, self.low), denoised


def scheduled(texts: list[Tensor], values: dict, sigmas: Tensor, sampling: Any) -> list:
    """One conditioning entry per step, `sigmas` descending, its range ending between the levels."""
    places = [percent(sampling, float(sigma)) for sigma in sigmas[: len(texts)]]
    ends = [0.0, *((a + b) / 2 for a, b in pairwise(places)), 1.0]
    return [
        [text, {**values, "start_percent": start, "end_percent": end}]
        for text, (start, end) in zip(texts, pairwise(ends), strict=True)
    ]


def percent(sampling: Any, sigma: float) -> float:
    """The part of the sampling, in 0..1, at which a model's schedule reaches `sigma`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return (low + high) / 2
