"""The optical-flow error of a clip, measured pair by pair."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...kernels.flow import warp, warping_error
from .conventions import Convention
from .cuts import CutDetector
from .estimate import Flow, estimator


@dataclass(frozen=True)
class PairError:
    """One pair of frames: `first` and `first + stride`."""

    first: int
    stride: int
    error: float
    valid: float  # the share of pixels that count
    cut: bool

    @property
    def counts(self) -> bool:
        """Pairs across a cut and pairs without a valid pixel do not count."""
        return not self.cut and math.isfinite(self.error)

    def __str__(self) -> str:
        return f"{self.first}>{self.first + self.stride}"


@dataclass
class Report:
    """The error of one clip. Frames are not kept, only one number per pair and one heat map."""

    convention: Convention
    source: str = "loaded flow"
    name: str = "stylized"
    pairs: list[PairError] = field(default_factory=list)
    frames: int = 0
    cuts: list[int] = field(default_factory=list)
    _heat: Tensor | None = None
    _seen: Tensor | None = None

    def add(self, first: int, earlier: Tensor, later: Tensor, flow: Flow, *, cut: bool) -> None:
        """Measure one pair of frames [H, W, 3] with the flow between them, which may have any size."""
        rule, (h, w) = self.convention, earlier.shape[:2]
        frames = {"previous": earlier, "next": later}
        names = rule.direction.split(" to ")
        source, target = (frames[name][None, ..., :3].permute(0, 3, 1, 2).float() for name in names)
        along, weights = rule.flows(flow.at(h, w))
        per_pixel = rule.per_pixel(warp(source, along), target, weights)
        error = warping_error(per_pixel, weights, norm=rule.norm, over_all=rule.over_all).item()
        valid = 1.0 if weights is None else weights.mean().item()
        pair = PairError(first, flow.stride, error, valid, cut)
        self.pairs.append(pair)
        if pair.counts:
            self._add_heat(per_pixel[0], torch.ones(h, w) if weights is None else weights[0])

    def _add_heat(self, per_pixel: Tensor, weights: Tensor) -> None:
        if self._heat is None:
            self._heat, self._seen = torch.zeros_like(per_pixel), torch.zeros_like(per_pixel)
        self._heat += per_pixel * weights
        self._seen += weights

    # -- results ------------------------------------------------------------------------------------

    def counted(self, stride: int) -> list[PairError]:
        return [p for p in self.pairs if p.stride == stride and p.counts]

    def mean(self, stride: int) -> float:
        """The mean over the pairs of a stride that count; NaN if none counts."""
        errors = [p.error for p in self.counted(stride)]
        return sum(errors) / len(errors) if errors else math.nan

    @property
    def error(self) -> float:
        """The mean over all strides that have a pair."""
        means = [m for m in map(self.mean, self.convention.strides) if math.isfinite(m)]
        return sum(means) / len(means) if means else math.nan

    @property
    def worst(self) -> PairError | None:
        return max((p for p in self.pairs if p.counts), key=lambda p: p.error, default=None)

    def description(self) -> dict[str, str]:
        return {**self.convention.description(), "flow": self.source}

    def table(self) -> str:
        """CSV: the convention in comment lines, one row per pair, then the means."""
        lines = [f"# {key}: {value}" for key, value in self.description().items()]
        if self.cuts:
            lines.append(f"# cuts before frame: {' '.join(map(str, self.cuts))} (left out of the mean)")
        lines.append("pair,stride,error,valid share,cut")
        lines += [f"{p},{p.stride},{p.error:.6g},{p.valid:.4f},{int(p.cut)}" for p in self.pairs]
        for stride in self.convention.strides:
            counted = self.counted(stride)
            valid = sum(p.valid for p in counted) / len(counted) if counted else math.nan
            lines.append(f"mean,{stride},{self.mean(stride):.6g},{valid:.4f},")
        return "\n".join(lines) + "\n"

    def heat(self) -> Tensor | None:
        """Mean error per pixel [H, W]; NaN where no pair counted the pixel."""
        if self._heat is None:
            return None
        heat = torch.where(self._seen > 0, self._heat / self._seen.clamp(min=1e-12), torch.nan)
        return heat.sqrt() if self.convention.norm == "rmse" else heat


KEPT = 256 << 20  # bytes of a content's flows that are kept for another error node
_flows = WeakIdKeyDictionary()  # content -> method -> flows


class Meter:
    """Measures one or more clips against one content clip, frame by frame. As long as `content` exists, its
    flows are kept: another node that measures against the same content does not estimate them again."""

    def __init__(self, rule: Convention, names: Iterable[str], method: str, content: Any):
        method = rule.flow_method(method)
        self.reports = [Report(rule, f"{method} on the content", name) for name in names]
        self._known: dict[tuple[int, int], Flow] = _flows.setdefault(content, {}).setdefault(method, {})
        self._flow = estimator(method)
        self._method = method
        self._strides = rule.strides
        self._content: deque[Any] = deque(maxlen=max(self._strides) + 1)
        self._stylized: list[deque[Tensor]] = [deque(maxlen=max(self._strides) + 1) for _ in self.reports]
        self._detector, self._cuts, self._t = CutDetector(), [], 0

    def push(self, stylized: Sequence[Tensor], content: Tensor) -> None:
        """The next frame [H, W, 3] of each clip, and of the content."""
        t, self._t = self._t, self._t + 1
        if self._detector.push(content):
            self._cuts.append(t)
        self._content.append(self._flow.prepare(content))
        for kept, report, frame in zip(self._stylized, self.reports, stylized, strict=True):
            kept.append(frame.cpu())
            report.frames, report.cuts = self._t, self._cuts
        for stride in self._strides:
            if stride <= t:
                self._measure(t, stride)

    def _measure(self, t: int, stride: int) -> None:
        flow = self._known.get((t, stride))
        if flow is None:
            both = self._flow.both(self._content[-1 - stride], self._content[-1])
            flow = Flow.of(*both, stride=stride, method=self._method)
            if len(self._known) * 18 * flow.height * flow.width < KEPT:  # 16 bytes and two masks per pixel
                self._known[t, stride] = flow
        cut = any(t - stride < c <= t for c in self._cuts)
        for kept, report in zip(self._stylized, self.reports, strict=True):
            report.add(t - stride, kept[-1 - stride], kept[-1], flow, cut=cut)


def measure_with_flow(stylized: Tensor, flow: Flow, report: Report) -> Report:
    """Measure frames [N, H, W, 3] with a given flow."""
    flow.check_frames(len(stylized), "stylized frames")
    strides = report.convention.strides
    if flow.pairs and strides != (flow.stride,):
        asked = ",".join(map(str, strides))
        raise ValueError(
            f"the flow has stride {flow.stride}, the error node asks for strides {asked}: "
            f'set strides to "{flow.stride}", or give the content instead of the flow'
        )
    report.source, report.frames, report.cuts = flow.method, len(stylized), list(flow.cuts)
    for t in range(flow.pairs):
        later = stylized[t + flow.stride]
        report.add(t, stylized[t], later, flow.pair(t), cut=flow.crosses_cut(t))
    return report
