"""What a recipe for the every-node test says about a node, and small inputs for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch

from reelbrush.nodes.video.lazy_video import LazyVideo

PROBES: list[tuple[Callable[[Any], bool], Callable[[Any], Any]]] = []
"""How to compare objects that are not data: (whether it is one, what it is or gives)."""


@dataclass
class Recipe:
    """How to run one node.

    `inputs(frames, (width, height))` gives keyword arguments for the node's function (hidden ones left out).
    `frames` is the number of the output that has as many frames as went in (None: there is none).
    `off` is (changed inputs, name of the input that must come back bit for bit, number of the output);
    None needs a reason in the test's table NEVER_OFF.
    `wrong` lists (changed inputs, a part of the sentence that they get).
    `same_size`: the frames output has the input's size. `alone`: a batch equals its frames one by one.
    `changes`: outputs that differ from run to run (a counted file name).
    `needs`: a module without which the node cannot run ("comfyui": only in a real one).
    """

    inputs: Callable[[int, tuple[int, int]], dict[str, Any]]
    frames: int | None = None
    off: tuple[dict[str, Any], str, int] | None = None
    wrong: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    same_size: bool = False
    alone: str | None = None
    changes: tuple[str, ...] = ()
    needs: str | None = None
    sizes: tuple[tuple[int, int], ...] = ((33, 21), (24, 40))
    counts: tuple[int, ...] = (1, 3)


def picture(frames: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Smooth moving pictures [N, H, W, 3]."""
    width, height = size
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    t = torch.arange(frames).view(-1, 1, 1) * 0.05
    waves = [torch.sin((seed + 3 + 2 * c) * (x + t) + (5 - c) * y + c) * 0.4 + 0.5 for c in range(3)]
    return torch.stack(waves, -1)


def clip(frames: int, size: tuple[int, int], seed: int = 0) -> LazyVideo:
    """The same as a VIDEO."""
    return LazyVideo.from_frames(picture(frames, size, seed), Fraction(12))
