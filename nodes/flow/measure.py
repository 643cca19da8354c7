"""The optical-flow error of batches, of lazy clips, and of several versions of one clip."""

import math
from collections.abc import Sequence
from typing import Any

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
    """The error of frames [N, H, W, 3]. Without a flow, the motion is estimated on the content."""
    if flow is not None:
        return measure_with_flow(stylized, flow, Report(rule))
    if content is None:
        raise ValueError("the optical-flow error needs the content or its flow: connect one of the two")
    return versions({"stylized": stylized}, content, rule, method)[0]


def versions(clips: dict[str, Tensor], content: Tensor, rule: Convention, method: str) -> list[Report]:
    """The errors of several versions of one clip. The motion is estimated once."""
    for name, frames in clips.items():
        if len(frames) != len(content):
            raise ValueError(
                f"{name} has {len(frames)} frames, the content {len(content)}: give clips of one length"
            )
    rule.check_frames(len(content))
    meter = Meter(rule, clips, method, content)
    with host.progress(len(content), "Optical-flow error") as bar:
        for t, shown in enumerate(content):
            meter.push([frames[t] for frames in clips.values()], shown)
            bar.step()
    return meter.reports


def stream(stylized: LazyVideo, content: Any, rule: Convention, method: str) -> Report:
    """The error of a lazy clip."""
    return streams({"stylized": stylized}, content, rule, method)[0]


def streams(clips: dict[str, LazyVideo], content: Any, rule: Convention, method: str) -> list[Report]:
    """The errors of lazy versions of a VIDEO. Only as many frames are kept as the longest stride needs."""
    original = LazyVideo.of(content)
    meter = Meter(rule, clips, method, content)
    rule.check_frames(original.frame_count)
    with host.progress(original.frame_count, "Optical-flow error") as bar:
        for batches in in_step([*clips.values(), original], CHUNK):
            for *frames, shown in zip(*batches, strict=True):
                meter.push(frames, shown)
                bar.step()
    rule.check_frames(meter.reports[0].frames)
    return meter.reports


def named(clips: Sequence[Tensor | None], names: str) -> dict[str, Tensor]:
    """The connected clips by name."""
    parts = [part.strip() for part in names.split(",")]
    labels = [part or letter for part, letter in zip(parts + [""] * len(clips), "ABCD", strict=False)]
    present = {label: clip for label, clip in zip(labels, clips, strict=True) if clip is not None}
    if len(present) != sum(clip is not None for clip in clips):
        raise ValueError(f"the names {names!r} repeat: give each clip its own name")
    return present


def summary(reports: Sequence[Report]) -> str:
    """CSV: the convention, then one row per clip."""
    lines = [f"# {key}: {value}" for key, value in reports[0].description().items()]
    lines.append("clip,error,worst pair,worst error,valid share")
    for report in reports:
        counted = [pair for pair in report.pairs if pair.counts]
        valid = sum(pair.valid for pair in counted) / len(counted) if counted else math.nan
        worst = report.worst
        shown = (str(worst), f"{worst.error:.6g}") if worst else ("", "")
        lines.append(f"{report.name},{report.error:.6g},{','.join(shown)},{valid:.4f}")
    return "\n".join(lines) + "\n"


def best(reports: Sequence[Report]) -> str:
    """The name of the clip with the smallest error."""
    known = [report for report in reports if math.isfinite(report.error)]
    return min(known, key=lambda report: report.error).name if known else ""
