"""Style pictures that no network here was trained on: frames of clips, redrawn by arithmetic.

The small denoiser was trained on every picture in the data folder's style/, so that a LoRA of one of them
changes little. `glass` is a frame of Sintel as stained glass: cells in one of five colours, with black lines
between them. `lines` is a frame of Big Buck Bunny as an engraving: red diagonal lines on pale blue paper,
wider where the frame is darker.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from reelbrush.lab.pictures import square

INKS = np.array([[150, 20, 40], [25, 50, 150], [235, 175, 40], [20, 120, 80], [240, 230, 200]], np.float32)
PAPER, INK = np.array([190, 240, 240], np.float32), np.array([200, 25, 50], np.float32)
CELLS, PERIOD = 160, 16  # in a picture; pixels of 256


def style_picture(data: Path, name: str, size: int) -> Tensor:
    """A square [1, size, size, 3]: "glass", "lines", or a file in the data folder's style/."""
    if name not in MADE:
        return square(data / "style" / name, size)
    return torch.from_numpy(MADE[name](data / "clips", size))[None].float().clamp(0, 255) / 255


def glass(clips: Path, size: int) -> np.ndarray:
    """Five inks by rank of lightness, cells about 20 of 256 pixels wide."""
    frame = square(sorted((clips / "sintel_mountain_2").glob("*.png"))[10], size)[0].numpy()
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, size, (CELLS, 2)).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    far = np.stack([(y - b) ** 2 + (x - a) ** 2 for a, b in seeds]) ** 0.5
    cell, two = far.argmin(0), np.partition(far, 1, axis=0)[:2]
    light = np.array([frame[cell == n].mean() if (cell == n).any() else 0 for n in range(len(seeds))])
    rank = (light.argsort().argsort() * len(INKS) // len(seeds) + rng.integers(0, 2, len(seeds))) % len(INKS)
    shade = rng.uniform(0.8, 1.15, (len(seeds), 1)).astype(np.float32)
    lead = np.clip((two[1] - two[0]) / (size / 51) - 0.3, 0, 1)[..., None]
    return (INKS[rank] * shade)[cell] * lead


def lines(clips: Path, size: int) -> np.ndarray:
    """Diagonal lines."""
    reader = cv2.VideoCapture(str(clips / "bunny_640x360_24fps_audio.mp4"))
    reader.set(cv2.CAP_PROP_POS_FRAMES, 100)
    frame = reader.read()[1]
    side = min(frame.shape[:2])
    left = (frame.shape[1] - side) // 2
    grey = cv2.cvtColor(frame[:side, left : left + side], cv2.COLOR_BGR2GRAY)
    grey = cv2.GaussianBlur(cv2.equalizeHist(cv2.resize(grey, (size, size))), (0, 0), size / 85)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    wave = 0.5 + 0.5 * np.cos((x + y) * (2**0.5 * np.pi * 256 / (size * PERIOD)))
    ink = np.clip((wave - grey / 255) * 4 + 0.5, 0, 1)[..., None]
    return PAPER * (1 - ink) + INK * ink


MADE = {"glass": glass, "lines": lines}
