"""The curriculum (section 3.4): structure first, classification ramped up.

With u the share of completed epochs and r = smoothstep(u / 0.4), the weights of the classification losses
are multiplied by 0.05 + 0.95 r and the weight of attention alignment by 10 - 9 r; the others are constant.
The paper gives the order but no numbers; these are ours. Classification does not start at zero, because an
untrained network is the identity, which keeps the structure perfectly and would learn nothing.
"""

from dataclasses import dataclass, fields, replace

from torch import Tensor

RAMP = 0.4  # share of the epochs until the weights have their given values
FIRST = 0.05
BOOST = 10.0


@dataclass(frozen=True)
class Weights:
    """λ of every loss; 0 turns a loss off. The defaults are CLIPstyler's for the losses that it has."""

    classification: float = 500.0
    patches: float = 9000.0
    attention: float = 1.0
    content: float = 150.0
    layout: float = 1.0
    tv: float = 2e-3
    temporal: float = 0.0
    confidence: float = 20000.0

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(
                    f"the {field.name} weight is {getattr(self, field.name)}: weights are zero or more"
                )


def ramp(epoch: int, epochs: int) -> float:
    """0 at the first epoch, 1 after the share `RAMP` of the epochs, smooth at both ends."""
    t = min(1.0, epoch / max(1.0, RAMP * (epochs - 1)))
    return t * t * (3 - 2 * t)


def at(weights: Weights, epoch: int, epochs: int) -> Weights:
    """The weights of one epoch."""
    r = ramp(epoch, epochs)
    share = FIRST + (1 - FIRST) * r
    return replace(
        weights,
        classification=weights.classification * share,
        patches=weights.patches * share,
        confidence=weights.confidence * share,
        attention=weights.attention * (BOOST + (1 - BOOST) * r),
    )


def plot(losses: dict[str, list[float]], applied: list[Weights], title: str) -> Tensor:
    """IMAGE: the weighted losses, and below them the weights of each epoch relative to the given ones."""
    from ..common.plot import figure_to_image, new_figure

    figure = new_figure(8, 7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name, values in losses.items():
        if any(values):
            weights = [getattr(w, name) for w in applied]
            upper.plot([w * v for w, v in zip(weights, values, strict=True)], label=name, linewidth=1.4)
            lower.plot([w / weights[-1] for w in weights], label=name, linewidth=1.4)
    upper.set(title=title, ylabel="weight × loss")
    upper.set_yscale("symlog", linthresh=1e-3)
    lower.set(xlabel="epoch", ylabel="weight / its last")
    lower.set_yscale("log")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    if upper.get_legend_handles_labels()[0]:
        upper.legend(ncols=2, fontsize="small")
    return figure_to_image(figure)
