"""Gradients through ComfyUI's models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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
