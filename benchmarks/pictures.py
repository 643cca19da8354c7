"""Pictures from files, for the benchmarks beside this one."""

from pathlib import Path

import cv2
import torch
from torch import Tensor


def square(path: Path, side: int) -> Tensor:
    """The middle of a picture as [1, side, side, 3] in 0..1."""
    image = cv2.imread(str(path))
    if image is None:
        raise FileNotFoundError(f"{path} is missing, or no picture that OpenCV can read")
    h, w = image.shape[:2]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    middle = cv2.resize(image[top : top + s, left : left + s], (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cv2.cvtColor(middle, cv2.COLOR_BGR2RGB))[None].float() / 255
