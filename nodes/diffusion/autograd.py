"""Gradients through a loaded base model, and what trainings and optimisations through it share.

Nodes run in inference mode, and weights that were made there cannot be saved for a backward pass; nothing
here changes a weight, and what is changed on the modules (casting, checkpointing, side branches) is there
only inside a `with`, however it ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .. import host
from .unet import split_heads


class Changes:
    """Attributes of modules, changed until `undo`; the modules' own `__dict__` only."""

    def __init__(self):
        self._before: list[tuple[nn.Module, str, Any]] = []

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        self._before.append((module, name, module.__dict__.get(name, self)))  # itself: "was not there"
        module.__dict__[name] = value

    def undo(self) -> None:
        for module, name, before in reversed(self._before):
            if before is self:
                del module.__dict__[name]
            else:
                module.__dict__[name] = before
        self._before.clear()


@contextmanager
def gradients(base: Any, *, frugal: bool = False) -> Iterator[Changes]:
    """Gradients flow through a loaded base model's UNet to its input; afterwards it is as it was.

    Nodes run in inference mode, and weights that were made there cannot be saved for a backward pass. A
    weight function makes ComfyUI cast them at call time, with a copy, which can. `frugal` also recomputes,
    in the backward pass, what residual blocks and feed-forward layers hold (gradient checkpointing).
    What is set on the yielded `Changes` is undone with the rest.
    """
    changes = Changes()
    with host.gradients():
        try:
            for module in base.diffusion_model.modules():
                for name in ("weight_function", "bias_function"):
                    if hasattr(module, name):
                        changes.set(module, name, [*getattr(module, name), Tensor.detach])
                if frugal and (hasattr(module, "in_layers") or hasattr(module, "net")):
                    changes.set(module, "forward", recomputed(module.forward))
            yield changes
        finally:
            changes.undo()


def recomputed(forward: Callable) -> Callable:
    """A forward whose inside is computed again in the backward pass instead of being held."""

    def checkpointed(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

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
        q, k, v = (split_heads(t, heads) for t in (q, k, v))
    if mask is not None:
        while mask.ndim < 4:
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def held_bytes(base: Any, run: Callable[[], Any]) -> int:
    """What `run` keeps for its backward pass, weights not counted."""
    own = {p.data_ptr() for p in base.diffusion_model.parameters()}
    shapes = {p.shape for p in base.diffusion_model.parameters()}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own and t.shape not in shapes:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        seen = run()
    del seen
    return sum(held.values())


def dtype_of(base: Any) -> torch.dtype:
    """What the UNet computes in."""
    return getattr(base, "manual_cast_dtype", None) or base.get_dtype()


def picture(base: Any, z: Tensor) -> Tensor:
    """A rough picture [h, w, 3] in 0..1 of the first latent, from the host's colour factors."""
    pixels = z[0].detach().float().movedim(0, -1).cpu()
    factors = base.latent_format.latent_rgb_factors
    if factors is None:
        return pixels[..., :3] / 2 + 0.5
    bias = getattr(base.latent_format, "latent_rgb_factors_bias", None)
    return (pixels @ torch.tensor(factors) + (0 if bias is None else torch.tensor(bias)) + 1) / 2
