"""Plots as IMAGE, drawn on matplotlib's Agg canvas without pyplot's global state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float = 8.0, height: float = 4.5) -> "Figure":
    """An empty figure; sizes are inches at 100 dots."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def figure_to_image(figure: "Figure") -> Tensor:
    """Render a figure to IMAGE [1, H, W, 3]."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).float().div_(255).unsqueeze(0)


def loss_plot(
    curves: Mapping[str, Sequence[float]], title: str, *, xlabel: str = "step", log: bool = False
) -> Tensor:
    """One line per named loss, thin for every value and thick for its running mean."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, values in curves.items():
        if not len(values):
            continue
        (line,) = axes.plot(values, linewidth=0.6, alpha=0.35)
        span = max(1, len(values) // 50)
        series = torch.tensor(list(values), dtype=torch.float64)
        smooth = series.unfold(0, span, 1).mean(-1)
        axes.plot(
            range(span - 1, len(values)), smooth.tolist(), color=line.get_color(), linewidth=1.8, label=name
        )
    axes.set(title=title, xlabel=xlabel, ylabel="loss")
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure_to_image(figure)
