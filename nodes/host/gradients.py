"""Gradients through ComfyUI's models: a clone that has them, attention that has them, and their memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


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

    `paths` are the modules below `diffusion_model` whose insides are computed again in the backward pass.
    """

    def __init__(self, model: Any, paths: Iterable[str]):
        self.on = False
        for path in paths:
            name = f"diffusion_model.{path}.forward"
            model.add_object_patch(name, self._checkpointed(model.get_model_object(name)))

    def _checkpointed(self, forward: Callable) -> Callable:
        def run(*args, **kwargs):
            if not self.on or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # the UNet writes to its options while it runs: the second pass must see those of the first
            args = [_copied(value) for value in args]
            kwargs = {name: _copied(value) for name, value in kwargs.items()}
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return run


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


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


# -- memory ----------------------------------------------------------------------------------------

GRAPH_SHARE = 0.7  # share of the free memory for the graph; the rest is for the backward pass
_SIDES = (16, 32)  # latents that the size of a graph is measured with


@dataclass(frozen=True)
class GraphSize:
    """The bytes that one evaluation keeps for its backward pass."""

    fixed: float  # for any picture: copies of weights, text
    per_pixel: float  # of the latents

    def frames(self, latents: Tensor, free: float) -> int:
        """How many of the latents may share an evaluation in so many bytes of free memory."""
        one = max(1.0, self.per_pixel * latents[0, 0].numel())
        return max(0, int((GRAPH_SHARE * free - self.fixed) / one))


def graph_size(run: Callable[[Tensor], Any], latents: Tensor) -> GraphSize:
    """The graph of `run(z)` for latents like these, measured with two small ones."""
    blank = [latents.new_zeros(1, latents.shape[1], side, side) for side in _SIDES]
    small, large = (graph_bytes(partial(run, z)) for z in blank)
    per_pixel = (large - small) / (blank[1][0, 0].numel() - blank[0][0, 0].numel())
    return GraphSize(small - per_pixel * blank[0][0, 0].numel(), per_pixel)


def graph_bytes(run: Callable[[], Any]) -> int:
    """The bytes that `run` would keep for its backward pass. Nothing is kept: the pass is impossible."""
    kept: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(t: Tensor) -> None:
        storage = t.untyped_storage()
        reference = StorageWeakRef(storage)  # while it lives, no other storage has this number
        kept[reference.cdata] = reference, storage.nbytes()

    def unpack(_: None) -> Tensor:
        raise RuntimeError("this graph was only measured")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        run()
    return sum(size for _, size in kept.values())
