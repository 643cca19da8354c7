"""Z*: the content's self-attention also attends to a style's keys and values (zero-shot style transfer).

In the chosen layers and part of the sampling, every query of the content attends to the style's tokens and to
its own in one softmax, with the style's logits multiplied by lambda (eq. 12, `reweight`); or to the style's
only (eq. 7, `swap`); or to both separately, and the results are mixed (eq. 8, `add`). The style's features
come from its own inversion at the same noise level and are computed once for all frames.

The official code does two more things, both off by default. `content_pull` moves the content's latents
towards their inversion at every step (by 0.01). `style_branch_scale` lets the style attend to the content
(1.5, eq. 12 with the roles exchanged): then the style's features depend on the frame, every row needs a style
row of its own, and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...kernels.reweight import KeysValues
from .inversion.trajectory import Trajectory
from .patching import unet
from .patching.feature_cache import FeatureCache
from .patching.layers import AttentionLayer, SigmaRange
from .patching.prediction import change_predictions
from .patching.rows import rows, select
from .patching.unet import AttentionSite, UNetCall

MIXES = ("reweight", "swap", "add")


@dataclass
class ZStarPatch:
    """Style in the self-attention of some layers."""

    style: FeatureCache
    layers: Sequence[AttentionLayer]
    active: SigmaRange
    style_scale: float = 1.2
    mix: str = "reweight"
    add_weight: float = 0.5
    style_branch_scale: float = 0.0
    style_mask: Tensor | None = None  # [1 or pictures, H, W]
    content_mask: Tensor | None = None  # [1 or frames, H, W]

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE."""
        unet.attach(model, "zstar", self.patch)
        self.style.attach(model, "zstar")

    def patch(self, call: UNetCall) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.active:
            return call.run()
        if self.style_branch_scale:
            return self._with_style_rows(call)
        features = self.style.features(call)
        frames = rows(call.options, len(call.x)).frames

        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            style = features[site.layer.number]
            return self._masked(q, (k, v), (style.k, style.v), style.size, site, frames)

        return call.run(options=unet.with_attention(call.options, self.layers, attend))

    # one layer

    def _masked(
        self,
        q: Tensor,
        own: KeysValues,
        style: KeysValues,
        size: tuple[int, int],
        site: AttentionSite,
        frames: Sequence[int],
    ) -> Tensor:
        """Style where the content mask is white, self-attention where it is black."""
        if self.content_mask is None:
            return self._mixed(q, own, style, size, site)
        share = tokens_of_mask(select(self.content_mask, frames, "content mask"), site.size)
        share = share.to(q).repeat(len(q) // len(share), 1).unsqueeze(-1)
        plain = site.inner(q, *own)
        return plain.lerp(self._mixed(q, own, style, size, site), share)

    def _mixed(
        self, q: Tensor, own: KeysValues, style: KeysValues, size: tuple[int, int], site: AttentionSite
    ) -> Tensor:
        style, bias = self._visible(style, size, site)
        if not style[0].shape[1]:
            return site.inner(q, *own)
        if self.mix == "reweight":
            return site.beside(q, own, style, scale=self.style_scale, bias=bias)
        of_each_row = (t.expand(len(q), -1, -1) for t in style)
        only = site.inner(q, *of_each_row, mask=None if bias is None else bias.to(q)[None, None])
        if self.mix == "swap":
            return only
        return site.inner(q, *own).lerp(only, self.add_weight)

    def _visible(
        self, style: KeysValues, size: tuple[int, int], site: AttentionSite
    ) -> tuple[KeysValues, Tensor | None]:
        """The style tokens where its mask is not black, and the logarithm of the mask where it is grey."""
        if self.style_mask is None:
            return style, None
        weight = tokens_of_mask(self.style_mask, size).to(style[0].device)
        pictures = style[0].shape[1] // weight.shape[1]
        weight = weight.expand(pictures, -1).flatten() if len(weight) == 1 else weight.flatten()
        if len(weight) != style[0].shape[1]:
            raise ValueError(
                f"the style mask has {len(self.style_mask)} pictures, the style {pictures}: give one mask, "
                "or one for each style picture"
            )
        kept = weight > 0 if site.takes_mask else weight >= 0.5
        grey = site.takes_mask and bool((weight[kept] < 1).any())
        k, v = (t[:, kept] for t in style)
        return (k, v), weight[kept].log() if grey else None

    # the official variant: a style row for every content row

    def _with_style_rows(self, call: UNetCall) -> Tensor:
        """Style and content rows in one call, each attending to the other; the content rows' output."""
        n = len(call.x)
        frames = rows(call.options, n).frames
        latents = self.style.trajectory.at(call.sigma).to(call.x)
        if latents.shape[2:] != call.x.shape[2:] or len(latents) != 1:
            raise ValueError(
                f"style_branch_scale needs one style picture of the content's size: the style is "
                f"{len(latents)} of {latents.shape[3] * 8}x{latents.shape[2] * 8}, the content "
                f"{call.x.shape[3] * 8}x{call.x.shape[2] * 8}"
            )
        style_rows = torch.cat([latents.expand(n, -1, -1, -1), call.x[:, latents.shape[1] :]], dim=1)

        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            (q_s, q_c), (k_s, k_c), (v_s, v_c) = (t.chunk(2) for t in (q, k, v))
            half = replace(site, options=call.options | _position(site.options))
            from_content = half.beside(q_s, (k_s, v_s), (k_c, v_c), scale=self.style_branch_scale)
            stylized = self._masked(q_c, (k_c, v_c), (k_s, v_s), site.size, half, frames)
            return torch.cat([from_content, stylized])

        doubled = call.repeated(2)
        out = doubled.run(
            x=torch.cat([style_rows, call.x]),
            control=_only_for_content(call.control, n),
            options=unet.with_attention(doubled.options, self.layers, attend),
        )
        return out[n:]


def _position(options: dict) -> dict:
    """What the UNet tells a replacement about its position."""
    names = ("block", "block_index", "transformer_index", "activations_shape", "original_shape")
    names += ("n_heads", "dim_head", "attn_precision")
    return {name: options[name] for name in names if name in options}


def _only_for_content(control: dict | None, n: int) -> dict | None:
    """ControlNet output for the second half of the rows, zeros for the first."""

    def padded(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        t = t.expand(n, *t.shape[1:])
        return torch.cat([torch.zeros_like(t), t])

    return control and {kind: [padded(t) for t in outputs] for kind, outputs in control.items()}


def tokens_of_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """MASK [n, H, W] as one weight per token, [n, h * w]: the mean over the token's area."""
    return interpolate(mask.float()[:, None], size=size, mode="area").flatten(1)


def attach_content_pull(model: Any, content: Trajectory, amount: float) -> None:
    """On a CLONE: move the latents towards the content's inversion by `amount` at every step, as the official
    loop does (0.01)."""

    def pull(prediction):
        target = prediction.content(content, prediction.sigma)
        return prediction.continued_from(prediction.x.lerp(target, amount))

    change_predictions(model, "reelbrush content pull", pull)
