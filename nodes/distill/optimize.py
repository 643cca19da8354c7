"""Content-preserving optimisation (algorithm 1): Adam on a latent, the UNet's attention features as the loss.

    for t falling from T to 1:   L = L_AD(z, z_s; t) + lambda L_content(z, z_c; t),   z <- Adam(z, dL/dz)

The latents go into the UNet clean, whatever t says, and the predicted noise is thrown away. Departures from
the official loop: a frame's loss is its own mean, so that it does not depend on the batch (one frame: the
same numbers); the timesteps reach T for every number of steps (theirs start at 898 for 300 steps).

Of a frame and step this costs one forward and one backward row of the UNet, and one more forward row, to the
last chosen layer's queries, for its content. The style costs one row per timestep, whatever the number of
frames: they share it, and so do later calls as far as memory allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.distill import check_labels, distance, labels_at, query_distance
from .. import host
from . import features
from .features import Eye, Style
from .seamless import own_edges

T = 1000
SCALES = (2.0**14, 2.0**10, 2.0**6, 1.0)  # of the loss in half precision, where its gradients would vanish


def falling(steps: int, highest: float = T) -> list[int]:
    """Timesteps at which `steps` iterations look, evenly from below `highest` to 1."""
    return [1 + round(i * highest / steps) for i in reversed(range(steps))]


@dataclass(frozen=True)
class Recipe:
    """What is weighed against what; the defaults are the paper's for style transfer."""

    learning_rate: float = 0.05
    content_weight: float = 0.25
    attention_scale: float = 1.0
    temporal_weight: float = 0.0
    frames_per_call: int = 1
    keep_last_good: bool = False  # what a NaN does: the last good latent comes back, or the run stops


@dataclass
class References:
    """What a latent is compared with: latents in model space, masks [1 or S, H, W] and [1 or N, H, W]."""

    eye: Eye
    style: Tensor
    content: Tensor | None = None
    style_mask: Tensor | None = None
    target_mask: Tensor | None = None
    memory: int = 0  # bytes of style features that may be kept for later calls
    _kept: dict[float, list[Style]] = field(default_factory=dict, repr=False)
    _labels: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _queries: tuple = field(default=(), repr=False)

    def style_at(self, t: float) -> list[Style]:
        """The style's keys and values at a timestep, per layer."""
        if t not in self._kept:
            with own_edges():
                seen = features.join(self.eye(self.style, t, "kv"))
            size = sum(layer.k.nbytes + layer.v.nbytes for layer in seen)
            if size > self.memory:
                return seen
            self.memory -= size
            self._kept[t] = [layer.to(host.offload_device()) for layer in seen]
        return [layer.to(self.style.device) for layer in self._kept[t]]

    def content_at(self, t: float, frames: Sequence[int]) -> list[Tensor]:
        """The queries of these frames' content, per layer; iterations at one timestep share them."""
        key = (t, tuple(frames))
        if self._queries[:1] != (key,):
            self._queries = ()  # let go of the last ones before there are new ones
            some = self.content if len(self.content) == 1 else self.content[list(frames)]
            self._queries = (key, [seen.heads("q") for seen in self.eye(some, t, "q")])
        return self._queries[1]

    def labels(
        self, style: tuple[int, int], target: tuple[int, int], frames: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """Labels of the style's and these frames' tokens where a layer has such sizes; None without masks."""
        if self.style_mask is None or self.target_mask is None:
            return None
        key = (style, target)
        if key not in self._labels:  # of all frames, so that a late frame's mask is refused at the first step
            of_style = labels_at(self.style_mask, *style).expand(len(self.style), -1).flatten()
            of_target = labels_at(self.target_mask, *target)
            check_labels(of_style, of_target, f" at the {style[1]}x{style[0]} of an attention layer")
            self._labels[key] = tuple(t.to(self.style.device) for t in (of_style, of_target))
        of_style, of_target = self._labels[key]
        return of_style, of_target if len(of_target) == 1 else of_target[list(frames)]

    def check_masks(self, frames: int) -> None:
        """Both masks or none, and one picture for all or one for each."""
        masks = {"style": (self.style_mask, len(self.style)), "target": (self.target_mask, frames)}
        missing = [name for name, (mask, _) in masks.items() if mask is None]
        if len(missing) == 1:
            raise ValueError(f"the {missing[0]}_mask is missing: labels need both masks, or none")
        for name, (mask, wanted) in masks.items():
            if mask is not None and len(mask) not in (1, wanted):
                raise ValueError(
                    f"the {name}_mask has {len(mask)} pictures for {wanted} latents: give 1 or {wanted}"
                )


@dataclass(frozen=True)
class Step:
    """What a person may see after a step: counts, mean losses over the frames, the latents so far."""

    number: int
    timestep: float
    style: float
    content: float
    temporal: float
    z: Tensor


Report = Callable[[Step], None]


@dataclass(frozen=True)
class Anchor:
    """Where a frame should stay near, as far as `weight` [N, 1, h, w] says: its warped predecessor."""

    z: Tensor
    weight: Tensor


@torch.enable_grad()
def distill(
    references: References,
    z: Tensor,
    timesteps: Sequence[float],
    recipe: Recipe,
    *,
    frames: Sequence[int] | None = None,
    anchor: Callable[[Tensor], Anchor] | None = None,
    warm: bool = False,
    report: Report = lambda step: None,
) -> Tensor:
    """Optimise z [N, C, h, w], within `features.gradients`. `frames` are the numbers in the clip. A `warm`
    start is a result already, which a NaN at the first step may leave."""
    frames = range(len(z)) if frames is None else frames
    z = z.detach().clone()
    good = z.clone()
    adam = torch.optim.Adam([z], lr=recipe.learning_rate)
    seen_at, style = None, []
    for number, t in enumerate(timesteps):
        if t != seen_at:
            seen_at, style = t, references.style_at(t)
        losses = torch.zeros(3, len(z), dtype=torch.float64)
        z.grad = torch.zeros_like(z)
        for rows in range(0, len(z), recipe.frames_per_call):
            host.check_interrupt()
            some = slice(rows, rows + recipe.frames_per_call)
            losses[:2, some], z.grad[some] = gradient(references, style, z[some], t, recipe, frames[some])
        if anchor is not None and recipe.temporal_weight:
            losses[2], pull = temporal(z, anchor(z))
            z.grad += recipe.temporal_weight * pull
        if not losses.isfinite().all():
            return failed(number, t, good, recipe, warm)
        good.copy_(z)
        if not z.grad.isfinite().all():
            return failed(number, t, good, recipe, warm)
        adam.step()
        report(Step(number, t, *losses.mean(dim=1).tolist(), z.detach()))
    return z.detach()


def gradient(
    references: References,
    style: list[Style],
    z: Tensor,
    t: float,
    recipe: Recipe,
    frames: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Style and content losses [2, n] of some frames (eq. 5) and the gradient of their weighted sum."""
    eye, wanted = references.eye, [None] * len(style)
    if references.content is not None and recipe.content_weight:
        wanted = references.content_at(t, frames)
    for scale in SCALES if eye.dtype == torch.float16 else (1.0,):
        leaf = z.detach().clone().requires_grad_()
        style_loss = content_loss = 0.0
        for seen, ideal, kept in zip(eye(leaf, t, "qo", grad=True), style, wanted, strict=True):
            q, out = seen.heads("q"), seen.heads("out")
            labels = references.labels(ideal.size, seen.size, frames)
            style_loss += distance(out, q, ideal[:2], scale=recipe.attention_scale, labels=labels)
            if kept is not None:
                content_loss += query_distance(q, kept)
        total = style_loss + recipe.content_weight * content_loss
        (found,) = torch.autograd.grad(total.sum() * scale, leaf)
        if found.isfinite().all():
            break
    losses = torch.stack([style_loss.detach(), torch.zeros_like(style_loss) + content_loss])
    return losses.detach().double().cpu(), found / scale


def temporal(z: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """The weighted mean distance [N] of frames to their anchors, and its gradient."""
    difference = (z.detach() - anchor.z) * anchor.weight
    pull = difference.sign() * anchor.weight / z[0].numel()
    return difference.abs().mean(dim=(1, 2, 3)).double().cpu(), pull


class NotANumberError(RuntimeError):
    """A loss or a gradient overflowed."""


def failed(number: int, t: float, good: Tensor, recipe: Recipe, warm: bool) -> Tensor:
    """A loss or gradient that is no number: one sentence, and the last good latent where that is wanted."""
    words = f"attention distillation met a NaN at step {number + 1} (timestep {t:g})"
    if recipe.keep_last_good and (number or warm):
        host.log.warning(
            "%s: the latent %s is returned", words, f"of step {number}" if number else "that it started from"
        )
        return good
    mend = "run ComfyUI with --force-fp32 or --bf16-unet, or lower learning_rate"
    if recipe.keep_last_good:
        raise NotANumberError(f"{words}, before there was a good latent to return: {mend}")
    raise NotANumberError(f"{words}: {mend}, or set on_nan to return the last good latent")
