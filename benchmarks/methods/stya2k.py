"""StyA2K and plain colour transfer."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from reelbrush.nodes.stya2k import library, style
from reelbrush.nodes.stya2k.stylize import Options
from reelbrush.nodes.stya2k.stylize import stylize as draw

_load = cache(style.load_model)


def stylize(
    content: Tensor,
    style_picture: Tensor,
    model: str = "",
    strength: float = 1.0,
    keep_color: bool = False,
    attention: str = "",
    precision: str = "float32",
) -> Tensor:
    """StyA2K. `model` is a file, "" the shipped one, or "colour" for mean and deviation in Lab."""
    if model == "colour":
        return torch.stack([_transfer(frame, style_picture[0]) for frame in content])
    path = Path(model) if model else library.path(library.embedded()[0])
    chosen = style.Style(_load(path, precision), (style.StylePart(style_picture),))
    return draw(chosen, content, Options(strength, keep_color, attention or None), 1).clamp(0, 1)


def _transfer(content: Tensor, style_picture: Tensor) -> Tensor:
    a, b = (cv2.cvtColor(x.contiguous().numpy(), cv2.COLOR_RGB2Lab) for x in (content, style_picture))
    a = (a - a.mean((0, 1))) / (a.std((0, 1)) + 1e-5) * b.std((0, 1)) + b.mean((0, 1))
    return torch.from_numpy(cv2.cvtColor(a.astype(np.float32), cv2.COLOR_Lab2RGB)).clamp(0, 1)
