"""Scaled dot-product attention: softmax(scale · q kᵀ + mask) v.

Shapes: q is [B, heads, N, d]; k is [B or 1, heads, M, d], v is [B or 1, heads, M, e], M free; mask is added
to the logits and broadcasts to [B, heads, N, M]. `scale` is 1/√d unless given.

Three ways, one meaning: `xformers` (CUDA, no mask), `torch` (PyTorch's fused kernels), `reference` (the
equation as it is written; it stores the N x M weights). A way that cannot take a call says why; asked for
by name it raises with that reason, asked for "auto" the next one serves.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The equation as it is written."""
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1) @ v


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
        return "the xformers way takes no mask"
    if len(q) * q.shape[1] > 65535:
        return "xformers takes at most 65535 heads in a call"
    return ""


BACKENDS: dict[str, tuple[Callable[..., Tensor], Callable[..., str]]] = {
    "xformers": (_xformers, _not_xformers),
    "torch": (_torch, lambda q, k, v, mask: ""),
    "reference": (reference, lambda q, k, v, mask: ""),
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
    """Attention by the fastest way that takes this call, or by the one that is named."""
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"{backend!r} is no attention backend: auto, {', '.join(BACKENDS)}")
        run, refuse = BACKENDS[backend]
        if reason := refuse(q, k, v, mask):
            raise ValueError(f"attention backend {backend}: {reason}")
        return run(q, k, v, mask, scale)
    for run, refuse in BACKENDS.values():
        if not refuse(q, k, v, mask):
            return run(q, k, v, mask, scale)
    raise AssertionError("the reference takes everything")
