"""Gradients through ComfyUI's models: a clone that has them, attention that has them, and their memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .model import compute_dtype


def differentiable(model: Any) -> Any:
    """A clone of a MODEL through which gradients flow; the shared model is not changed.

    Nodes run in inference mode, and weights that were loaded in it cannot take part in autograd. A weight
    wrapper makes ComfyUI copy each weight when it is used, and the copy can. Compute inside `gradients()`,
    on inputs that were made there (`x.clone()`). Load the clone once, outside the loop; `sample` does so.
    """
    clone = model.clone()
    for name, _ in model.model.diffusion_model.named_parameters():
        clone.add_weight_wrapper(f"diffusion_model.{name}", _unchanged)
    return clone


def _unchanged(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd on and inference mode off: `with host.gradients(): ...`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Recomputation:
    """Gradient checkpointing on a CLONE, off until `on` is set: less memory, one more forward pass.

    `chosen` names the modules below `diffusion_model` whose insides are computed again in the backward pass.
    """

    def __init__(self, model: Any, chosen: Callable[[nn.Module], bool]):
        self.on = False
        for name, module in model.model.diffusion_model.named_modules():
            if chosen(module):
                path = f"diffusion_model.{name}.forward"
                model.add_object_patch(path, self._checkpointed(model.get_model_object(path)))

    def _checkpointed(self, forward: Callable) -> Callable:
        def run(*args, **kwargs):
            if not self.on or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return run


def differentiable_attention(
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
    """PyTorch's attention, as an `optimized_attention_override`: some of ComfyUI's have no gradient."""
    if not skip_reshape:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        while mask.ndim < 4:
            mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def graph_bytes(base: Any, run: Callable[[], Any]) -> int:
    """The bytes that `run` keeps for its backward pass, weights and their copies not counted."""
    weights = list(base.diffusion_model.parameters())
    own, shapes = {w.data_ptr() for w in weights}, {w.shape for w in weights}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own and t.shape not in shapes:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(kept.values())


GRAPH_SHARE = 0.7  # share of the free memory for the graph; the rest is for the backward pass


def graph_room(base: Any, free: float) -> float:
    """The bytes of `free` memory that a graph may use: a differentiable clone also copies all weights."""
    copies = sum(w.numel() for w in base.diffusion_model.parameters()) * compute_dtype(base).itemsize
    return GRAPH_SHARE * free - copies
