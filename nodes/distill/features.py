"""What the UNet sees in a latent: the self-attention features that all losses here are made of.

Latents are variance preserving, as diffusers has them: the UNet's own input. `Eye` looks at them at a
timestep, under the null conditioning, through the bare network (LoRAs in the weights count; attention patches
of other nodes do not). It works on a loaded base model, so the same eye serves a node and a sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import host
from ..diffusion import unet
from ..diffusion.autograd import dtype_of, gradients, held_bytes, plain_attention

Features = unet.Features


class Eye:
    """`eye(z, t, "qo", grad=True)`: what the chosen layers hold, one `Features` per layer."""

    def __init__(self, base: Any, null: list, layers: str = "last 6"):
        self.base, self.null = base, null
        self.layers = unet.pick_layers(base, layers)
        if not self.layers:
            raise ValueError(
                f"layers is {layers!r} and names none: attention distillation needs at least one"
            )
        self._conditions: dict[tuple, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return next(self.base.diffusion_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return dtype_of(self.base)

    def sigma(self, timestep: float) -> float:
        """ComfyUI's noise level of a training timestep."""
        return float(self.base.model_sampling.sigma(torch.tensor(float(timestep))))

    def timestep(self, sigma: float) -> float:
        """The training timestep of a noise level; level 0 is met at timestep 0, as in the official code."""
        sampling = self.base.model_sampling
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)
        return float(sampling.timestep(torch.tensor([min(max(sigma, low), high)])))

    def __call__(self, z: Tensor, timestep: float, parts: str, *, grad: bool = False) -> list[Features]:
        sigma = self.sigma(timestep)
        found = unet.capture(
            self.base,
            z,
            sigma,
            self._under_null(z),
            self.layers,
            parts,
            options={"optimized_attention_override": plain_attention},
            grad=grad,
        )
        return [found[layer.number] for layer in self.layers]

    def _under_null(self, z: Tensor) -> dict[str, Tensor]:
        key = tuple(z.shape[1:])
        if key not in self._conditions:
            given = unet.conditions(self.base, self.null, z[:1])
            self._conditions[key] = {
                name: t.detach().clone().to(z.device) if torch.is_tensor(t) else t
                for name, t in given.items()
            }
        return self._conditions[key]


def graph_bytes(eye: Eye, z: Tensor, timestep: float) -> int:
    """What one evaluation with gradients keeps for its backward pass, weights not counted."""
    return held_bytes(eye.base, lambda: eye(z.detach().requires_grad_(), timestep, "qo", grad=True))


class Style(NamedTuple):
    """One layer's keys and values of S style pictures side by side, and the size of one picture's tokens."""

    k: Tensor  # [1, heads, S * M, d]
    v: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device) -> "Style":
        return Style(self.k.to(device), self.v.to(device), self.size)


def join(seen: Sequence[Features]) -> list[Style]:
    """Features of S style pictures as what one attention looks at."""
    flat = lambda t: t.transpose(0, 1).flatten(1, 2).unsqueeze(0).contiguous()  # noqa: E731
    return [Style(flat(f.heads("k")), flat(f.heads("v")), f.size) for f in seen]


# -- memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How many frames share an evaluation with gradients, and whether it recomputes to save memory."""

    frames_per_call: int
    frugal: bool = False

    def on(self, recipe: Any) -> Any:
        """The recipe with this many frames per call."""
        return replace(recipe, frames_per_call=self.frames_per_call)


SHARE = 0.7  # of the free memory; the backward pass needs room beside the graph


def plan(eye: Eye, z: Tensor, timestep: float, frames_per_call: int = 0) -> Plan:
    """A person's wish (> 0), else as many frames as fit into free memory; recomputing if not even one."""
    if frames_per_call > 0:
        return Plan(frames_per_call)
    with gradients(eye.base):
        one = max(1, graph_bytes(eye, z[:1].detach().clone(), timestep))
    copied = sum(p.numel() for p in eye.base.diffusion_model.parameters()) * eye.dtype.itemsize
    room = SHARE * host.free_memory(z.device) - copied
    fits = max(0, int(room / one))
    return Plan(min(fits, len(z))) if fits else Plan(1, frugal=True)
