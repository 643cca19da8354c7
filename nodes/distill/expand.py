"""Texture expansion: attention distillation guided sampling in overlapping windows (MultiDiffusion).

The sampling step and the guidance are computed for every window of the canvas on its own, at the picture size
that the UNet was trained on. Where windows overlap, the canvas is their mean. The UNet evaluates a few
windows at once, so that its memory does not grow with the canvas. A window that crosses a seamless edge
continues at the opposite edge. Departure from the official code: all windows of a step have one noised style.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import ddim
from .. import host
from .features import FeatureReader, Noise
from .optimize import DistillRecipe, References, distill, falling
from .seamless import sides

TEXTURE = DistillRecipe(content_weight=0.0)


@dataclass(frozen=True)
class TextureCanvas:
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
        """Where windows begin along one axis: the last one ends at the edge, or wraps around it."""
        stride = self.window - self.overlap
        if wraps:
            return list(range(0, size, stride))
        if size <= self.window:
            return [0]
        count = math.ceil((size - self.window) / stride) + 1
        return [min(i * stride, size - self.window) for i in range(count)]

    def windows(self) -> list[tuple[Tensor, Tensor]]:
        """Row and column numbers [h], [w] of each window."""
        x, y = sides(self.seamless)
        cells = lambda start, size: (start + torch.arange(min(self.window, size))) % size  # noqa: E731
        return [
            (cells(top, self.height), cells(left, self.width))
            for top in self.starts(self.height, y)
            for left in self.starts(self.width, x)
        ]


@dataclass(frozen=True)
class Expansion:
    """The settings of an expansion; the defaults are the paper's."""

    steps: int = 50
    iterations: int = 3
    recipe: DistillRecipe = TEXTURE
    windows_per_call: int = 0  # 0: from free memory


def ladder(steps: int) -> Iterator[tuple[int, int]]:
    """Each step's timestep and the next one; the last step leads to 0."""
    levels = falling(steps)
    yield from zip(levels, [*levels[1:], 0], strict=True)


def expand(
    model: Any,
    reader: FeatureReader,
    source: Tensor,
    canvas: TextureCanvas,
    expansion: Expansion,
    noise: Noise,
    report: Callable[[int, Tensor], None] = lambda windows, z: None,
) -> Tensor:
    """A latent of the canvas' size, like `source` in model space. `model` and `reader` are from
    `features.opened`."""
    source = source.detach().clone()
    z = noise(source.new_empty(1, source.shape[1], canvas.height, canvas.width))
    windows = canvas.windows()
    crop = z[..., : len(windows[0][0]), : len(windows[0][1])]
    conditions = reader.null_conditions(crop)
    crops = crop.expand(len(windows), -1, -1, -1)
    per_call = reader.frames_per_call(crops, 1, expansion.windows_per_call)
    recipe = replace(expansion.recipe, frames_per_call=per_call)
    for t, following in ladder(expansion.steps):
        sigma, level = reader.sigma(t), reader.sigma(following)
        style = ddim.noised(source, noise(source), level)
        references = References(reader, style, memory=1 << 62)
        total, count = torch.zeros_like(z), torch.zeros_like(z[:, :1])
        for first in range(0, len(windows), per_call):
            group = windows[first : first + per_call]
            crops = torch.cat([z[:, :, rows[:, None], columns] for rows, columns in group])
            crops = sampling_step(model, reader.base, crops, sigma, level, conditions)
            if expansion.iterations:
                crops = distill(references, crops, [following] * expansion.iterations, recipe)
            for (rows, columns), crop in zip(group, crops, strict=True):
                total[0, :, rows[:, None], columns] += crop
                count[0, :, rows[:, None], columns] += 1
            report(len(group), z)
        z = total / count
    return z


@torch.no_grad()
def sampling_step(
    model: Any, base: Any, z: Tensor, sigma: float, level: float, conditions: dict[str, Tensor]
) -> Tensor:
    """A deterministic DDIM step of variance-preserving latents from noise level `sigma` to `level`."""
    options = host.transformer_options(model, torch.full((1,), sigma, device=z.device))
    denoised = host.evaluate(base, z, sigma, conditions, options)
    x = ddim.to_x(z, sigma)
    return ddim.to_z(denoised + (x - denoised) * (level / sigma), level)
