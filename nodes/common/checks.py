"""The check of IMAGE, MASK and LATENT at the entry of every node: what other nodes give is not trusted."""

from collections.abc import Callable
from functools import cache, partial, wraps
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor


def checked(node: type) -> type:
    """Wrap the function of a node class, so that its IMAGE, MASK and LATENT inputs are checked first."""
    function = getattr(node, node.FUNCTION)

    @cache
    def checks() -> dict[str, Callable[[str, Any], Any]]:
        declared = node.INPUT_TYPES()
        return {
            name: _CHECKS[kind] if kinds == kind else partial(_if_tensor, _CHECKS[kind])
            for group in ("required", "optional")
            for name, (kinds, *_) in declared.get(group, {}).items()
            if isinstance(kinds, str)
            for kind in kinds.split(",")
            if kind in _CHECKS
        }

    @wraps(function)
    def call(*this: Any, **values: Any) -> Any:
        for name, check in checks().items():
            if values.get(name) is not None:
                values[name] = check(name, values[name])
        return function(*this, **values)

    is_static = isinstance(getattr_static(node, node.FUNCTION), staticmethod)
    setattr(node, node.FUNCTION, staticmethod(call) if is_static else call)
    return node


def _if_tensor(check: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    """The check of an input that also takes another type, which is no tensor."""
    return check(name, value) if isinstance(value, Tensor) else value


def image(name: str, value: Any) -> Tensor:
    """An IMAGE as float32 [N, H, W, 3 or 4]; one channel becomes three."""
    value = _numbers(name, value, "an IMAGE")
    if value.ndim != 4 or value.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {list(value.shape)}, and an IMAGE is [frames, height, width, 3]: "
            "connect the output of an image node"
        )
    return value.repeat(1, 1, 1, 3) if value.shape[-1] == 1 else value


def mask(name: str, value: Any) -> Tensor:
    """A MASK as float32 [N, H, W]."""
    value = _numbers(name, value, "a MASK")
    if value.ndim == 4 and value.shape[1] == 1:
        return value[:, 0]
    if value.ndim not in (2, 3):
        raise ValueError(
            f"{name} has the shape {list(value.shape)}, and a MASK is [frames, height, width]: "
            "connect the output of a mask node"
        )
    return value[None] if value.ndim == 2 else value


def latent(name: str, value: Any) -> dict[str, Any]:
    """A LATENT whose samples are float32."""
    if not isinstance(value, dict) or "samples" not in value:
        raise ValueError(f"{name} is {type(value).__name__}, not a LATENT: connect VAE Encode")
    return value | {"samples": _numbers(name, value["samples"], "a LATENT")}


_CHECKS = {"IMAGE": image, "MASK": mask, "LATENT": latent}


def _numbers(name: str, value: Any, what: str) -> Tensor:
    """Finite float32 values of at least one frame."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {kind}, not {what}: connect a node that gives {what}")
    if not value.numel():
        raise ValueError(f"{name} has no frames (shape {list(value.shape)}): connect at least one")
    value = value.to(torch.float32)
    low, high = value.aminmax()  # one pass without a copy; NaN goes through
    if not (low.isfinite() and high.isfinite()):
        wrong = (~value.isfinite()).flatten(1).any(1).nonzero()[:, 0] if value.ndim > 1 else [0]
        raise ValueError(
            f"{name} has values that are not numbers (NaN or infinite) in frame {int(wrong[0])}: "
            "check the node that makes it"
        )
    return value
