"""Pictures from files as squares."""

from pathlib import Path

import cv2
import torch
from torch import Tensor

from reelbrush.nodes.common import pictures


def square(path: Path, side: int) -> Tensor:
    """The center square of a picture as [1, side, side, 3] in 0..1."""
    image = pictures.read(path)[0]
    h, w = image.shape[:2]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    center = image[top : top + s, left : left + s].contiguous().numpy()
    return torch.from_numpy(cv2.resize(center, (side, side), interpolation=cv2.INTER_AREA))[None]


def squares(folder: Path, count: int, side: int) -> Tensor:
    """The center squares of the first pictures of a folder, or of one file."""
    if folder.is_file():
        return square(folder, side)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in pictures.EXTENSIONS)
    return torch.cat([square(p, side) for p in files[:count]])
