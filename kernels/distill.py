"""Attention distillation: the distance of an attention output from one that aggregates a style's values.

    L_AD      = | Attn(Q, K, V) - Attn(s Q, K_s, V_s) |      (eq. 3; s is the attention scale, 1 in the paper)
    L_MAD     = the same, where query i attends to style token j only if their labels agree     (eqs. 11, 12)
    L_content = | Q - Q_c |                                                                     (eq. 4)

Each is a mean over a frame's elements, one number per frame. The official code takes the mean over the whole
batch, so that a frame's gradient depends on the number of frames in the call.

Several style pictures share one softmax, as in the official code. Weights of the pictures are ours. In one
softmax, log w is added to a picture's logits, so that it counts w times. With `blend` each picture has a
softmax of its own, and the ideal output is the weighted mean: an interpolation between the styles.

Shapes: q, k, v, out are [B, heads, N, d]; k_style and v_style are [1, heads, M, d], M free (the tokens of
several style pictures, concatenated). Labels are integers, [1 or B, N] for the target and [M] for the style.

The ideal output Attn(s Q, K_s, V_s) is a constant, as in the official code: no gradient flows into Q through
it. So only the layer's own output needs a graph, and the backward pass keeps one sign per element. The ideal
output is computed a few queries at a time, so that the N x M weights are never stored with any attention
kernel. The masked form computes label by label: it needs no N x M mask and skips the pairs that it forbids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

SCORES = 1 << 26  # query-key pairs in one attention call for the ideal output, over all heads and rows
LEVELS = 255  # masks come from 8-bit pictures: labels that differ by 1/255 are different

Labels = tuple[Tensor, Tensor]


def distance(
    out: Tensor,
    q: Tensor,
    style: tuple[Tensor, Tensor],
    *,
    scale: float = 1.0,
    labels: Labels | None = None,
    weights: Sequence[float] = (),
    blend: bool = False,
) -> Tensor:
    """Eqs. 3 and 12: one loss per frame [B]. `out` is the layer's output, `labels` (style's, target's). The
    style tokens are those of pictures of one size, as many as there are `weights` (none: one softmax)."""
    k_style, v_style = (t.detach() for t in style)
    if k_style.shape[1] != q.shape[1] or k_style.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"the style keys have {k_style.shape[1]} heads of {k_style.shape[-1]} channels, the queries "
            f"{q.shape[1]} of {q.shape[-1]}: take the style's features from the same model"
        )
    seen, bias = None, None  # the style tokens that take part, and what is added to their logits
    if len(set(weights)) > 1 and not blend:
        bias = torch.tensor(weights).log().repeat_interleave(k_style.shape[2] // len(weights)).to(q)
        seen = bias.isfinite()
        k_style, v_style, bias = k_style[:, :, seen], v_style[:, :, seen], bias[seen]
    if labels is not None:
        labels = labels if seen is None else (labels[0][seen], labels[1])
        check_labels(*labels)
    shares = [w / sum(weights) for w in weights] if blend and weights else [1.0]
    return _Distance.apply(out, q.detach(), k_style, v_style, scale, labels, bias, shares)


def query_distance(q: Tensor, q_content: Tensor) -> Tensor:
    """Eq. 4: one loss per frame [B], for one content for all frames or one per frame."""
    return (q - q_content.detach()).abs().mean(dim=(1, 2, 3), dtype=wide(q.dtype))


def distance_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    style: tuple[Tensor, Tensor],
    *,
    scale: float = 1.0,
    labels: Labels | None = None,
) -> Tensor:
    """Eqs. 3, 11 and 12 as they are written. It stores the attention weights; for tests."""
    k_style, v_style = style
    logits = scale * q @ k_style.transpose(-1, -2) / q.shape[-1] ** 0.5
    if labels is not None:
        of_style, of_target = labels
        forbidden = of_target[:, None, :, None] != of_style[None, None, None, :]
        logits = logits.masked_fill(forbidden, -torch.inf)
    ideal = logits.softmax(dim=-1) @ v_style
    own = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
    return (own - ideal.detach()).abs().mean(dim=(1, 2, 3))


class _Distance(torch.autograd.Function):
    """The L1 distance to the ideal output, computed in pieces; it keeps one sign per element."""

    @staticmethod
    def forward(ctx, out, q, k, v, scale, labels, bias, shares):
        signs = torch.empty_like(out, dtype=torch.int8)
        total = out.new_zeros(len(out), dtype=wide(out.dtype))
        for rows, queries, keys in _pieces(q, k, labels):
            piece = (rows, slice(None), queries)
            difference = out[piece] - _ideal(
                q[piece] * scale, k[:, :, keys], v[:, :, keys], bias, keys, shares
            )
            signs[piece] = difference.sign().to(torch.int8)
            total[rows] += difference.abs().sum(dim=(1, 2, 3), dtype=total.dtype)
        ctx.save_for_backward(signs)
        ctx.dtype = out.dtype
        return total / out[0].numel()

    @staticmethod
    def backward(ctx, gradient):
        (signs,) = ctx.saved_tensors
        each = (gradient / signs[0].numel()).to(ctx.dtype).view(-1, 1, 1, 1)
        return signs * each, *[None] * 7


def _ideal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keys, shares: Sequence[float]) -> Tensor:
    """The mean of the attention to each of len(shares) pictures."""
    mask = None if bias is None else bias[keys][None, None, None]
    total = 0.0
    for share, k_picture, v_picture in zip(
        shares, k.chunk(len(shares), 2), v.chunk(len(shares), 2), strict=True
    ):
        if share:
            tokens = (t.expand(len(q), -1, -1, -1) for t in (k_picture, v_picture))
            total = total + share * scaled_dot_product_attention(q, *tokens, attn_mask=mask)
    return total


def _pieces(q: Tensor, k: Tensor, labels: Labels | None):
    """(rows, queries, style tokens) of each attention call: at most SCORES pairs, and labels that agree."""
    everything = slice(None)
    if labels is None:
        step = max(1, SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
        for first in range(0, q.shape[2], step):
            yield everything, slice(first, first + step), everything
        return
    of_style, of_target = labels
    for row, targets in enumerate(of_target):
        rows = everything if len(of_target) == 1 else slice(row, row + 1)
        for label in targets.unique():
            keys = (of_style == label).nonzero().squeeze(1)
            queries = (targets == label).nonzero().squeeze(1)
            heads = q.shape[1] * (len(q) if len(of_target) == 1 else 1)
            for some in queries.split(max(1, SCORES // max(1, heads * len(keys)))):
                yield rows, some, keys


def wide(dtype: torch.dtype) -> torch.dtype:
    """The number type for sums: at least float32."""
    return torch.promote_types(dtype, torch.float32)


# -- labels ----------------------------------------------------------------------------------------


def labels_at(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [B, H, W] at an attention layer's resolution: integer labels [B, height * width].

    Sampled to the nearest pixel, as in the official code: an average of labels would be another label.
    """
    small = interpolate(mask[:, None].float(), size=(height, width), mode="nearest")
    return (small * LEVELS).round().to(torch.int32).flatten(1)


def check_labels(of_style: Tensor, of_target: Tensor, where: str = "") -> None:
    """Every label of the target needs at least one style token to attend to."""
    missing = of_target[~torch.isin(of_target, of_style)].unique().tolist()
    if missing:
        wanted, had = (
            ", ".join(f"{level / LEVELS:.3g}" for level in levels)
            for levels in (missing, of_style.unique().tolist())
        )
        raise ValueError(
            f"the target mask has the label {wanted}, which the style mask does not have{where} "
            f"(it has {had}): use the same grey levels with hard edges in both masks, and make thin regions "
            "of the style mask larger"
        )
