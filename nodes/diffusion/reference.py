"""Reference attention: frames look at a picture's keys and values (the "reference only" family, StyleID).

`concat` puts the reference's tokens beside a frame's own, `swap` puts them in their place. `style-id` (Chung
et al., Style Injection in Diffusion) is swap with two corrections: the query is a blend of the content's own,
from its inversion, with the stylized one's (`query_keep`, their gamma), and logits are multiplied by
`temperature`, because attention onto a foreign picture comes out flatter than onto one's own.

A reference needs no inversion: `noised` makes a TRAJECTORY of a picture with one fixed noise at each level.
`match` is StyleID's start: the content's noise with the style's statistics (AdaIN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.moments import match_moments
from ...kernels.reweight import extend
from . import unet
from .rows import Rows, rows
from .store import Reference
from .unet import At, Features, Layer, Pass, SigmaRange

MODES = ("concat", "swap", "style-id")


@dataclass
class ReferenceAttention:
    """The patch. `content` holds the queries that style-id blends in."""

    reference: Reference
    chosen: Sequence[Layer]
    when: SigmaRange
    mode: str = "concat"
    query_keep: float = 0.75
    temperature: float = 1.5
    content: Reference | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"{self.mode!r} is no mode of reference attention: {', '.join(MODES)}")
        if self.mode == "style-id" and self.query_keep > 0 and self.content is None:
            raise ValueError(
                "style-id blends the content's queries: connect `content` (a DDIM Inversion of the frames), "
                "or set query_keep to 0"
            )

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE."""
        unet.attach(model, "reference", self.part)
        for source in (self.reference, self.content):
            if source is not None:
                source.attach(model, "reference")

    def part(self, call: Pass) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.when:
            return call.run()
        where = rows(call.options, len(call.x))
        features = self.reference.features(call)
        blended = self.mode == "style-id" and self.query_keep > 0
        queries = self.content.features(call, where.frames) if blended else {}

        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            held = features[at.layer.number]
            if self.mode == "concat":
                return at.below(q, *extend((k, v), (held.k, held.v), scale=1.0))
            if self.mode == "style-id":
                q = self._query(q, queries.get(at.layer.number), where) * self.temperature
            return at.below(q, held.k.expand(len(q), -1, -1), held.v.expand(len(q), -1, -1))

        return call.run(options=unet.patched(call.options, self.chosen, attend))

    def _query(self, q: Tensor, content: Features | None, where: Rows) -> Tensor:
        if content is None:
            return q
        if content.q.shape[1] != q.shape[1]:
            raise ValueError("the content trajectory has another size than the latents: invert these latents")
        own = content.q.repeat(len(where.sides) * where.count // len(content.q), 1, 1)
        return q.lerp(own, self.query_keep)


def noised(latent: Tensor, sigmas: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A picture's latents (model space) with one noise per frame at each level: variance-preserving latents
    [S, N, C, h, w] and the levels, ascending. No level is skipped: 0 is the picture itself."""
    if not sigmas.numel():
        raise ValueError("there are no noise levels: connect a scheduler's SIGMAS with at least one level")
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(latent.shape, generator=g, dtype=torch.float32).to(latent)
    levels = sigmas.flatten().sort().values.to(torch.float32).unique()
    s = levels.to(latent).view(-1, 1, 1, 1, 1)
    return (latent + s * noise) / (1 + s**2).sqrt(), levels


def match(latent: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Each channel of each frame with the reference's mean and deviation, by `strength`."""
    if len(reference) not in (1, len(latent)):
        raise ValueError(
            f"the reference has {len(reference)} frames, the latent {len(latent)}: give one reference frame, "
            "or as many as the latent has"
        )
    if strength == 0:
        return latent
    return latent.lerp(match_moments(latent, reference.to(latent)), strength)
