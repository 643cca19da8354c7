"""The self-attention features of a latent that all losses of Attention Distillation use.

Latents are variance preserving, as in diffusers: the UNet's own input. A `FeatureReader` evaluates the
network under the null conditioning at a timestep. LoRAs in the weights are used, attention patches of other
nodes are not. It reads a loaded, differentiable model; `opened` makes one from a MODEL.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import host
from ..diffusion.patching.layers import pick_layers, recomputable
from ..diffusion.patching.unet import Features, capture

Noise = Callable[[Tensor], Tensor]


def seeded(seed: int) -> Noise:
    """Noise that a seed repeats, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


class FeatureReader:
    """`reader(z, t, "qo", grad=True)`: `Features` of each of the chosen layers."""

    def __init__(
        self, base: Any, null: list, layers: str = "last 6", recomputation: host.Recomputation | None = None
    ):
        self.base, self.null = base, null
        self.recomputation = recomputation or host.Recomputation(None, ())
        self.layers = pick_layers(base, layers)
        if not self.layers:
            raise ValueError(f"layers is {layers!r}, which names none: attention distillation needs a layer")
        self.most_frames: int | None = None  # in an evaluation with gradients, after an out-of-memory error
        self._conditions: dict[tuple, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return next(self.base.diffusion_model.parameters()).device

    def sigma(self, timestep: float) -> float:
        """ComfyUI's noise level of a training timestep."""
        return float(self.base.model_sampling.sigma(torch.tensor(float(timestep))))

    def timestep(self, sigma: float) -> float:
        """The training timestep of a noise level; level 0 has timestep 0, as in the official code."""
        sampling = self.base.model_sampling
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)
        return float(sampling.timestep(torch.tensor([min(max(sigma, low), high)])))

    def __call__(self, z: Tensor, timestep: float, names: str, *, grad: bool = False) -> list[Features]:
        features = capture(
            self.base,
            z,
            self.sigma(timestep),
            self.null_conditions(z),
            self.layers,
            names,
            options={"optimized_attention_override": host.differentiable_attention},
            grad=grad,
        )
        return [features[layer.number] for layer in self.layers]

    def null_conditions(self, z: Tensor) -> dict[str, Tensor]:
        """The null conditioning for latents of this size, as arguments of the model."""
        key = tuple(z.shape[1:])
        if key not in self._conditions:
            self._conditions[key] = {
                name: t.detach().clone().to(z.device) if torch.is_tensor(t) else t
                for name, t in host.conditions(self.base, self.null, z[:1]).items()
            }
        return self._conditions[key]

    def graph_size(self, z: Tensor, timestep: float) -> host.GraphSize:
        """What an evaluation of latents like z with gradients keeps for its backward pass."""
        return host.graph_size(lambda z: self(z.requires_grad_(), timestep, "qo", grad=True), z)

    def frames_per_call(self, z: Tensor, timestep: float, wanted: int = 0) -> int:
        """How many frames share an evaluation with gradients: `wanted`, or for 0 as many as fit into free
        memory. Where these do not fit, the reader recomputes in the backward pass from now on."""
        needed, free, fits = min(wanted, len(z)) or 1, host.free_memory(z.device), 0
        for self.recomputation.on in (False, True):
            fits = self.graph_size(z, timestep).frames(z, free)
            if fits >= needed:
                break
        return wanted or max(1, min(fits, len(z)))

    def save_memory(self, z: Tensor) -> None:
        """After an out-of-memory error with these latents: use less memory from now on."""
        if not self.recomputation.on:
            self.recomputation.on = True
            host.log.info("out of memory: computing activations again in the backward pass (slower)")
        elif len(z) > 1:
            self.most_frames = len(z) // 2
            host.log.info("out of memory: %d frames at a time", self.most_frames)
        else:
            raise torch.OutOfMemoryError(
                f"a latent of {z.shape[-1] * 8}x{z.shape[-2] * 8} pixels does not fit into memory, even when "
                "activations are computed again: use a smaller size"
            )


@contextmanager
def opened(model: Any, null: list, layers: str = "last 6") -> Iterator[tuple[Any, FeatureReader]]:
    """A differentiable clone of a MODEL, loaded, and a reader on it, with gradients enabled. Its memory is
    released at the end."""
    clone = host.differentiable(model)
    recomputation = host.Recomputation(clone, recomputable(model, pick_layers(model, layers)))
    try:
        with host.gradients(), host.loaded(clone) as base:
            yield clone, FeatureReader(base, null, layers, recomputation)
    finally:
        host.release_memory()


class StyleFeatures(NamedTuple):
    """One layer's keys and values of S style pictures, concatenated, and the token size of one picture."""

    k: Tensor  # [1, heads, S * M, d]
    v: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device) -> "StyleFeatures":
        return StyleFeatures(self.k.to(device), self.v.to(device), self.size)


def join(pictures: Sequence[Features]) -> list[StyleFeatures]:
    """Features of S style pictures, per layer, as the keys and values of one attention."""
    flat = lambda t: t.transpose(0, 1).flatten(1, 2).unsqueeze(0).contiguous()  # noqa: E731
    return [StyleFeatures(flat(f.heads("k")), flat(f.heads("v")), f.size) for f in pictures]
