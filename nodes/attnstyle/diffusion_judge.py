"""A diffusion model as the judge: how well it predicts a picture's noise under each text.

A picture's latent z is noised to x = z + sigma eps at a few levels, and the model predicts the noise under
each text (the diffusion classifier, Li et al. 2023):

    err_T(I) = mean over levels of |eps_T(x) - eps|^2,       P(T | I) = softmax over T of -k err_T(I) / m

with m the mean error on the content pictures, so that k has no unit. Like the CLIP judge it is directional:
the loss measures how far the picture has moved from the source text to the style text,

    a(I) = err_style(I) - err_source(I),       loss(I) = 1 + tanh(k (a(I) - a(I_cont)) / m)

in 0..2; it is 1 if nothing changed. Both texts, and a picture and its content, use the same noise, so what
they have in common cancels. Each picture's passes are recomputed in the backward pass, so memory holds
the graph of only one UNet call.

The paper names this judge but gives no formulas; these are ours. It needs an image model (SD1.x, SD2,
SDXL). Each patch costs two UNet evaluations per noise level, so use few patches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.utils.checkpoint import checkpoint

from ...kernels.ddim import noised
from .. import host
from ..diffusion.patching.layers import network

SHARPNESS = 50.0  # k
LAYOUT_SIDE = 16


def parse_range(text: str) -> tuple[float, float]:
    """ "0.2-0.6" to (0.2, 0.6): shares of the training timesteps, 0 clean and 1 noise."""
    first, _, last = text.replace(" ", "").partition("-")
    try:
        low, high = float(first), float(last or first)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"timesteps is {text!r}: give a range of shares between 0 (clean) and 1 (noise), "
            'such as "0.2-0.6"'
        )
    return low, high


class DiffusionJudge:
    """A MODEL, its VAE and its CLIP."""

    def __init__(
        self, model: Any, vae: Any, clip: Any, timesteps: str = "0.2-0.6", samples: int = 2, size: int = 512
    ):
        network(model)  # flow models have timesteps too, but no noise to predict
        self.model, self.vae, self.clip = host.differentiable(model), vae, clip
        self.range, self.samples, self.size = parse_range(timesteps), samples, size
        self._encoder = VAEEncoder(vae.first_stage_model)
        self._weights: dict[str, Tensor] | None = None
        self._base: Any = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Load the UNet, and copy the VAE's weights so that autograd accepts them."""
        if self._base is not None:
            yield
            return
        with host.loaded(self.model) as base, host.gradients():
            self._weights = {
                k: w.detach().to(host.device(), torch.float32, copy=True)
                for k, w in self._encoder.state_dict(keep_vars=True).items()
            }
            self._base = base
            try:
                yield
            finally:
                self._weights = self._base = None

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] to model-space latents, resized to the judge's square."""
        if images.shape[-2:] != (self.size, self.size):
            images = interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        pixels = self.vae.process_input(images)
        return self._base.process_latent_in(functional_call(self._encoder, self._weights, (pixels,)))

    def text(self, text: str) -> list:
        """CONDITIONING of one text."""
        found = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        # copies, because autograd cannot use inference tensors
        return [
            [c.clone().to(host.device()), {k: v.clone() if torch.is_tensor(v) else v for k, v in d.items()}]
            for c, d in found
        ]

    def levels(self, generator: torch.Generator) -> list[float]:
        """One random noise level from each equal part of the range."""
        low, high = self.range
        shares = (torch.arange(self.samples) + torch.rand(self.samples, generator=generator)) / self.samples
        sampling = self._base.model_sampling
        last = len(sampling.sigmas) - 1
        return [float(sampling.sigmas[round((low + (high - low) * s) * last)]) for s in shares.tolist()]

    def errors(self, images: Tensor, texts: list[list], generator: torch.Generator) -> Tensor:
        """[N, T, h, w]: the squared error of the predicted noise at each place, averaged over the levels."""
        rows = []
        for image in images.split(1):
            z = checkpoint(self.encode, image, use_reentrant=False)
            parts = []
            for sigma in self.levels(generator):
                noise = torch.randn(z.shape, generator=generator).to(z)
                parts.append(
                    torch.stack(
                        [checkpoint(self._error, z, noise, sigma, t, use_reentrant=False) for t in texts], 1
                    )
                )
            rows.append(torch.stack(parts).mean(0))
        return torch.cat(rows)

    def _error(self, z: Tensor, noise: Tensor, sigma: float, text: list) -> Tensor:
        options = host.transformer_options(self.model, z.new_full((1,), sigma))
        conditions = host.conditions(self._base, text, z)
        conditions = {k: v.to(z.device) if torch.is_tensor(v) else v for k, v in conditions.items()}
        denoised = host.evaluate(self._base, noised(z, noise, sigma), sigma, conditions, options)
        # (x - denoised) / sigma is the predicted noise
        return ((z - denoised) / sigma).square().mean(1)

    def aim(
        self,
        style_text: str,
        source_text: str,
        content: Tensor,
        others: Sequence[str] = (),
        templates: str = "",
    ) -> "DiffusionAim":
        """The texts are prompts, so `templates` are not used."""
        return DiffusionAim(self, style_text, source_text, content, others)

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        with self.ready():
            errors = self.errors(images, [self.text(t) for t in texts], _seeded()).mean((-1, -2))
        return (-SHARPNESS * errors / errors.detach().mean()).softmax(-1)


class VAEEncoder(nn.Module):
    """A VAE's encode() as a forward(), for functional_call."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class DiffusionAim:
    """Style text and source text as conditionings, and the content pictures' own errors."""

    REPEATS = 4  # noise draws for the content pictures, whose error is used in every epoch

    def __init__(
        self,
        judge: DiffusionJudge,
        style_text: str,
        source_text: str,
        content: Tensor,
        others: Sequence[str] = (),
    ):
        self.judge, self.generator = judge, _seeded()
        self.texts = [judge.text(t) for t in (style_text, source_text)]
        self.others = [judge.text(t) for t in others]
        with torch.no_grad():
            repeated = content.repeat_interleave(self.REPEATS, dim=0)
            errors = judge.errors(repeated, self.texts, self.generator).mean((-1, -2))
            errors = errors.unflatten(0, (len(content), self.REPEATS)).mean(1)
        self.typical = errors.mean()
        self.content = errors[:, 0] - errors[:, 1]
        # of shared pictures: the state that their noise is drawn from, and their errors
        self._shared: tuple[Tensor, Tensor, Tensor] | None = None

    @contextmanager
    def sharing(self, images: Tensor) -> Iterator[None]:
        state = self.generator.get_state()
        self._shared = images, state, self._errors(images)
        try:
            yield
        finally:
            self._shared = None

    def _errors(self, images: Tensor) -> Tensor:
        """[M, 2]: the mean errors with the style text and with the source text."""
        if self._shared is not None and self._shared[0] is images:
            return self._shared[2]
        return self.judge.errors(images, self.texts, self.generator).mean((-1, -2))

    def loss(self, images: Tensor, frame: Tensor) -> Tensor:
        style, source = self._errors(images).unbind(1)
        return 1 + torch.tanh(SHARPNESS * (style - source - self.content[frame]) / self.typical)

    def doubt(self, images: Tensor) -> Tensor:
        errors = self._choices(images)
        return -(-SHARPNESS * errors / self.typical).log_softmax(-1)[:, 0] / SHARPNESS

    def _choices(self, images: Tensor) -> Tensor:
        """[M, texts and others]: mean errors under one noise."""
        if self._shared is None or self._shared[0] is not images:
            return self.judge.errors(images, self.texts + self.others, self.generator).mean((-1, -2))
        _, state, errors = self._shared
        if not self.others:
            return errors
        self.generator.set_state(state)
        others = self.judge.errors(images, self.others, self.generator).mean((-1, -2))
        return torch.cat([errors, others], 1)

    def layout(self, images: Tensor) -> Tensor:
        """Minus each text's error at each place, under noise that is the same for all pictures."""
        errors = torch.cat([self.judge.errors(i, self.texts, _seeded()) for i in images.split(1)])
        side = min(LAYOUT_SIDE, *errors.shape[-2:])
        return -adaptive_avg_pool2d(errors, side).flatten(-2) / self.typical
