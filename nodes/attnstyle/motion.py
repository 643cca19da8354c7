"""Frame pairs for the temporal loss: motion between key frames, and small artificial motions.

Key frames are far apart, and often share nothing. So each step also makes a neighbour of every key frame by
a small random camera motion (shift, rotation, zoom, and a smooth distortion) with a little sensor noise. Its
flow is known exactly, and is valid inside the frame. The network learns from these that the style moves with
the picture and that invisible noise must not cause flicker.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...kernels.flow import inside, validity, warp
from ..flow.estimate import estimator

SHIFT, TURN, ZOOM, WOBBLE = 0.03, 0.03, 0.03, 0.004  # of the short side; radians; of the size
NOISE = 0.012
OVERLAP = 0.25  # smallest share of pixels with valid flow; below it the pair is not used
AGREE = 0.06  # largest colour difference along the flow; if larger, the light changed or the flow is wrong


@dataclass(frozen=True)
class KeyMotion:
    """Flow from key frame `a` to key frame `b`, valid where the pictures agree along it."""

    a: int
    b: int
    flow: Tensor  # [1, 2, H, W]
    valid: Tensor  # [1, H, W]


def random_flow(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """`count` random small camera motions [count, 2, H, W], computed on the CPU."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    short = min(height, width)
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    turn, zoom = draw(1, 1) * TURN, draw(1, 1) * ZOOM
    camera = torch.stack([zoom * x - turn * y, turn * x + zoom * y], dim=1)
    wobble = interpolate(
        torch.randn(count, 2, 4, 4, generator=generator), (height, width), mode="bicubic", align_corners=False
    )
    return camera + draw(2, 1, 1) * SHIFT * short + wobble * WOBBLE * short


def moved(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """An artificial neighbour of each picture, the flow from it to the picture, and the valid pixels."""
    n, _, h, w = images.shape
    flow = random_flow(n, h, w, generator).to(images)
    noise = torch.randn(images.shape, generator=generator).to(images) * NOISE
    return (warp(images, flow) + noise).clamp(0, 1), flow, inside(flow)


def between(images: Tensor, method: str = "dis-medium") -> list[KeyMotion]:
    """The motions between consecutive key frames [N, 3, H, W] that share enough of the picture."""
    source = estimator(method)
    ready = [source.prepare(frame) for frame in images.permute(0, 2, 3, 1)]
    found = []
    for a, b in pairwise(range(len(ready))):
        forward, backward = source.both(ready[a], ready[b])
        apart = warp(images[b : b + 1], forward) - images[a : a + 1]
        valid = validity(forward, backward) & (apart.square().mean(1) < AGREE**2)
        if valid.float().mean() >= OVERLAP:
            found.append(KeyMotion(a, b, forward, valid))
    return found
