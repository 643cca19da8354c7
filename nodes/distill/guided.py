"""Attention distillation guided sampling (algorithm 2): classifier guidance whose strength Adam manages.

    z <- one deterministic step of the sampler, to the next noise level
    z_s <- the style's latent noised to that level
    z <- AdaIN(z, z_s);  M times:  z <- Adam(z, dL_AD(z, z_s)/dz)      with a fresh Adam at every level

The model call is ComfyUI's own, so guidance scale, ControlNet, LoRA and regional conditioning are whatever
the guider makes of them. Losses and Adam work on variance-preserving latents z = x / sqrt(1 + sigma²): in
ComfyUI's scale a fixed learning rate would vanish next to the noise.

As in the official loop, AdaIN and the features have noises of their own, and the last step ends at the noise
level of timestep 0, not at none: the UNet has seen no lower one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...kernels.moments import match_moments
from .. import host
from . import features
from .features import Eye
from .optimize import NotANumberError, Recipe, References, distill

Noise = Callable[[Tensor], Tensor]
TEXT_TO_IMAGE = Recipe(learning_rate=0.015, content_weight=0.0)


@dataclass(frozen=True)
class Guide:
    """What a guided step is guided by. Latents are as LATENT carries them."""

    style: Tensor
    null: list
    content: Tensor | None = None
    iterations: int = 2
    adain: bool = True
    layers: str = "last 6"
    start_percent: float = 0.0
    end_percent: float = 1.0
    style_mask: Tensor | None = None
    target_mask: Tensor | None = None
    recipe: Recipe = TEXT_TO_IMAGE
    frames_per_call: int = 0  # 0: from free memory

    def sampling(self, noise: Noise) -> Callable[[Any, Tensor, Tensor], Tensor]:
        """The sampling function of a SAMPLER: Euler steps, each followed by guidance."""

        def sample(denoise: Any, x: Tensor, sigmas: Tensor) -> Tensor:
            guidance = Guidance(self, denoise.model, x, noise)
            for i, (now, then) in enumerate(pairwise(sigmas)):
                denoised = denoise(x, now)
                guided = guidance.active(float(now))
                level = guidance.reachable(then) if guided else then
                x = x + (x - denoised) / now * (level - now)
                if guided:
                    scale = (1 + level**2).sqrt()
                    z = guidance(x / scale, float(level))
                    x = z if then == 0 else z * scale
                denoise.step(i, x, denoised)
            return x

        return sample


class Guidance:
    """A guide in a running sampling: the loaded model, the references in model space."""

    def __init__(self, guide: Guide, base: Any, x: Tensor, noise: Noise):
        self.guide, self.noise = guide, noise
        self.eye = Eye(base, guide.null, guide.layers)
        with torch.inference_mode(False):
            place = lambda t: t if t is None else base.process_latent_in(t).to(x, copy=True)  # noqa: E731
            self.style, self.content = place(guide.style), place(guide.content)
        percent = base.model_sampling.percent_to_sigma
        self.high, self.low = percent(guide.start_percent), percent(guide.end_percent)
        self.least = torch.tensor(self.eye.sigma(0)).to(x)
        self.plan: features.Plan | None = None
        if self.content is not None and len(self.content) not in (1, len(x)):
            raise ValueError(
                f"the content has {len(self.content)} frames and the latent {len(x)}: "
                "give one content frame, or as many as the latent has"
            )

    def active(self, sigma: float) -> bool:
        """Whether the step that starts at this level is guided."""
        return self.guide.iterations > 0 and self.low <= sigma <= self.high

    def reachable(self, sigma: Tensor) -> Tensor:
        """The level, or that of timestep 0 where it is lower."""
        return torch.maximum(sigma, self.least.to(sigma))

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        guide, eye = self.guide, self.eye
        with features.gradients(eye.base, frugal=self.plan is not None and self.plan.frugal):
            z = z.detach().clone()
            t = eye.timestep(sigma)
            noised = lambda clean: (clean + sigma * self.noise(clean)) / (1 + sigma**2) ** 0.5  # noqa: E731
            if guide.adain:
                z = match_moments(z, one_picture(noised(self.style)), 1e-12)
            style = noised(self.style)
            content = (
                noised(self.content) if self.content is not None and guide.recipe.content_weight else None
            )
            references = References(eye, style, content, guide.style_mask, guide.target_mask)
            references.check_masks(len(z))
        if self.plan is None:
            self.plan = features.plan(eye, z, t, guide.frames_per_call)
        recipe = self.plan.on(guide.recipe)
        with features.gradients(eye.base, frugal=self.plan.frugal):
            try:
                return distill(references, z, [t] * guide.iterations, recipe)
            except NotANumberError:
                if not recipe.keep_last_good:
                    raise
                host.log.warning(
                    "attention distillation met a NaN at noise level %g: not guided there", sigma
                )
                return z


def one_picture(latents: Tensor) -> Tensor:
    """Several pictures' pixels as one picture, for their common statistics."""
    return latents.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def seeded(seed: int) -> Noise:
    """Noise that a seed repeats, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def replayed(noises: Sequence[Tensor]) -> Noise:
    """Noises from a list, one after the other: another program's, for a comparison."""
    queue = iter(noises)
    return lambda like: next(queue).to(like)


def sampler(guide: Guide, seed: int) -> Any:
    """A guide as a SAMPLER; every sampling run draws the same noises again."""
    return host.sampler(
        lambda denoise, x, sigmas: guide.sampling(seeded(seed))(denoise, x, sigmas),
        "Distill Style (Sampler)",
    )
