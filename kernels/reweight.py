"""Style-cross attention reweighting (Z*, eq. 12).

One softmax over the style's and the content's keys together, the style logits scaled by lambda:

    A' = softmax([lambda * q k_s^T, q k_c^T] / sqrt(d)),    out = A' [v_s; v_c]

A query that has nothing in common with the style keeps its own self-attention; one that has a lot
in common takes the style's values. That is why lambda sits inside the softmax: a weighted sum of two
separate attentions (eq. 8) forces style on every query alike.

Shapes: token-major, [..., tokens, d], heads split ([B, heads, N, d]) or folded ([B, N, heads * d]): the
operation does not look inside a token. Style keys and values are [B or 1, ..., M, d], M free; one style
serves all B frames.

Strategy: lambda * (q k^T) = q (lambda * k)^T, so the fast path scales the style keys, puts them in front
of the content's, and makes one fused attention call. The N x (M + N) weights are never stored, and the
call may be any attention there is: `extend` gives keys and values, `reweighted_attention` makes the call.
`bias` (one number per style token) is added to the style's logits: log of a mask over the style picture.
"""

import torch
from torch import Tensor

from .attention import attend

Pair = tuple[Tensor, Tensor]


def extend(content: Pair, style: Pair, *, scale: float = 1.2) -> Pair:
    """Keys and values of the one softmax: the style's in front, its keys times lambda."""
    (k_c, v_c), (k_s, v_s) = content, style
    if k_s.shape[1:-2] != k_c.shape[1:-2] or k_s.shape[-1] != k_c.shape[-1]:
        raise ValueError(
            f"style keys are {_words(k_s)}, the model's are {_words(k_c)}: "
            "invert the style with the same model"
        )
    rows = (len(k_c), *([-1] * (k_c.ndim - 1)))
    k = torch.cat([k_s.expand(rows) * scale, k_c], dim=-2)
    v = torch.cat([v_s.expand(rows), v_c], dim=-2)
    return k, v


def key_bias(bias: Tensor | None, tokens: int, like: Tensor) -> Tensor | None:
    """`bias` of the M style tokens as a mask over all keys, [1, M + tokens]; the content's keys get none."""
    if bias is None:
        return None
    bias = bias.to(like)
    return torch.cat([bias, bias.new_zeros(tokens)])[None]


def reweighted_attention(
    q: Tensor,
    content: Pair,
    style: Pair,
    *,
    scale: float = 1.2,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend to style and content in one softmax; `scale` is the paper's lambda. Heads split."""
    k, v = extend(content, style, scale=scale)
    return attend(q, k, v, key_bias(bias, content[0].shape[-2], q), backend=backend)


def reference(
    q: Tensor, content: Pair, style: Pair, *, scale: float = 1.2, bias: Tensor | None = None
) -> Tensor:
    """Eq. 12 as it is written. Stores the weights; for tests and for reading."""
    (k_c, v_c), (k_s, v_s) = content, style
    to_style = scale * q @ k_s.transpose(-1, -2) / q.shape[-1] ** 0.5
    to_content = q @ k_c.transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        to_style = to_style + bias
    weights = torch.cat([to_style, to_content], dim=-1).softmax(dim=-1)
    return weights[..., : k_s.shape[-2]] @ v_s + weights[..., k_s.shape[-2] :] @ v_c


def _words(k: Tensor) -> str:
    return f"{k.shape[1]} heads of {k.shape[-1]}" if k.ndim == 4 else f"{k.shape[-1]} wide"
