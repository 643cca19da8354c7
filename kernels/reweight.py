"""Style-cross attention reweighting (Z*, eq. 12).

One softmax over the style's and the content's keys together, with the style logits multiplied by lambda:

    A' = softmax([lambda * q k_s^T, q k_c^T] / sqrt(d)),    out = A' [v_s; v_c]

A query that is unlike every style token keeps its own self-attention; a query that resembles some of them
takes the style's values. This is why lambda is inside the softmax: a weighted sum of two separate attentions
(eq. 8) applies style to every query equally.

Shapes: [..., tokens, d], with heads split ([B, heads, N, d]) or folded ([B, N, heads * d]): the operation
does not depend on the layout inside a token. Style keys and values are [B or 1, ..., M, d], M free; one style
is used for all B frames.

Strategy: lambda * (q k^T) = q (lambda * k)^T. The fast path multiplies the style keys by lambda, puts them in
front of the content's, and makes one fused attention call, so that the N x (M + N) weights are never stored.
`extend` makes the keys and values for any attention function (the Z* node uses it in the UNet's attention);
`reweighted_attention` also makes the call (View Attention uses it).
`bias` (one number per style token) is added to the style's logits: the logarithm of a mask over the style.
"""

import torch
from torch import Tensor

from .attention import attend

KeysValues = tuple[Tensor, Tensor]


def extend(content: KeysValues, style: KeysValues, *, scale: float = 1.2) -> KeysValues:
    """Keys and values of the softmax: the style's in front, its keys multiplied by lambda."""
    (k_c, v_c), (k_s, v_s) = content, style
    if k_s.shape[1:-2] != k_c.shape[1:-2] or k_s.shape[-1] != k_c.shape[-1]:
        raise ValueError(
            f"the style keys have {_heads(k_s)}, the model's keys {_heads(k_c)}: "
            "invert the style with the same model"
        )
    rows = (len(k_c), *([-1] * (k_c.ndim - 1)))
    k = torch.cat([k_s.expand(rows) * scale, k_c], dim=-2)
    v = torch.cat([v_s.expand(rows), v_c], dim=-2)
    return k, v


def key_bias(bias: Tensor | None, tokens: int, like: Tensor) -> Tensor | None:
    """`bias` of the M style tokens as a mask over all keys, [1, M + tokens]; 0 on the content's keys."""
    if bias is None:
        return None
    bias = bias.to(like)
    return torch.cat([bias, bias.new_zeros(tokens)])[None]


def reweighted_attention(
    q: Tensor,
    content: KeysValues,
    style: KeysValues,
    *,
    scale: float = 1.2,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend to style and content in one softmax. `scale` is the paper's lambda; heads are split."""
    k, v = extend(content, style, scale=scale)
    return attend(q, k, v, key_bias(bias, content[0].shape[-2], q), backend=backend)


def reweighted_attention_reference(
    q: Tensor, content: KeysValues, style: KeysValues, *, scale: float = 1.2, bias: Tensor | None = None
) -> Tensor:
    """Eq. 12 as it is written. It stores the weights; for tests."""
    (k_c, v_c), (k_s, v_s) = content, style
    to_style = scale * q @ k_s.transpose(-1, -2) / q.shape[-1] ** 0.5
    to_content = q @ k_c.transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        to_style = to_style + bias
    weights = torch.cat([to_style, to_content], dim=-1).softmax(dim=-1)
    return weights[..., : k_s.shape[-2]] @ v_s + weights[..., k_s.shape[-2] :] @ v_c


def _heads(k: Tensor) -> str:
    return f"{k.shape[1]} heads of {k.shape[-1]} channels" if k.ndim == 4 else f"{k.shape[-1]} channels"
