"""Reference attention: frames attend to a picture's keys and values ("reference only", StyleID).

`concat` adds the reference's tokens to a frame's own, `swap` replaces them. `style-id` (Chung et al., Style
Injection in Diffusion) is swap with two corrections. The query is a blend of the content's own query, from
its inversion, and the stylized one (`query_keep`, their gamma). The logits are multiplied by `temperature`,
because attention to another picture is flatter than self-attention.

A reference needs no inversion: `noised_levels` makes a trajectory of a picture with one fixed noise.
`match` makes StyleID's start: the content's noise with the style's statistics (AdaIN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.ddim import noised
from ...kernels.moments import match_moments
from .patching import unet
from .patching.feature_cache import FeatureCache
from .patching.layers import AttentionLayer, SigmaRange
from .patching.rows import rows
from .patching.unet import AttentionSite, UNetCall

MODES = ("concat", "swap", "style-id")


@dataclass
class ReferencePatch:
    """A reference in the self-attention of some layers. `content` has the queries that style-id blends in."""

    reference: FeatureCache
    layers: Sequence[AttentionLayer]
    active: SigmaRange
    mode: str = "concat"
    query_keep: float = 0.75
    temperature: float = 1.5
    content: FeatureCache | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}: choose {', '.join(MODES)}")
        if self.mode == "style-id" and self.query_keep > 0 and self.content is None:
            raise ValueError(
                "style-id blends the content's queries: connect `content` (a DDIM Inversion of the frames), "
                "or set query_keep to 0"
            )

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE."""
        unet.attach(model, "reference", self.patch)
        for features in (self.reference, self.content):
            if features is not None:
                features.attach(model, "reference")

    def patch(self, call: UNetCall) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.active:
            return call.run()
        features = self.reference.features(call)
        queries = {}
        if self.mode == "style-id" and self.query_keep > 0:
            queries = self.content.features(call, rows(call.options, len(call.x)).frames)

        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            reference = features[site.layer.number]
            if self.mode == "concat":
                return site.beside(q, (k, v), (reference.k, reference.v))
            if (content := queries.get(site.layer.number)) is not None:
                q = q.lerp(content.q.repeat(len(q) // len(content.q), 1, 1), self.query_keep)
            if self.mode == "style-id":
                q = q * self.temperature
            return site.inner(q, reference.k.expand(len(q), -1, -1), reference.v.expand(len(q), -1, -1))

        return call.run(options=unet.with_attention(call.options, self.layers, attend))


def noised_levels(latent: Tensor, sigmas: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A picture's latents (model space) at each level, with one noise per frame for all levels.

    Returns variance-preserving latents [S, N, C, h, w] and the levels, ascending. Level 0 is the picture.
    """
    if not sigmas.numel():
        raise ValueError("there are no noise levels: connect a scheduler's SIGMAS with at least one level")
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(latent.shape, generator=g, dtype=torch.float32).to(latent)
    levels = sigmas.flatten().sort().values.to(torch.float32).unique()
    return noised(latent, noise, levels.to(latent).view(-1, 1, 1, 1, 1)), levels


def match(latent: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Each channel of each frame with the reference's mean and standard deviation, by `strength`."""
    if len(reference) not in (1, len(latent)):
        raise ValueError(
            f"the reference has {len(reference)} frames, the latent {len(latent)}: give one reference frame, "
            "or as many as the latent has"
        )
    return latent.lerp(match_moments(latent, reference.to(latent)), strength)
