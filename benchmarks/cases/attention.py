"""Attention kernels."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from reelbrush.kernels.reweight import reweighted_attention

BLOCK = 4096  # queries per call of the official formulation


def _official(
    q: Tensor, content: tuple[Tensor, Tensor], style: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """The formulation of the official code: einsum, scale, concatenate, softmax, einsum."""
    (k_c, v_c), (k_s, v_s) = content, style
    to_style = torch.einsum("bhid,bhjd->bhij", q, k_s) * q.shape[-1] ** -0.5
    to_content = torch.einsum("bhid,bhjd->bhij", q, k_c) * q.shape[-1] ** -0.5
    to_style *= scale
    weights = torch.cat([to_style, to_content], dim=3).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, torch.cat([v_s, v_c], dim=2))


def reweight(tokens: int = 4096, heads: int = 8, width: int = 40) -> dict[str, Callable]:
    """Z*'s reweighted attention (eq. 12) against the official formulation.

    The official one holds a matrix of tokens x 2 tokens numbers per head. Above 4,096 tokens it gets its
    queries in blocks, which spares memory and does not change the result: give heads=1 there.
    """

    ways = {"ours": (reweighted_attention, tokens), "official": (_official, BLOCK)}
    return {name: partial(_attention, *way, tokens, heads, width) for name, way in ways.items()}


def _attention(attention: Callable, block: int, tokens: int, heads: int, width: int) -> Callable[[], None]:
    g = torch.Generator().manual_seed(0)
    q, k_c, v_c, k_s, v_s = (torch.randn(1, heads, tokens, width, generator=g) for _ in range(5))

    def run() -> None:
        for part in q.split(block, dim=2):
            attention(part, (k_c, v_c), (k_s, v_s), scale=1.2)

    return run
