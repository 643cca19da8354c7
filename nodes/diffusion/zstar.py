"""Z*: a style's keys and values rearranged into the content's self-attention (zero-shot style transfer).

In the chosen layers and part of the sampling, every query of the content looks at the style's tokens and its
own in one softmax, the style's logits times lambda (eq. 12, `reweight`); or only at the style's (eq. 7,
`swap`); or at both apart, and the results are mixed (eq. 8, `add`). The style's features come from its own
inversion at the same noise level and are computed once for all frames (`store.py`).

The official code does two things more, both off here unless asked for. `content_pull` moves the content's
latents a little towards their inversion at every step (0.01). `branch_scale` lets the style look back at the
content (1.5, eq. 12 the other way round): then the style's features depend on the frame, every row
brings its own style row, and nothing can be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...kernels.reweight import Pair, extend, key_bias
from . import unet
from .rows import rows, select
from .store import Reference
from .unet import At, Layer, Pass, SigmaRange

if TYPE_CHECKING:
    from .trajectory import Trajectory

MIXES = ("reweight", "swap", "add")


@dataclass
class ZStar:
    """The patch: what to do with q, k, v where."""

    style: Reference
    chosen: Sequence[Layer]
    when: SigmaRange
    scale: float = 1.2
    mix: str = "reweight"
    add_weight: float = 0.5
    branch_scale: float = 0.0
    style_mask: Tensor | None = None  # [1 or pictures, H, W]
    content_mask: Tensor | None = None  # [1 or frames, H, W]

    def attach(self, model: Any) -> None:
        """Put the patch on a CLONE."""
        unet.attach(model, "zstar", self.part)
        self.style.attach(model, "zstar")

    def part(self, call: Pass) -> Tensor:
        """Around one evaluation of the UNet."""
        if call.sigma not in self.when:
            return call.run()
        if self.branch_scale:
            return self._with_style_rows(call)
        features = self.style.features(call)
        where = rows(call.options, len(call.x))

        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            held = features[at.layer.number]
            return self._masked(q, (k, v), (held.k, held.v), held.size, at, where.frames)

        return call.run(options=unet.patched(call.options, self.chosen, attend))

    # one layer

    def _masked(
        self, q: Tensor, own: Pair, style: Pair, size: tuple[int, int], at: At, frames: Sequence[int]
    ) -> Tensor:
        """Style where the content mask is white, self-attention where it is black."""
        if self.content_mask is None:
            return self._mixed(q, own, style, size, at)
        share = tokens_of_mask(select(self.content_mask, frames, "content mask"), at.size)
        share = share.to(q).repeat(len(q) // len(share), 1).unsqueeze(-1)
        plain = at.below(q, *own)
        return plain.lerp(self._mixed(q, own, style, size, at), share)

    def _mixed(self, q: Tensor, own: Pair, style: Pair, size: tuple[int, int], at: At) -> Tensor:
        style, bias = self._seen(style, size, at)
        if not style[0].shape[1]:
            return at.below(q, *own)
        everyone = tuple(t.expand(len(q), -1, -1) for t in style)
        if self.mix == "reweight":
            mask = key_bias(bias, own[0].shape[1], q)
            return at.below(q, *extend(own, style, scale=self.scale), mask=_logits(mask))
        only = at.below(q, *everyone, mask=_logits(key_bias(bias, 0, q)))
        if self.mix == "swap":
            return only
        return at.below(q, *own).lerp(only, self.add_weight)

    def _seen(self, style: Pair, size: tuple[int, int], at: At) -> tuple[Pair, Tensor | None]:
        """The style tokens that its mask shows, and log of the mask where it is grey."""
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
        kept = weight >= 0.5 if not at.takes_mask else weight > 0
        grey = at.takes_mask and bool((weight[kept] < 1).any())
        k, v = (t[:, kept] for t in style)
        return (k, v), weight[kept].log() if grey else None

    # the official variant: a style row for every content row

    def _with_style_rows(self, call: Pass) -> Tensor:
        """Style and content rows in one run, each looking at the other; the style rows' output is dropped."""
        n = len(call.x)
        where = rows(call.options, n)
        latents = self.style.trajectory.at(call.sigma).to(call.x)
        if latents.shape[2:] != call.x.shape[2:] or len(latents) != 1:
            raise ValueError(
                f"style_branch_scale needs one style picture of the content's size: the style is "
                f"{len(latents)} of {latents.shape[3] * 8}x{latents.shape[2] * 8}, the content "
                f"{call.x.shape[3] * 8}x{call.x.shape[2] * 8}"
            )
        style_rows = torch.cat([latents.expand(n, -1, -1, -1), call.x[:, latents.shape[1] :]], dim=1)
        twice = lambda t: torch.cat([t, t]) if torch.is_tensor(t) and len(t) == n else t  # noqa: E731

        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            (q_s, q_c), (k_s, k_c), (v_s, v_c) = (t.chunk(2) for t in (q, k, v))
            half = replace(at, options=call.options | _position(at.options))
            from_content = half.below(q_s, *extend((k_s, v_s), (k_c, v_c), scale=self.branch_scale))
            size = at.size
            return torch.cat(
                [from_content, self._masked(q_c, (k_c, v_c), (k_s, v_s), size, half, where.frames)]
            )

        doubled = {k: call.options[k] * 2 for k in ("cond_or_uncond", "uuids") if k in call.options}
        out = call.run(
            x=torch.cat([style_rows, call.x]),
            timesteps=twice(call.timesteps),
            context=twice(call.context),
            y=twice(call.y),
            control=_only_for_content(call.control, n),
            extra={k: twice(v) for k, v in call.extra.items()},
            options=unet.patched({**call.options, **doubled}, self.chosen, attend),
        )
        return out[n:]


def _position(options: dict) -> dict:
    """What the UNet says to a patch about where it stands."""
    names = ("block", "block_index", "transformer_index", "activations_shape", "original_shape")
    names += ("n_heads", "dim_head", "attn_precision")
    return {name: options[name] for name in names if name in options}


def _only_for_content(control: dict | None, n: int) -> dict | None:
    """ControlNet output for the second half of the rows, nothing for the first."""
    if control is None:
        return None
    add = lambda t: None if t is None else torch.cat([torch.zeros_like(t := t.expand(n, *t.shape[1:])), t])  # noqa: E731
    return {where: [add(t) for t in outputs] for where, outputs in control.items()}


def _logits(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[None]


def tokens_of_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """MASK [n, H, W] as one weight per token, [n, h * w]: the mean over what the token covers."""
    return interpolate(mask.float()[:, None], size=size, mode="area").flatten(1)


# -- content pull ----------------------------------------------------------------------------------


class ContentPull:
    """Latents drawn towards the content's inversion by `amount` at every step (official code: 0.01).

    The official loop overwrites the latents. A patch has no hold on a sampler's latents, so the UNet
    sees the pulled ones, and the pull joins the derivative that the sampler integrates:
    D + (x' - x)·s_next / (s - s_next) for the step from s to s_next. For Euler and DDIM that is the official
    loop exactly; a sampler of higher order integrates the same drift.
    """

    def __init__(self, content: Trajectory, amount: float):
        self.content, self.amount = content, amount

    def attach(self, model: Any) -> None:
        """Put the pull on a CLONE."""
        model.add_wrapper_with_key("predict_noise", "reelbrush content pull", self.predict)

    def predict(self, run: Callable, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE: all frames of the clip, before any splitting."""
        options = kwargs.get("model_options") or next(iter(args), {})
        sigma = float(timestep.flatten()[0])
        latents = select(self.content.at(sigma), range(len(x)), "content trajectory")
        if latents.shape[2:] != x.shape[2:]:
            raise ValueError("the content trajectory has another size than the latents: invert these latents")
        pulled = x.lerp(latents.to(x) * (1 + sigma**2) ** 0.5, self.amount)
        denoised = run(pulled, timestep, *args, **kwargs)
        levels = options.get("transformer_options", {}).get("sample_sigmas")
        lower = [] if levels is None else [s for s in levels.tolist() if s < sigma * (1 - 1e-5)]
        following = max(lower, default=0.0)
        return denoised + (pulled - x) * (following / (sigma - following))
