"""Measuring whole clips: batches, streams, and several versions against one content."""

import math
from collections.abc import Sequence

from torch import Tensor

from .. import host
from ..video.lazy_video import LazyVideo, in_step
from .conventions import Convention
from .estimate import Flow
from .report import Meter, Report, measure_with_flow

CHUNK = 8


def batch(
    stylized: Tensor, content: Tensor | None, flow: Flow | None, rule: Convention, method: str
) -> Report:
    """Frames [N, H, W, 3] against their content's motion: the flow if it is given, else estimated."""
    if flow is not None:
        return measure_with_flow(stylized, flow, Report(rule))
    if content is None:
        raise ValueError("the optical-flow error needs the content or its flow: connect one of the two")
    return versions({"stylized": stylized}, content, rule, method)[0]


def versions(clips: dict[str, Tensor], content: Tensor, rule: Convention, method: str) -> list[Report]:
    """Several versions of one clip; its motion is estimated once."""
    for name, frames in clips.items():
        if len(frames) != len(content):
            raise ValueError(
                f"{name} has {len(frames)} frames, the content {len(content)}: give clips of one length"
            )
    reports = [Report(rule, f"{method} on the content", name) for name in clips]
    meter = Meter(reports, method)
    with host.progress(len(content), "Optical-flow error") as bar:
        for t, shown in enumerate(content):
            meter.push([frames[t] for frames in clips.values()], shown)
            bar.step()
    return reports


def stream(stylized: LazyVideo, content: LazyVideo, rule: Convention, method: str) -> Report:
    """A clip of any length; only as many frames are kept as the longest stride needs."""
    report = Report(rule, f"{method} on the content")
    meter = Meter([report], method)
    with host.progress(stylized.frame_count, "Optical-flow error") as bar:
        for frames, shown in in_step([stylized, content], CHUNK):
            for pair in zip(frames, shown, strict=True):
                meter.push(pair[:1], pair[1])
                bar.step()
    return report


def named(clips: Sequence[Tensor | None], names: str) -> dict[str, Tensor]:
    """The clips that are there, by their names."""
    words = [word.strip() for word in names.split(",")]
    labels = [word or letter for word, letter in zip(words + [""] * len(clips), "ABCD", strict=False)]
    present = {label: clip for label, clip in zip(labels, clips, strict=True) if clip is not None}
    if len(present) != sum(clip is not None for clip in clips):
        raise ValueError(f"the names {names!r} repeat: give each clip its own")
    return present


def summary(reports: Sequence[Report]) -> str:
    """CSV: the convention, then one row per clip."""
    lines = [f"# {key}: {value}" for key, value in reports[0].words().items()]
    lines.append("clip,error,worst pair,worst error,valid share")
    for report in reports:
        counted = [pair for pair in report.pairs if pair.counts]
        valid = sum(pair.valid for pair in counted) / len(counted) if counted else math.nan
        worst = report.worst
        shown = (str(worst), f"{worst.error:.6g}") if worst else ("", "")
        lines.append(f"{report.name},{report.error:.6g},{','.join(shown)},{valid:.4f}")
    return "\n".join(lines) + "\n"


def best(reports: Sequence[Report]) -> str:
    """The name of the calmest clip."""
    known = [report for report in reports if math.isfinite(report.error)]
    return min(known, key=lambda report: report.error).name if known else ""
