"""The weight of every loss over the epochs (section 3.4): structure first, classification ramped up.

The losses have very different scales, which also depend on the judge and the pictures. So a weight is a share
of the gradient (of the network's weights): each loss's gradient is divided by the largest norm that it has
had lately, and multiplied by its `SHARES` times its weight relative to the default. A loss that has just been
satisfied has a smaller gradient, and so a smaller share. The paper has the losses and the order, but no
numbers.

With u the share of completed epochs and r = smoothstep((u - 0.3) / 0.2), the shares of the classification
losses are multiplied by 0.3 + 0.7 r and the share of attention alignment by 4 - 3 r. Classification does
not start at zero, because an untrained network is the identity, which keeps the structure perfectly and
would learn nothing. For the same reason the structure losses pull less than their shares at first. So the
classification losses are then scaled down: before the ramp they pull at most as much relative to the
structure losses as their shares say, and 1 / (1 - r) times that much in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

RAMP = (0.3, 0.5)  # shares of the epochs between which classification gains and attention loses weight
FIRST = 0.3
BOOST = 4.0
FORGET = 0.95  # per epoch: at the content picture itself, some gradients are much larger than ever after
STRUCTURE, CLASSIFICATION = ("attention", "content", "layout"), ("classification", "confidence", "patches")
# At the default weights, after the ramp. A temporal weight of 10 has a share of 0.2.
SHARES = {"classification": 0.15, "confidence": 0.15, "patches": 0.4, "content": 0.12, "layout": 0.08}
SHARES |= {"attention": 0.08, "tv": 0.015, "temporal": 0.02}


@dataclass(frozen=True)
class Weights:
    """The weight of every loss; 0 turns a loss off. CLIPstyler's numbers for the losses that it has, but only
    their ratios to these defaults count."""

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

    def shares(self) -> dict[str, float]:
        """The share of each loss that is on."""
        given = {f.name: getattr(self, f.name) / (f.default or 1.0) for f in fields(self)}
        return {name: SHARES[name] * ratio for name, ratio in given.items() if ratio}


def ramp(epoch: int, epochs: int) -> float:
    """From 0 to 1 over the middle of the training, smooth at both ends."""
    t = (epoch / max(1, epochs - 1) - RAMP[0]) / (RAMP[1] - RAMP[0])
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


def at(shares: dict[str, float], r: float) -> dict[str, float]:
    """The shares when the ramp is at r."""
    factors = dict.fromkeys(CLASSIFICATION, FIRST + (1 - FIRST) * r) | {"attention": BOOST + (1 - BOOST) * r}
    return {name: share * factors.get(name, 1.0) for name, share in shares.items()}


class Balance:
    """Finds what the gradient of each loss is multiplied by, from the norms that it has and has had."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def factors(self, norms: dict[str, float], shares: dict[str, float], r: float) -> dict[str, float]:
        """A factor for each loss; r is the ramp."""
        factors = {}
        for name, norm in norms.items():
            largest = self.largest[name] = max(norm, FORGET * self.largest.get(name, 0.0))
            factors[name] = shares[name] / largest if largest > 0 else 0.0

        def style_to_structure(of: dict[str, float]) -> float:
            style, structure = (
                sum(of[n] for n in norms if n in group) for group in (CLASSIFICATION, STRUCTURE)
            )
            return style / structure if structure > 0 else 0.0

        pulled = style_to_structure({name: factors[name] * norms[name] for name in norms})
        if r < 1 and pulled > 0:
            held = min(1.0, style_to_structure(shares) / (1 - r) / pulled)
            factors |= {name: held * factors[name] for name in factors if name in CLASSIFICATION}
        return factors


def norm(gradients: Sequence[Tensor | None]) -> float:
    """The norm of all gradients together."""
    return torch.stack([g.norm() for g in gradients if g is not None]).norm().item()


def plot(losses: dict[str, list[float]], shares: dict[str, list[float]], title: str) -> Tensor:
    """IMAGE: the losses relative to their largest values, and below them each one's part of the gradient."""
    from ..common.plot import figure_to_image, new_figure

    figure = new_figure(8, 7)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, values in losses.items():
        largest = max(values, default=0) or 1.0  # not the first: content and layout start at zero
        upper.plot([v / largest for v in values], label=name, linewidth=1.4)
        lower.plot(shares[name], label=name, linewidth=1.4)
    upper.set(title=title, ylabel="loss / its largest value")
    upper.set_yscale("symlog", linthresh=1e-2)
    lower.set(xlabel="epoch", ylabel="part of the gradient", ylim=(0, 1))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    if upper.get_legend_handles_labels()[0]:
        upper.legend(ncols=2, fontsize="small")
    return figure_to_image(figure)
