"""Attention distillation of whole clips: one style for all frames, and warm starts along the optical flow.

Without a flow every frame starts from its content and takes all steps. With a flow, the first frame after a
cut takes all steps. The frames after it start from their own content, changed as the finished frame before
them was changed, and take a few steps (a *warm start*):

    start(t+1) = content(t+1) + move(z(t) - content(t))

`move` copies whole latent pixels along the flow; a pixel from outside the frame is copied from its own
position. Interpolation is not used: a mean of neighbouring latents is unlike any latent of the style, and the
optimization needs many steps to correct it. For the same reason pixels without valid flow are moved too.
The part of the motion that is less than a pixel is not lost. It is carried from frame to frame as the *lag*
of the change behind the content, so that a slow pan moves the change as far as the content.

Frames of one call start from the same finished frame; their flows are chained, so that a change is moved
once. The optional temporal term pulls a frame towards its warped predecessor, where the flow is valid.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.flow import inside, warp
from .optimize import Anchor, DistillRecipe, References, Report, distill, falling


@dataclass(frozen=True)
class FrameBatch:
    """Frames that are optimized together, and whether they have a warm start."""

    frames: range
    warm: bool


@dataclass(frozen=True)
class Schedule:
    """The timesteps of a frame's steps."""

    steps: int
    warm_steps: int = 0
    iterations: int = 1  # at each timestep
    fixed_timestep: int = 0  # instead of falling ones

    def timesteps(self, warm: bool) -> list[int]:
        """One for each step. Two warm steps share a timestep, and with it the content's features: the result
        is as good, at an eighth less cost."""
        if self.fixed_timestep:
            levels = [self.fixed_timestep] * (self.warm_steps if warm else self.steps)
        elif warm:
            levels = [t for t in falling(-(-self.warm_steps // 2)) for _ in range(2)][self.warm_steps % 2 :]
        else:
            levels = falling(self.steps)
        return [t for t in levels for _ in range(self.iterations)]


def batches(frames: int, cuts: Sequence[int], per_call: int, warm: bool) -> Iterator[FrameBatch]:
    """A clip in batches: all at once, or with warm starts one frame after each cut and then the others."""
    if not warm:
        yield FrameBatch(range(frames), False)
        return
    starts = shot_starts(frames, cuts)
    for start, end in zip(starts, [*starts[1:], frames], strict=True):
        yield FrameBatch(range(start, start + 1), False)
        for first in range(start + 1, end, per_call):
            yield FrameBatch(range(first, min(first + per_call, end)), True)


def shot_starts(frames: int, cuts: Sequence[int]) -> list[int]:
    """The first frame of each shot."""
    return sorted({0, *(c for c in cuts if 0 < c < frames)})


class LatentFlow:
    """A FLOW at the latents' size: from each frame back to the one before."""

    def __init__(self, flow: Any, like: Tensor):
        if flow.stride != 1:
            raise ValueError(
                f"the flow has stride {flow.stride} and a warm start needs neighbouring frames: use stride 1"
            )
        flow.check_frames(len(like), "latents")
        self.flow, self.like = flow, like

    def back(self, frame: int) -> tuple[Tensor, Tensor]:
        """The flow [1, 2, h, w] from a frame to the one before, and where it is valid [1, 1, h, w]."""
        pair = self.flow.pair(frame - 1).at(*self.like.shape[-2:])
        valid = pair.backward_valid[:, None] & (not self.flow.crosses_cut(frame - 1))
        return pair.backward.to(self.like), valid.to(self.like)

    def chained(self, frames: Sequence[int]) -> Tensor:
        """Flows [n, 2, h, w] from consecutive frames to the one before them all."""
        flows = []
        for frame in frames:
            flow, _ = self.back(frame)
            flows.append(flow + warp(flows[-1], flow) if flows else flow)
        return torch.cat(flows)


def move(images: Tensor, flow: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
    """images(p + f(p)) [N, C, h, w] by whole pixels; where that is outside the frame, images(p).

    `lag` [1 or N, 2, h, w] is how far images(p) is from where it belongs. Gives the lag of the result, too.
    """
    lag = lag.expand(len(flow), -1, -1, -1)
    whole = (flow - warp(lag, flow)).round()
    within = inside(whole)[:, None]
    whole = whole * within
    return warp(images, whole), torch.where(within, whole + warp(lag, whole) - flow, 0)


def warm_start(
    result: Tensor,
    content: Tensor | None,
    flow: LatentFlow,
    last: int,
    frames: Sequence[int],
    lag: Tensor,
) -> tuple[Tensor, Tensor]:
    """The start of frames after the `result` [1, C, h, w] of the frame `last` before them, and the lag of the
    last of them. Without content the start is the moved result; the content has one frame for all, or one
    for each frame of the clip."""
    flows = flow.chained(frames)
    if content is None:
        moved, lags = move(result.expand(len(frames), -1, -1, -1), flows, lag)
        return moved, lags[-1:]
    content = content.expand(len(flow.like), -1, -1, -1)
    moved, lags = move((result - content[last]).expand(len(frames), -1, -1, -1), flows, lag)
    return content[list(frames)] + moved, lags[-1:]


def predecessors(z: Tensor, before: Tensor | None, flow: LatentFlow, frames: Sequence[int]) -> Anchor:
    """Every frame's warped predecessor: inside the batch its current latents, else the finished frame."""
    first = z[:1] if before is None else before
    flows, weights = zip(*(flow.back(max(f, 1)) for f in frames), strict=True)
    weights = torch.cat(weights)
    if before is None:
        weights[0] = 0
    return Anchor(warp(torch.cat([first, z[:-1].detach()]), torch.cat(flows)), weights)


def stylize(
    references: References,
    start: Tensor,
    recipe: DistillRecipe,
    schedule: Schedule,
    *,
    flow: Any = None,
    report: Report = lambda step: None,
) -> Tensor:
    """Optimize the latents of a clip (within `features.opened`), from `start` or with warm starts."""
    if recipe.temporal_weight and flow is None:
        raise ValueError("temporal_weight compares neighbouring frames: connect a flow, or set it to 0")
    latent_flow = None if flow is None or len(start) == 1 else LatentFlow(flow, start)
    warm = latent_flow is not None and schedule.warm_steps > 0
    done = torch.empty_like(start)
    lag = no_lag = torch.zeros_like(start[:1, :1]).expand(-1, 2, -1, -1)
    for batch in batches(len(start), flow.cuts if warm else (), recipe.frames_per_call, warm):
        rows = slice(batch.frames.start, batch.frames.stop)
        z, before, anchor = start[rows], None, None
        if batch.warm:
            last = rows.start - 1
            before = done[last : rows.start]
            z, lag = warm_start(before, references.content, latent_flow, last, batch.frames, lag)
        else:
            lag = no_lag
        if latent_flow is not None and recipe.temporal_weight:
            anchor = lambda z, before=before, f=batch.frames: predecessors(z, before, latent_flow, f)  # noqa: E731
        done[rows] = distill(
            references,
            z,
            schedule.timesteps(batch.warm),
            recipe,
            frames=batch.frames,
            anchor=anchor,
            warm=batch.warm,
            report=report,
        )
    return done
