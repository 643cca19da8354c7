"""Stabilization: the previous *output*, warped along the content's flow, is blended into each new frame.

    O_t = S_t + strength * w * (warp(O_{t-1}, b) - S_t),          w = valid * agreement

b is the content's backward flow and `valid` its validity (kernels/flow.py). `agreement` is
exp(-d / 2s^2), where d is the squared difference between the content and the warped previous content,
averaged over 3 x 3 pixels. Where a moving object uncovers the background, one of the two is 0 and the new
frame is shown unchanged, so no ghost remains. After a cut, stabilization restarts. In flat areas
some thin lines of pixels are invalid and would flicker. So `valid` is the larger of itself and its mean over
9 x 9 pixels. Where this is wrong, `agreement` is small.

The output is fed back, so small errors must not accumulate. Warping blurs, so the output is resampled with
a cubic filter. A static background must stay exactly static: where the estimated motion is below a quarter
of a pixel and the content matches as well without motion, nothing is moved.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ...kernels.flow import energy, resize_flow, resize_weights, validity, warp
from .. import host
from ..video.lazy_video import LazyVideo
from ..video.operation import Operation, Worker
from .cuts import CutDetector
from .estimate import Flow, estimator, method_files

FEATHER = 9  # pixels
AGREEMENT = 0.06  # s: at this difference of the contents the weight is exp(-1/2)
REST, SAME = 0.25, 1.5 / 255  # pixels; content difference caused by rounding and compression


def _planes(frame: Tensor) -> Tensor:
    return frame[None, ..., :3].permute(0, 3, 1, 2).float().cpu()


def _mean(maps: Tensor, side: int) -> Tensor:
    return avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)


def _mismatch(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference of two contents, averaged over the channels and 3 x 3 pixels [1, H, W]."""
    return _mean((a - b).square().mean(dim=1, keepdim=True), 3)[:, 0]


@dataclass
class Trust:
    """The flow to the previous frame, and how much each pixel's past is trusted."""

    flow: Tensor  # [1, 2, H, W]
    weight: Tensor  # [1, H, W] in 0..1


def trust(backward: Tensor, valid: Tensor, content: Tensor | None, before: Tensor | None) -> Trust:
    """The weights for one pair of contents [1, 3, H, W]. Without contents only the validity counts."""
    weight = valid.float()
    if content is None or before is None:
        return Trust(backward, weight)
    backward, weight = resize_flow(backward, *content.shape[-2:]), resize_weights(weight, *content.shape[-2:])
    weight = torch.maximum(weight, _mean(weight[:, None], FEATHER)[:, 0])
    moved, still = _mismatch(warp(before, backward), content), _mismatch(before, content)
    rests = (energy(backward) < REST**2) & (still <= moved + SAME**2)
    backward = torch.where(rests[:, None], 0.0, backward)
    weight = torch.where(rests, 1.0, weight)
    agreement = torch.exp(torch.where(rests, still, moved) / (-2 * AGREEMENT**2))
    return Trust(backward, weight * agreement)


def blend(stylized: Tensor, output: Tensor, trusted: Trust, strength: float) -> Tensor:
    """One new output [1, 3, H, W] from the new frame and the previous output."""
    h, w = stylized.shape[-2:]
    weight = resize_weights(trusted.weight, h, w)[:, None] * strength
    past = warp(output, resize_flow(trusted.flow, h, w), mode="bicubic")
    return stylized + weight * (past.clamp(0, 1) - stylized)


class Stabilizer(Worker):
    """Stabilizes frames [H, W, 3] one by one. Its state is the last output and the last content."""

    def __init__(self, strength: float, method: str):
        self.strength = strength
        self._flow = estimator(method)
        self._cuts = CutDetector()
        self._output: Tensor | None = None
        self._content: Tensor | None = None
        self._ready: object = None

    def __call__(self, stylized: Tensor, content: Tensor, **_: Any) -> Tensor:
        return torch.stack([self.push(*pair) for pair in zip(stylized, content, strict=True)])

    def push(self, stylized: Tensor, content: Tensor) -> Tensor:
        """The stabilized frame [H, W, 3]."""
        now, frame, ready = _planes(content), _planes(stylized), self._flow.prepare(content)
        cut = self._cuts.push(content)
        if self._output is not None and not cut:
            if now.shape != self._content.shape:
                raise ValueError("the content's frames change their size: give frames of one size")
            forward, backward = self._flow.both(self._ready, ready)
            trusted = trust(backward, validity(backward, forward), now, self._content)
            frame = blend(frame, self._output, trusted, self.strength)
        self._output, self._content, self._ready = frame, now, ready
        return frame[0].permute(1, 2, 0)

    def state(self) -> dict[str, Tensor]:
        return {} if self._output is None else {"output": self._output, "content": self._content}

    def restore(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        self._output, self._content = state["output"], state["content"]
        content = self._content[0].permute(1, 2, 0)
        self._ready = self._flow.prepare(content)
        self._cuts.push(content)


def stabilize(stylized: Tensor, content: Tensor, strength: float, method: str) -> Tensor:
    """Frames [N, H, W, 3], stabilized by the flow of their content [N, h, w, 3]."""
    if len(content) != len(stylized):
        raise ValueError(
            f"the content has {len(content)} frames, the stylized {len(stylized)}: give clips of one length"
        )
    if strength == 0:
        return stylized
    run, out = Stabilizer(strength, method), torch.empty_like(stylized[..., :3])
    with host.progress(len(stylized), "Stabilizing") as bar:
        for t, (frame, shown) in enumerate(zip(stylized, content, strict=True)):
            out[t] = run.push(frame, shown)
            bar.step(preview=out[t])
    return torch.cat([out, stylized[..., 3:]], -1)  # alpha stays with its frames


def stabilize_with_flow(stylized: Tensor, flow: Flow, content: Tensor | None, strength: float) -> Tensor:
    """Frames stabilized by a given flow: weighted by its validity, and by the content if it is given."""
    flow.check_frames(len(stylized), "stylized frames")
    if content is not None:
        flow.check_frames(len(content), "content frames")
    if flow.pairs and flow.stride != 1:
        raise ValueError(f"the flow has stride {flow.stride}: stabilization needs a flow of stride 1")
    if strength == 0:
        return stylized
    out = torch.empty_like(stylized[..., :3])
    out[:1] = stylized[:1, ..., :3]
    with host.progress(len(stylized), "Stabilizing") as bar:
        for t in range(1, len(stylized)):
            frame = _planes(stylized[t])
            if not flow.crosses_cut(t - 1):
                shown = (None, None) if content is None else (_planes(content[t]), _planes(content[t - 1]))
                pair = flow.pair(t - 1)
                frame = blend(
                    frame, _planes(out[t - 1]), trust(pair.backward, pair.backward_valid, *shown), strength
                )
            out[t] = frame[0].permute(1, 2, 0)
            bar.step(preview=out[t])
    return torch.cat([out, stylized[..., 3:]], -1)


class StabilizeFrames(Operation, name="flow.stabilize"):
    """A stylized clip, stabilized by the motion of its content."""

    stylized: Operation
    content: Operation
    strength: float
    method: str
    files: tuple[Path, ...] = ()  # what the method loads

    sequential = True

    def start(self) -> Worker:
        return Stabilizer(self.strength, self.method)


def stabilize_video(stylized: LazyVideo, content: LazyVideo, strength: float, method: str) -> LazyVideo:
    """A lazy VIDEO with less flicker."""
    if strength == 0:
        return stylized
    estimator(method)  # report what is missing now, not when the clip is saved
    fields = (content.operation, float(strength), method, method_files(method))
    return stylized.then(StabilizeFrames, *fields, node="Stabilize Video")
