"""Attention distillation guided sampling (algorithm 2): classifier guidance with Adam's step size.

    z <- one step of the sampler, to the next noise level (Euler, as in the paper, or any SAMPLER)
    z_s <- the style's latent noised to that level
    z <- AdaIN(z, z_s);  M times:  z <- Adam(z, dL_AD(z, z_s)/dz)      with a new Adam at every level

The sampler's model call is ComfyUI's own: guidance scale, ControlNet, LoRA and regional conditioning work.
Losses and Adam work on variance-preserving latents z = x / sqrt(1 + sigma²): in ComfyUI's scale a constant
learning rate would be too small at high noise.

As in the official loop, AdaIN and the features have separate noises, and the last step ends at the noise
level of timestep 0, not at zero: the UNet was not trained on lower levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import ddim
from ...kernels.moments import match_moments, normalize
from .. import host
from ..diffusion.patching.layers import pick_layers, recomputable
from .features import FeatureReader, Noise, seeded
from .optimize import DistillRecipe, NotANumberError, References, distill

TEXT_TO_IMAGE = DistillRecipe(learning_rate=0.015, content_weight=0.0)


@dataclass(frozen=True)
class Guide:
    """The settings of a guided sampling. Latents are scaled as in a LATENT."""

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
    recipe: DistillRecipe = TEXT_TO_IMAGE
    frames_per_call: int = 0  # 0: from free memory
    style_weights: Sequence[float] = ()
    blend: bool = False
    sampler: Any = None  # a SAMPLER that steps from level to level; None: Euler

    def sampling(self, noise: Noise) -> host.SamplingFunction:
        """The sampling function of a SAMPLER: steps of Euler or of `sampler`, each followed by guidance."""

        def sample(denoise: host.Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
            recomputation = None
            if self.iterations:
                recomputation = denoise.load_differentiable(self._recomputation)
            guidance = GuidedRun(self, denoise.model, x, noise, recomputation)
            i, last = 0, len(sigmas) - 1
            while i < last:
                guided, to = guidance.active(float(sigmas[i])), i + 1
                while self.sampler and not guided and to < last and not guidance.active(float(sigmas[to])):
                    to += 1  # a sampler that uses earlier steps may do so where nothing comes between
                following = sigmas[to]
                level = guidance.reachable(following) if guided else following
                x, denoised = self._steps(denoise, x, torch.cat([sigmas[i:to], level[None]]), i)
                if guided:
                    z = guidance(ddim.to_z(x, level), float(level))
                    x = z if following == 0 else ddim.to_x(z, level)
                denoise.step(to - 1, x, denoised)
                i = to
            return x

        return sample

    def _recomputation(self, model: Any) -> host.Recomputation:
        return host.Recomputation(model, recomputable(model, pick_layers(model, self.layers)))

    def _steps(self, denoise: host.Denoiser, x: Tensor, sigmas: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The latent at the last of some levels, and x0."""
        if self.sampler:
            return denoise.through(self.sampler, x, sigmas, index)
        now, level = sigmas
        denoised = denoise(x, now)
        return x + ddim.noise_in(x, denoised, now) * (level - now), denoised


class GuidedRun:
    """One guided sampling: the loaded model, and the references in model space."""

    def __init__(
        self,
        guide: Guide,
        base: Any,
        x: Tensor,
        noise: Noise,
        recomputation: host.Recomputation | None = None,
    ):
        self.guide, self.noise = guide, noise
        self.reader = FeatureReader(base, guide.null, guide.layers, recomputation)
        with torch.inference_mode(False):
            place = lambda t: t if t is None else base.process_latent_in(t).to(x, copy=True)  # noqa: E731
            self.style, self.content = place(guide.style), place(guide.content)
        percent = base.model_sampling.percent_to_sigma
        self.high, self.low = percent(guide.start_percent), percent(guide.end_percent)
        self.lowest = torch.tensor(self.reader.sigma(0)).to(x)
        self.frames_per_call: int | None = None
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
        return torch.maximum(sigma, self.lowest.to(sigma))

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        guide, noised = self.guide, lambda clean: ddim.noised(clean, self.noise(clean), sigma)
        with host.gradients():
            z = z.detach().clone()
            t = self.reader.timestep(sigma)
            if guide.adain:
                z = adain(z, noised(self.style), guide.style_weights)
            style = noised(self.style)
            uses_content = self.content is not None and guide.recipe.content_weight
            content = noised(self.content) if uses_content else None
            references = References(
                self.reader,
                style,
                content,
                guide.style_mask,
                guide.target_mask,
                guide.style_weights,
                guide.blend,
            )
            references.check(len(z))
            if self.frames_per_call is None:
                self.frames_per_call = self.reader.frames_per_call(z, t, guide.frames_per_call)
            recipe = replace(guide.recipe, frames_per_call=self.frames_per_call)
            try:
                return distill(references, z, [t] * guide.iterations, recipe)
            except NotANumberError:
                if not recipe.keep_last_good:
                    raise
                host.log.warning(
                    "attention distillation met a NaN at noise level %g: this level is not guided", sigma
                )
                return z


def adain(z: Tensor, style: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """AdaIN with the statistics of all pixels of the style pictures, of which each counts by its weight."""
    if len(set(weights)) < 2:
        return match_moments(z, one_picture(style), 1e-12)
    share = torch.tensor(weights).to(style).view(-1, 1, 1, 1) / sum(weights)
    over = {"dim": (0, 2, 3), "keepdim": True}
    mean = (share * style).sum(**over) / style[0, 0].numel()
    variance = (share * (style - mean).square()).sum(**over) / style[0, 0].numel()
    return normalize(z, 1e-12) * variance.sqrt() + mean


def one_picture(latents: Tensor) -> Tensor:
    """All pixels of several pictures as one picture, for their common statistics."""
    return latents.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def sampler(guide: Guide, seed: int) -> Any:
    """A SAMPLER; every sampling draws the same noises again."""
    return host.sampler(
        lambda denoise, x, sigmas: guide.sampling(seeded(seed))(denoise, x, sigmas), "Distill Style (Sampler)"
    )
