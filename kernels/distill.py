"""Attention distillation: the distance of an attention output from one that aggregates a style's values.

    L_AD      = | Attn(Q, K, V) - Attn(s Q, K_s, V_s) |      (eq. 3; s is the attention scale, 1 in the paper)
    L_MAD     = the same, where query i attends to style token j only if their labels agree     (eqs. 11, 12)
    L_content = | Q - Q_c |                                                                     (eq. 4)

Each is a mean over a frame's elements, one number per frame. The official code takes the mean over the whole
batch, so that a frame's gradient depends on the number of frames in the call.

Shapes: q, k, v, out are [B, heads, N, d]; k_style and v_style are [1, heads, M, d], M free (the tokens of
several style pictures, concatenated). Labels are integers, [1 or B, N] for the target and [M] for the style.

The ideal output Attn(s Q, K_s, V_s) is a constant, as in the official code: no gradient flows into Q through
it. So only the layer's own output needs a graph, and the backward pass keeps one sign per element. The ideal
output is computed a few queries at a time, so that the N x M weights are never stored with any attention
kernel. The masked form computes label by label: it needs no N x M mask and skips the pairs that it forbids.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

SCORES = 1 << 26  # query-key pairs in one attention call for the ideal output, over all heads and rows
LEVELS = 255  # masks come from 8-bit pictures: labels that differ by 1/255 are different

Labels = tuple[Tensor, Tensor]


def distance(
    out: Tensor, q: Tensor, style: tuple[Tensor, Tensor], *, scale: float = 1.0, labels: Labels | None = None
) -> Tensor:
    """Eqs. 3 and 12: one loss per frame [B]. `out` is the layer's output, `labels` (style's, target's)."""
    k_style, v_style = style
    if k_style.shape[1] != q.shape[1] or k_style.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"the style keys have {k_style.shape[1]} heads of {k_style.shape[-1]} channels, the queries "
            f"{q.shape[1]} of {q.shape[-1]}: take the style's features from the same model"
        )
    if labels is not None:
        check_labels(*labels)
    return _Distance.apply(out, q.detach(), k_style.detach(), v_style.detach(), scale, labels)


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
    """Eqs. 3, 11 and 12 as they are written. It stores the weights; for tests."""
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
    def forward(ctx, out, q, k, v, scale, labels):
        signs = torch.empty_like(out, dtype=torch.int8)
        total = out.new_zeros(len(out), dtype=wide(out.dtype))
        for rows, queries, keys in _pieces(q, k, labels):
            piece = (rows, slice(None), queries)
            ideal = scaled_dot_product_attention(q[piece] * scale, *_tokens(k, v, keys, len(q[rows])))
            difference = out[piece] - ideal
            signs[piece] = difference.sign().to(torch.int8)
            total[rows] += difference.abs().sum(dim=(1, 2, 3), dtype=total.dtype)
        ctx.save_for_backward(signs)
        ctx.dtype = out.dtype
        return total / out[0].numel()

    @staticmethod
    def backward(ctx, gradient):
        (signs,) = ctx.saved_tensors
        each = (gradient / signs[0].numel()).to(ctx.dtype).view(-1, 1, 1, 1)
        return signs * each, None, None, None, None, None


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


def _tokens(k: Tensor, v: Tensor, keys, rows: int) -> tuple[Tensor, Tensor]:
    return tuple(t[:, :, keys].expand(rows, -1, -1, -1) for t in (k, v))


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
