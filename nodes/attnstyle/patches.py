"""Augmented patches for the multi-scale classification loss (section 3.4).

A patch is a random square of a picture with a perspective distortion, sometimes mirrored, with jittered
colours. It is one bilinear sampling, so gradients reach the picture's pixels. The corners of a square only
move inwards (by up to `SLANT` of half its side), so that no patch contains pixels outside the picture: the
judge would take a black border for part of the style.

The paper only names its scales. Here `global` uses squares of the whole short side, `intermediate` of half
and `local` of a quarter of it (as CLIPstyler's 128 of 512). If the judge uses fewer pixels than the square
has, the picture is first shrunk with antialiasing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

SIDES = {"global": 1.0, "intermediate": 0.5, "local": 0.25}
SHARES = {"global": 1, "intermediate": 3, "local": 4}  # of the patches of one step
SLANT = 0.5
JITTER = 0.1  # of brightness, contrast and saturation


@dataclass(frozen=True)
class Patches:
    """Patches [M, 3, size, size] and the number of the picture that each was cut from [M]."""

    images: Tensor
    frame: Tensor


def parse_scales(text: str) -> dict[str, float]:
    """ "global 1, local 0.5" to {"global": 1.0, "local": 0.5}: the λ of each scale."""
    scales: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.partition(" ")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name not in SIDES or weight < 0 or name in scales:
            raise ValueError(
                f"patch_scales has {part!r}: write a scale ({', '.join(SIDES)}) and its weight, "
                'each once, such as "global 1, intermediate 1, local 1"'
            )
        scales[name] = weight
    return {name: weight for name, weight in scales.items() if weight > 0}


def share_out(patches: int, scales: dict[str, float]) -> dict[str, int]:
    """The number of patches of each scale; at least one."""
    total = sum(SHARES[name] for name in scales)
    return {name: max(1, round(patches * SHARES[name] / total)) for name in scales}


def cut(
    images: Tensor, count: int, side: float, size: int, generator: torch.Generator, *, plain: bool = False
) -> Patches:
    """`count` patches of `side` times the short side, spread evenly over the pictures [N, 3, H, W].

    `generator` is on the CPU, so that a seed means the same on every device. `plain` gives squares without
    augmentation.
    """
    n, _, h, w = images.shape
    frame = (torch.arange(count) + torch.randint(n, (1,), generator=generator)) % n
    length = max(1.0, side * min(h, w))
    if length > size:  # the judge uses fewer pixels than the square has
        scale = size / length
        smaller = (max(1, round(h * scale)), max(1, round(w * scale)))
        images = interpolate(images, smaller, mode="bilinear", antialias=True, align_corners=False)
    half = torch.tensor([length / w, length / h])  # in grid_sample's units, where the picture spans -1..1
    center = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - half).clamp_min(0)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(count, 4, 2)
    if not plain:
        corners = corners * (1 - SLANT * torch.rand(count, 4, 2, generator=generator))
        mirror = torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
    else:
        mirror = torch.ones(count, 1, 1)
    grid = perspective_grid(corners, size)
    grid = grid * torch.cat([mirror, torch.ones_like(mirror)], dim=-1)[:, None]
    grid = center[:, None, None] + grid * half
    frame = frame.to(images.device)
    patches = grid_sample(images[frame], grid.to(images), align_corners=False, padding_mode="border")
    return Patches(patches if plain else jitter(patches, generator), frame)


def perspective_grid(corners: Tensor, size: int) -> Tensor:
    """Sampling points [N, size, size, 2] that map the square -1..1 onto quadrilaterals [N, 4, 2].

    Corners in the order top left, top right, bottom right, bottom left. The eight numbers of each
    homography solve the eight linear equations that its four corners give.
    """
    x, y = torch.tensor([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    u, v = corners.double().unbind(-1)

    def rows(left: list[Tensor], goal: Tensor) -> Tensor:
        fixed = torch.stack(left, dim=-1).expand(len(corners), 4, 6)
        return torch.cat([fixed, (-x * goal)[..., None], (-y * goal)[..., None]], dim=-1)

    equations = torch.cat([rows([x, y, one, zero, zero, zero], u), rows([zero, zero, zero, x, y, one], v)], 1)
    solved = torch.linalg.solve(equations, torch.cat([u, v], dim=1))
    matrix = torch.cat([solved, torch.ones_like(solved[:, :1])], dim=1).view(-1, 3, 3)
    steps = (torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1
    yy, xx = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([xx, yy, torch.ones_like(xx)], dim=-1).flatten(0, 1)
    mapped = points @ matrix.transpose(-1, -2)
    return (mapped[..., :2] / mapped[..., 2:]).view(-1, size, size, 2).float()


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each patch gets its own brightness, contrast and saturation, up to `JITTER` either way."""
    by = (torch.rand(3, len(x), 1, 1, 1, generator=generator) * 2 - 1).to(x) * JITTER + 1
    brightness, contrast, saturation = by
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    luma = x.mean(1, keepdim=True)
    return (luma + (x - luma) * saturation).clamp(0, 1)
