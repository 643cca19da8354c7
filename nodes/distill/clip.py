"""Whole clips: the style once per timestep for all frames, and each call warm from the one before.

Without a flow every frame starts from its content and takes all steps. With one, the first frame after a
cut takes all steps; the frames after it start on their own content, changed as the finished frame before
them was changed, and take a few:

    start(t+1) = content(t+1) + move(z(t) - content(t))

`move` takes whole latent pixels along the flow, and what came from beyond the frame from where it stands.
A mean of neighbouring latents is a latent that the style does not have: interpolated, or put back to its
content where the flow is not valid, a start is farther from the end than most steps can make up for.

Frames that share a call start from the same finished frame; their flows are chained, so that a change is
moved once. The optional temporal term pulls a frame towards its warped predecessor, where valid.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.flow import inside, warp
from .optimize import Anchor, Recipe, References, Report, distill, falling


@dataclass(frozen=True)
class Call:
    """Frames that are optimised together, and whether they start warm from the frame before them."""

    frames: range
    warm: bool

    def timesteps(self, all_steps: int, warm_steps: int) -> list[int]:
        """Where its steps look. Two warm steps share a timestep, and with it the content's features: they
        get as far, and cost an eighth less."""
        if not self.warm:
            return falling(all_steps)
        return [t for t in falling(-(-warm_steps // 2)) for _ in range(2)][warm_steps % 2 :]


def calls(frames: int, cuts: Sequence[int], per_call: int, warm: bool) -> Iterator[Call]:
    """A clip as calls: all at once, or after each cut one frame alone and then its followers."""
    if not warm:
        yield Call(range(frames), False)
        return
    starts = sorted({0, *(c for c in cuts if 0 < c < frames)})
    for start, end in zip(starts, [*starts[1:], frames], strict=True):
        yield Call(range(start, start + 1), False)
        for first in range(start + 1, end, per_call):
            yield Call(range(first, min(first + per_call, end)), True)


class Motion:
    """A FLOW at the latents' size: from each frame back to the one before."""

    def __init__(self, flow: Any, like: Tensor):
        if flow.stride != 1:
            raise ValueError(
                f"the flow has stride {flow.stride} and a warm start needs neighbouring frames: use stride 1"
            )
        flow.check_frames(len(like), "latents")
        self.flow, self.like = flow, like

    def back(self, frame: int) -> tuple[Tensor, Tensor]:
        """The flow [1, 2, h, w] from a frame to the one before, and where it holds [1, 1, h, w]."""
        pair = self.flow.pair(frame - 1).at(*self.like.shape[-2:])
        valid = pair.backward_valid[:, None] & (not self.flow.crosses_cut(frame - 1))
        return pair.backward.to(self.like), valid.to(self.like)

    def chained(self, frames: Sequence[int]) -> Tensor:
        """Flows [n, 2, h, w] from several frames in a row to the one before them all."""
        flows = []
        for frame in frames:
            flow, _ = self.back(frame)
            flows.append(flow + warp(flows[-1], flow) if flows else flow)
        return torch.cat(flows)


def move(images: Tensor, flow: Tensor) -> Tensor:
    """images(p + f(p)) [N, C, h, w] by whole pixels; where that is beyond the frame, images(p)."""
    whole = flow.round()
    return warp(images, whole * inside(whole)[:, None])


def carried(
    result: Tensor, content: Tensor | None, motion: Motion, last: int, frames: Sequence[int]
) -> Tensor:
    """Where frames begin after the `result` [1, C, h, w] of the frame `last` before them. Without content,
    at the moved result; one content may serve all frames."""
    flows = motion.chained(frames)
    if content is None:
        return move(result.expand(len(frames), -1, -1, -1), flows)
    content = content.expand(len(motion.like), -1, -1, -1)
    change = result - content[last]
    return content[list(frames)] + move(change.expand(len(frames), -1, -1, -1), flows)


def neighbours(z: Tensor, before: Tensor | None, motion: Motion, frames: Sequence[int]) -> Anchor:
    """Every frame's warped predecessor: within the call as it is now, else the finished frame before."""
    first = z[:1] if before is None else before
    flows, weights = zip(*(motion.back(max(f, 1)) for f in frames), strict=True)
    weights = torch.cat(weights)
    if before is None:
        weights[0] = 0
    return Anchor(warp(torch.cat([first, z[:-1].detach()]), torch.cat(flows)), weights)


def stylize(
    references: References,
    start: Tensor,
    recipe: Recipe,
    *,
    steps: int,
    warm_steps: int = 0,
    flow: Any = None,
    report: Report = lambda step: None,
) -> Tensor:
    """Optimise the latents of a clip (within `features.gradients`), each from `start` or from a warm one."""
    if recipe.temporal_weight and flow is None:
        raise ValueError("temporal_weight compares neighbouring frames: connect a flow, or set it to 0")
    motion = None if flow is None or len(start) == 1 else Motion(flow, start)
    warm = motion is not None and warm_steps > 0
    done = torch.empty_like(start)
    for call in calls(len(start), flow.cuts if warm else (), recipe.frames_per_call, warm):
        some = slice(call.frames.start, call.frames.stop)
        z, before, anchor = start[some], None, None
        if call.warm:
            last = some.start - 1
            before = done[last : some.start]
            z = carried(before, references.content, motion, last, call.frames)
        if motion is not None and recipe.temporal_weight:
            anchor = lambda z, before=before, f=call.frames: neighbours(z, before, motion, f)  # noqa: E731
        levels = call.timesteps(steps, warm_steps)
        done[some] = distill(
            references, z, levels, recipe, frames=call.frames, anchor=anchor, warm=call.warm, report=report
        )
    return done
