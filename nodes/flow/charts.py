"""Plots of the flow nodes: error curves, bars, heat maps, and flow as colours."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.flow import energy
from ..common.plot import figure_to_image, new_figure
from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _axis_label(report: Report) -> str:
    rule = report.convention
    if rule.norm == "lpips":
        return "LPIPS (ST-LPIPS, VGG-16)"
    norm = {"mse": "mean squared", "rmse": "root mean squared", "l1": "mean absolute"}[rule.norm]
    return f"{norm} error, range 0-{rule.scale:g}"


def _convention_line(report: Report) -> str:
    about = report.description()
    pieces = (f"{key}: {about[key]}" for key in ("preset", "direction", "norm", "range"))
    rest = (f"{key}: {about[key]}" for key in ("mask", "normaliser", "strides", "flow"))
    return " · ".join(pieces) + "\n" + " · ".join(rest)


def _curve(axes: "Axes", report: Report, stride: int, label: str) -> None:
    """One stride of one clip; the curve has a gap where a pair does not count."""
    rows = [p for p in report.pairs if p.stride == stride]
    at = [p.first + p.stride for p in rows]
    (line,) = axes.plot(
        at, [p.error if p.counts else math.nan for p in rows], linewidth=1.4, marker=".", ms=3
    )
    line.set_label(f"{label}: mean {report.mean(stride):.4g}")
    axes.axhline(report.mean(stride), color=line.get_color(), linewidth=0.8, linestyle="--", alpha=0.6)


def _frame(axes: "Axes", report: Report) -> None:
    for number, cut in enumerate(report.cuts):
        axes.axvline(
            cut, color="0.35", linewidth=1, linestyle=":", label=None if number else "cut (not counted)"
        )
    axes.set(xlabel="frame", ylabel=_axis_label(report))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def error_plot(report: Report) -> Tensor:
    """The error per pair, its mean, the worst pair and the cuts; IMAGE [1, H, W, 3]."""
    figure = new_figure()
    axes = figure.add_subplot()
    figure.suptitle(f"Optical-flow error: {report.error:.4g}", fontsize=12)
    axes.set_title(_convention_line(report), fontsize=7, color="0.3")
    for stride in report.convention.strides:
        _curve(axes, report, stride, f"stride {stride}")
    if worst := report.worst:
        axes.plot(
            worst.first + worst.stride, worst.error, "v", color="crimson", ms=7, label=f"worst: {worst}"
        )
    if not report.pairs:
        axes.text(0.5, 0.5, "one frame: there is no pair to compare", ha="center", transform=axes.transAxes)
    _frame(axes, report)
    return figure_to_image(figure)


def error_heatmap(report: Report, height: int, width: int) -> Tensor:
    """The mean error of each pixel over all pairs. Pixels that no pair counted are grey."""
    heat = report.heat()
    side = 8.0
    figure = new_figure(side, side * min(max(height / width, 0.3), 2.0) * 0.86 + 0.5)
    axes = figure.add_subplot()
    axes.set_facecolor("0.5")
    if heat is None:
        heat = torch.full((height, width), torch.nan)
    known = heat[heat.isfinite()]
    top = max(known.quantile(0.995).item() if 0 < known.numel() < 2**24 else 0.0, 1e-6)
    if known.numel() >= 2**24:
        top = max(known[:: known.numel() // 2**20].quantile(0.995).item(), 1e-6)
    picture = axes.imshow(heat.numpy(), cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.01, extend="max")
    bar.set_label(_axis_label(report), fontsize=8)
    axes.set_title(f"Mean error per pixel over {sum(p.counts for p in report.pairs)} pairs", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure_to_image(figure)


def comparison(reports: Sequence[Report]) -> Tensor:
    """Curves of several clips above, bars of their means below."""
    figure = new_figure(8.0, 6.5)
    upper, lower = figure.subplots(2, 1, height_ratios=(2.2, 1))
    figure.suptitle("Stability: optical-flow error against the same content", fontsize=12)
    upper.set_title(_convention_line(reports[0]), fontsize=7, color="0.3")
    strides = reports[0].convention.strides
    for report in reports:
        for stride in strides:
            label = report.name if len(strides) == 1 else f"{report.name}, stride {stride}"
            _curve(upper, report, stride, label)
    _frame(upper, reports[0])
    values = [report.error for report in reports]
    best = min((v for v in values if math.isfinite(v)), default=math.nan)
    colours = ["seagreen" if v == best else "steelblue" for v in values]
    bars = lower.barh(
        [r.name for r in reports], [v if math.isfinite(v) else 0 for v in values], color=colours
    )
    lower.bar_label(bars, [f" {v:.4g}" for v in values])
    lower.invert_yaxis()
    lower.margins(x=0.15)
    lower.set_xlabel(_axis_label(reports[0]))
    return figure_to_image(figure)


def colour_wheel(flow: Tensor, fastest: float | None = None) -> Tensor:
    """Flow [N, 2, H, W] as pictures [N, H, W, 3]: the hue is the direction, white means no motion.

    Right is red, down yellow-green, left cyan, up violet. A motion of `fastest` pixels has full colour.
    """
    speed = energy(flow).sqrt()
    if fastest is None:
        fastest = speed.max().item() if speed.numel() else 0.0
    colourful = (speed / max(fastest, 1e-6)).clamp(max=1)
    hue = torch.atan2(flow[:, 1], flow[:, 0]) / (2 * math.pi) % 1
    channels = [
        1 - colourful * (1 - (((hue + shift) % 1) * 6 - 3).abs().sub(1).clamp(0, 1))
        for shift in (0, 2 / 3, 1 / 3)
    ]
    return torch.stack(channels, dim=-1)
