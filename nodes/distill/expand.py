"""Texture expansion: attention distillation guided sampling in overlapping windows (MultiDiffusion).

Every window of the canvas takes the sampling step and the guidance on its own, as a picture of the size that
the UNet was trained on; where windows overlap, the canvas is their mean. The UNet never sees more than a few
windows at once, so its memory does not grow with the canvas. A window that leaves a seamless edge goes on at
the other side. Departure from the official code: all windows of a step share one noised style.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..diffusion import unet
from . import features
from .features import Eye
from .guided import Noise
from .optimize import Recipe, References, distill, falling
from .seamless import AXES

TEXTURE = Recipe(content_weight=0.0)


@dataclass(frozen=True)
class Canvas:
    """A latent's size and the windows on it; all in latent pixels."""

    height: int
    width: int
    window: int = 64
    overlap: int = 56
    seamless: str = "none"

    def __post_init__(self):
        if not 0 <= self.overlap < self.window:
            raise ValueError(
                f"the windows are {self.window * 8} pixels and overlap by {self.overlap * 8}: "
                "give an overlap smaller than the window"
            )

    def starts(self, size: int, wraps: bool) -> list[int]:
        """Where windows begin along one axis: the last one ends at the edge, or runs over it to the start."""
        stride = self.window - self.overlap
        if wraps:
            return list(range(0, size, stride))
        if size <= self.window:
            return [0]
        count = math.ceil((size - self.window) / stride) + 1
        return [min(i * stride, size - self.window) for i in range(count)]

    def windows(self) -> list[tuple[Tensor, Tensor]]:
        """Rows and columns [h], [w] of each window."""
        x, y = AXES[self.seamless]
        cells = lambda start, size: (start + torch.arange(min(self.window, size))) % size  # noqa: E731
        return [
            (cells(top, self.height), cells(left, self.width))
            for top in self.starts(self.height, y)
            for left in self.starts(self.width, x)
        ]


@dataclass(frozen=True)
class Expansion:
    """How a canvas is filled; the defaults are the paper's."""

    steps: int = 50
    iterations: int = 3
    recipe: Recipe = TEXTURE
    windows_per_call: int = 0  # 0: from free memory


def ladder(steps: int) -> Iterator[tuple[int, int]]:
    """Each step's timestep and the one that it leads to; the last leads to 0."""
    levels = falling(steps)
    yield from zip(levels, [*levels[1:], 0], strict=True)


def expand(
    model: Any,
    base: Any,
    null: list,
    source: Tensor,
    canvas: Canvas,
    how: Expansion,
    noise: Noise,
    report: Callable[[int, Tensor], None] = lambda windows, z: None,
) -> Tensor:
    """A latent of the canvas' size in model space; `base` is the loaded model, `source` in model space."""
    with features.gradients(base):
        eye = Eye(base, null)
        source = source.detach().clone()
        z = noise(source.new_empty(1, source.shape[1], canvas.height, canvas.width))
        places = canvas.windows()
        crop = z[..., : len(places[0][0]), : len(places[0][1])]
        given = unet.conditions(base, null, crop)
        plan = features.plan(eye, crop.expand(len(places), -1, -1, -1), 1, how.windows_per_call)
    recipe = plan.on(how.recipe)
    with features.gradients(base, frugal=plan.frugal):
        for t, then in ladder(how.steps):
            sigma, level = eye.sigma(t), eye.sigma(then)
            noised = (source + level * noise(source)) / (1 + level**2) ** 0.5
            references = References(eye, noised, memory=1 << 62)
            total, count = torch.zeros_like(z), torch.zeros_like(z[:, :1])
            for first in range(0, len(places), plan.frames_per_call):
                some = places[first : first + plan.frames_per_call]
                crops = torch.cat([z[:, :, rows[:, None], columns] for rows, columns in some])
                crops = stepped(model, base, crops, sigma, level, given)
                if how.iterations:
                    crops = distill(references, crops, [then] * how.iterations, recipe)
                for (rows, columns), crop in zip(some, crops, strict=True):
                    total[0, :, rows[:, None], columns] += crop
                    count[0, :, rows[:, None], columns] += 1
                report(len(some), z)
            z = total / count
    return z


@torch.no_grad()
def stepped(model: Any, base: Any, z: Tensor, sigma: float, level: float, given: dict[str, Tensor]) -> Tensor:
    """A deterministic DDIM step of variance-preserving latents from noise level `sigma` to `level`."""
    options = unet.standalone_options(model, torch.full((1,), sigma, device=z.device))
    x = z * (1 + sigma**2) ** 0.5
    denoised = unet.evaluate(base, z, sigma, given, options)
    return (denoised + (x - denoised) * (level / sigma)) / (1 + level**2) ** 0.5
