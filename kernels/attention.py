"""Scaled dot-product attention: softmax(scale · q kᵀ + mask) v.

Shapes: q is [B, heads, N, d]; k is [B or 1, heads, M, d], v is [B or 1, heads, M, e], M free; mask is added
to the logits and broadcasts to [B, heads, N, M]. `scale` is 1/√d unless given.

Backends with the same result: `xformers` (CUDA, no mask), `torch` (PyTorch's fused kernels), `reference` (the
equation as it is written; it stores the N x M weights). A backend that cannot compute a call says why. "auto"
takes the first one that can; a backend that is asked for by name raises an error with the reason.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 1024  # queries per call of `by_queries`


def weights(q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale · q kᵀ + mask), [..., N, M]."""
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if mask is None else logits + mask).softmax(dim=-1)


def by_queries(run: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """`run` maps queries [..., n, d] to one number each, [..., n]. It is called with a few queries at a time,
    so that N x M weights inside it are never stored at once."""
    return torch.cat([run(some) for some in q.split(QUERIES, dim=-2)], dim=-1)


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The equation as it is written."""
    return weights(q, k, mask, scale) @ v


def _torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    k, v = (t.expand(len(q), -1, -1, -1) for t in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    ops = importlib.import_module("xformers.ops")
    tokens_first = (t.expand(len(q), -1, -1, -1).transpose(1, 2) for t in (q, k, v))
    return ops.memory_efficient_attention(*tokens_first, scale=scale).transpose(1, 2)


@cache
def _has_xformers() -> bool:
    return importlib.util.find_spec("xformers") is not None


def _not_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    if not _has_xformers():
        return "xformers is not installed"
    if q.device.type != "cuda":
        return f"xformers runs on CUDA, these tensors are on {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"xformers takes float16, bfloat16 and float32, not {q.dtype}"
    if mask is not None:
        return "the xformers backend takes no mask"
    if len(q) * q.shape[1] > 65535:
        return "xformers takes at most 65535 heads in a call"
    return ""


BACKENDS: dict[str, tuple[Callable[..., Tensor], Callable[..., str]]] = {
    "xformers": (_xformers, _not_xformers),
    "torch": (_torch, lambda q, k, v, mask: ""),
    "reference": (attend_reference, lambda q, k, v, mask: ""),
}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Attention by the fastest backend that can compute this call, or by the named one."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"{backend!r} is not an attention backend: use auto, {', '.join(BACKENDS)}")
    for name in BACKENDS if backend == "auto" else [backend]:
        run, refuse = BACKENDS[name]
        reason = refuse(q, k, v, mask)
        if not reason:
            return run(q, k, v, mask, scale)
    raise ValueError(f"attention backend {name}: {reason}")
