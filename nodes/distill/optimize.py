"""Content-preserving optimization (algorithm 1): Adam on a latent, the UNet's attention features as the loss.

    for t falling from T to 1:   L = L_AD(z, z_s; t) + lambda L_content(z, z_c; t),   z <- Adam(z, dL/dz)

The latents go into the UNet without noise for every t, and the predicted noise is not used. Departures from
the official loop: a frame's loss is its own mean, so that it does not depend on the batch (the same numbers
for one frame); the timesteps reach T for every number of steps (the official start at 898 for 300 steps).

A frame costs one forward and one backward row of the UNet per step, and for its content one more forward row
to the last chosen layer's queries. The style costs one row per timestep for all frames; later calls use it
again as far as memory allows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels import ddim
from ...kernels.distill import check_labels, distance, labels_at, query_distance
from .. import host
from . import features
from .features import FeatureReader, StyleFeatures
from .seamless import own_edges

T = 1000
LOSS_SCALES = (2.0**14, 2.0**10, 2.0**6, 1.0)  # for half precision, where small gradients become zero


def falling(steps: int) -> list[int]:
    """The timesteps of `steps` iterations, evenly from below T to 1."""
    return [1 + round(i * T / steps) for i in reversed(range(steps))]


@dataclass(frozen=True)
class DistillRecipe:
    """The weights of the losses and the optimizer's settings; the defaults are the paper's style transfer."""

    learning_rate: float = 0.05
    content_weight: float = 0.25
    attention_scale: float = 1.0
    temporal_weight: float = 0.0
    frames_per_call: int = 1
    keep_last_good: bool = False  # after a NaN: return the last good latent instead of an error


@dataclass
class References:
    """What a latent is compared with: latents in model space, masks [1 or S, H, W] and [1 or N, H, W].

    With a `noise_seed`, style and content are noised to a timestep's level before their features are read
    (Fig. 16, case 2). All pictures get the same noise, which depends on the timestep only.
    """

    reader: FeatureReader
    style: Tensor
    content: Tensor | None = None
    style_mask: Tensor | None = None
    target_mask: Tensor | None = None
    weights: Sequence[float] = ()  # of the S style pictures; none: equal
    blend: bool = False  # the mean of the styles instead of one softmax over all of them
    noise_seed: int | None = None
    memory: int = 0  # bytes of style features that may be kept for later calls
    reads: Counter[float] | None = None  # how often each timestep will be read; None: all are kept that fit
    _kept: set[float] | None = field(default=None, repr=False)
    _styles: dict[float, list[StyleFeatures]] = field(default_factory=dict, repr=False)
    _labels: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _queries: tuple = field(default=(), repr=False)

    def style_at(self, t: float) -> list[StyleFeatures]:
        """The style's keys and values at a timestep, per layer."""
        if t not in self._styles:
            with own_edges():
                layers = features.join(self.reader(self._noised(self.style, t), t, "kv"))
            size = sum(layer.k.nbytes + layer.v.nbytes for layer in layers)
            if self.reads is not None and self._kept is None:  # those that are read most
                again = [t for t, count in self.reads.most_common() if count > 1]
                self._kept = set(again[: self.memory // size])
            if size > self.memory or (self._kept is not None and t not in self._kept):
                return layers
            self.memory -= size
            self._styles[t] = [layer.to(host.offload_device()) for layer in layers]
        return [layer.to(self.style.device) for layer in self._styles[t]]

    def content_at(self, t: float, frames: Sequence[int]) -> list[Tensor]:
        """The queries of these frames' content, per layer; kept for more iterations at one timestep."""
        key = (t, tuple(frames))
        if self._queries[:1] != (key,):
            self.release_content()  # before new ones are computed
            content = self.content if len(self.content) == 1 else self.content[list(frames)]
            self._queries = (key, [f.heads("q") for f in self.reader(self._noised(content, t), t, "q")])
        return self._queries[1]

    def _noised(self, clean: Tensor, t: float) -> Tensor:
        if self.noise_seed is None:
            return clean
        noise = features.seeded((self.noise_seed * T + round(t)) % (1 << 63))(clean[:1])
        return ddim.noised(clean, noise, self.reader.sigma(t))

    def release_content(self) -> None:
        """Forget the content's queries."""
        self._queries = ()

    def labels(
        self, style: tuple[int, int], target: tuple[int, int], frames: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """Labels of the style's and these frames' tokens for a layer with such sizes; None without masks."""
        if self.style_mask is None or self.target_mask is None:
            return None
        key = (style, target)
        if key not in self._labels:  # of all frames: a wrong mask of a late frame raises at the first step
            of_style = labels_at(self.style_mask, *style).expand(len(self.style), -1).flatten()
            of_target = labels_at(self.target_mask, *target)
            check_labels(of_style, of_target, f" at the {style[1]}x{style[0]} of an attention layer")
            self._labels[key] = tuple(t.to(self.style.device) for t in (of_style, of_target))
        of_style, of_target = self._labels[key]
        return of_style, of_target if len(of_target) == 1 else of_target[list(frames)]

    def check(self, frames: int) -> None:
        """Both masks or none, and one picture for all or one for each."""
        masks = {"style": (self.style_mask, len(self.style)), "target": (self.target_mask, frames)}
        missing = [name for name, (mask, _) in masks.items() if mask is None]
        if len(missing) == 1:
            raise ValueError(f"the {missing[0]}_mask is missing: connect both masks, or none")
        for name, (mask, count) in masks.items():
            if mask is not None and len(mask) not in (1, count):
                raise ValueError(
                    f"the {name}_mask has {len(mask)} pictures for {count} latents: give 1 or {count}"
                )
        if self.blend and self.style_mask is not None:
            raise ValueError(
                "style_mix is mean, which takes no masks: choose one softmax, or remove the masks"
            )


@dataclass(frozen=True)
class DistillStep:
    """One iteration: its losses, mean over the frames, and the latents after Adam's step."""

    number: int
    timestep: float
    style: float
    content: float
    temporal: float
    z: Tensor


Report = Callable[[DistillStep], None]


@dataclass(frozen=True)
class Anchor:
    """Where a frame should stay near, weighted by `weight` [N, 1, h, w]: its warped predecessor."""

    z: Tensor
    weight: Tensor


@torch.enable_grad()
def distill(
    references: References,
    z: Tensor,
    timesteps: Sequence[float],
    recipe: DistillRecipe,
    *,
    frames: Sequence[int] | None = None,
    anchor: Callable[[Tensor], Anchor] | None = None,
    warm: bool = False,
    report: Report = lambda step: None,
) -> Tensor:
    """Optimize z [N, C, h, w], within `features.opened`. `frames` are the frame numbers in the clip. A `warm`
    start is a result already: after a NaN at the first step it may be returned."""
    frames = range(len(z)) if frames is None else frames
    z = z.detach().clone()
    good = z.clone()
    adam = torch.optim.Adam([z], lr=recipe.learning_rate)
    style_timestep, style = None, []
    for number, t in enumerate(timesteps):
        if t != style_timestep:
            style_timestep, style = t, references.style_at(t)
        losses = torch.zeros(3, len(z), dtype=torch.float64)
        z.grad = torch.zeros_like(z)
        first = 0
        while first < len(z):
            host.check_interrupt()
            per_call = min(recipe.frames_per_call, references.reader.most_frames or len(z))
            rows = slice(first, first + per_call)
            result = within_memory(references, style, z[rows], t, recipe, frames[rows])
            if result is not None:
                losses[:2, rows], z.grad[rows] = result
                first = rows.stop
        if anchor is not None and recipe.temporal_weight:
            losses[2], pull = temporal(z, anchor(z))
            z.grad += recipe.temporal_weight * pull
        if not losses.isfinite().all():
            return failed(number, t, good, recipe, warm)
        good.copy_(z)
        if not z.grad.isfinite().all():
            return failed(number, t, good, recipe, warm)
        adam.step()
        report(DistillStep(number, t, *losses.mean(dim=1).tolist(), z.detach()))
    return z.detach()


def within_memory(
    references: References,
    style: list[StyleFeatures],
    z: Tensor,
    t: float,
    recipe: DistillRecipe,
    frames: Sequence[int],
) -> tuple[Tensor, Tensor] | None:
    """`gradient`, or None after an out-of-memory error: the reader uses less memory from then on."""
    try:
        return gradient(references, style, z, t, recipe, frames)
    except Exception as error:
        if not host.is_out_of_memory(error):
            raise
    # here, outside of `except`: there the error keeps the failed graph alive
    references.release_content()
    host.release_memory()
    references.reader.save_memory(z)
    return None


def gradient(
    references: References,
    style: list[StyleFeatures],
    z: Tensor,
    t: float,
    recipe: DistillRecipe,
    frames: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Style and content losses [2, n] of some frames (eq. 5) and the gradient of their weighted sum."""
    reader, queries = references.reader, [None] * len(style)
    if references.content is not None and recipe.content_weight:
        queries = references.content_at(t, frames)
    half = host.compute_dtype(reader.base) == torch.float16
    for scale in LOSS_SCALES if half else (1.0,):
        leaf = z.detach().clone().requires_grad_()
        style_loss = content_loss = 0.0
        for layer, ideal, content in zip(reader(leaf, t, "qo", grad=True), style, queries, strict=True):
            q, out = layer.heads("q"), layer.heads("out")
            labels = references.labels(ideal.size, layer.size, frames)
            style_loss += distance(
                out,
                q,
                ideal[:2],
                scale=recipe.attention_scale,
                labels=labels,
                weights=references.weights,
                blend=references.blend,
            )
            if content is not None:
                content_loss += query_distance(q, content)
        total = style_loss + recipe.content_weight * content_loss
        (slope,) = torch.autograd.grad(total.sum() * scale, leaf)
        if slope.isfinite().all():
            break
    losses = torch.stack([style_loss.detach(), torch.zeros_like(style_loss) + content_loss])
    return losses.detach().double().cpu(), slope / scale


def temporal(z: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
    """The weighted mean distance [N] of frames to their anchors, and its gradient."""
    difference = (z.detach() - anchor.z) * anchor.weight
    pull = difference.sign() * anchor.weight / z[0].numel()
    return difference.abs().mean(dim=(1, 2, 3)).double().cpu(), pull


class NotANumberError(RuntimeError):
    """A loss or a gradient overflowed."""


def failed(number: int, t: float, good: Tensor, recipe: DistillRecipe, warm: bool) -> Tensor:
    """After a NaN: the last good latent if the recipe wants it and there is one, else an error."""
    problem = f"attention distillation met a NaN at step {number + 1} (timestep {t:g})"
    if recipe.keep_last_good and (number or warm):
        host.log.warning(
            "%s: the latent %s is returned",
            problem,
            f"of step {number}" if number else "that it started from",
        )
        return good
    advice = "run ComfyUI with --force-fp32 or --bf16-unet, or lower learning_rate"
    if recipe.keep_last_good:
        raise NotANumberError(f"{problem}, before there was a good latent to return: {advice}")
    raise NotANumberError(f"{problem}: {advice}, or set on_nan to return the last good latent")
