"""What the UNet sees in a latent: the self-attention features that all losses here are made of.

Latents are variance preserving, as diffusers has them: the UNet's own input. `Eye` looks at them at a
timestep, under the null conditioning, through the bare network (LoRAs in the weights count; attention patches
of other nodes do not). It works on a loaded base model, so the same eye serves a node and a sampler.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .. import host
from ..diffusion import unet

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
        return getattr(self.base, "manual_cast_dtype", None) or self.base.get_dtype()

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


@contextmanager
def gradients(base: Any, *, frugal: bool = False) -> Iterator[None]:
    """Gradients flow through a loaded base model's UNet to its input; afterwards it is as it was.

    Nodes run in inference mode, and weights that were made there cannot be saved for a backward pass. A
    weight function makes ComfyUI cast them at call time, with a copy, which can. `frugal` also recomputes,
    in the backward pass, what residual blocks and feed-forward layers hold (gradient checkpointing).
    """
    changed: list[tuple[nn.Module, str, Any]] = []

    def change(module: nn.Module, name: str, value: Any) -> None:
        changed.append((module, name, module.__dict__.get(name, changed)))  # itself: "was not there"
        module.__dict__[name] = value

    with host.gradients():
        try:
            for module in base.diffusion_model.modules():
                for name in ("weight_function", "bias_function"):
                    if hasattr(module, name):
                        change(module, name, [*getattr(module, name), Tensor.detach])
                if frugal and (hasattr(module, "in_layers") or hasattr(module, "net")):
                    change(module, "forward", _recomputed(module.forward))
            yield
        finally:
            for module, name, before in reversed(changed):
                if before is changed:
                    del module.__dict__[name]
                else:
                    module.__dict__[name] = before


def _recomputed(forward):
    def checkpointed(*args):
        if not torch.is_grad_enabled():
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False)

    return checkpointed


def plain_attention(
    core: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **options: Any,
) -> Tensor:
    """Torch's fused attention in place of the host's backend of the day: some of those have no gradient."""
    if not skip_reshape:
        q, k, v = (unet.split_heads(t, heads) for t in (q, k, v))
    if mask is not None:
        while mask.ndim < 4:
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def graph_bytes(eye: Eye, z: Tensor, timestep: float) -> int:
    """What one evaluation with gradients keeps for its backward pass, weights not counted."""
    own = {p.data_ptr() for p in eye.base.diffusion_model.parameters()}
    shapes = {p.shape for p in eye.base.diffusion_model.parameters()}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own and t.shape not in shapes:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        seen = eye(z.detach().requires_grad_(), timestep, "qo", grad=True)
    del seen
    return sum(held.values())


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
