"""Contact sheets: frames side by side as one picture."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def spread(total: int, count: int) -> list[int]:
    """`count` frame numbers spread over a clip of `total`, first and last included."""
    if count >= total:
        return list(range(max(total, 1)))
    if count == 1:
        return [0]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def contact_sheet(frames: Tensor, *, columns: int = 0, width: int = 320, gap: int = 4) -> Tensor:
    """Frames [N, H, W, 3] on a grid, each at most `width` wide, as IMAGE [1, h, w, 3]."""
    n, h, w, _ = frames.shape
    wide = math.sqrt(n * 1.5)  # a good number of columns; another one leaves fewer cells empty
    columns = columns or min(range(1, n + 1), key=lambda count: abs(count - wide) + -n % count)
    if w > width:
        size = (max(1, round(h * width / w)), width)
        planes = interpolate(frames.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
        frames = planes.permute(0, 2, 3, 1)
        _, h, w, _ = frames.shape
    rows = math.ceil(n / columns)
    sheet = torch.ones(rows * (h + gap) - gap, columns * (w + gap) - gap, 3)
    for i, frame in enumerate(frames):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = frame
    return sheet.unsqueeze(0)
