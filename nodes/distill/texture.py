"""Textures by labels: what a picture of labels says, and the picture that an optimisation starts from.

A label picture paints each region in one colour. Every target pixel starts as a random pixel of the source
region with the same label (supplement B, after Guided Correspondence). A colour is a name: a target region
whose colour the source lacks is refused; pixels that no name fits (soft edges, JPEG noise) take the nearest
one.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

GRAIN = 8  # colours of a label picture are told apart in steps of 1/32 per channel
RARE = 0.002  # a colour on fewer pixels than this share is an edge, not a region
NEAR = 0.2  # how far (of 1, in RGB) a target region's colour may be from the source colour it means


def read_labels(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
    """Label pictures [1, H, W, 3] -> label maps [H, W] of values 1..n, and n. The source names them."""
    names = regions(source)
    for colour in regions(target):
        gap, nearest = (names - colour).norm(dim=1).min(dim=0)
        if gap > NEAR:
            raise ValueError(
                f"the target labels have a region of colour {hex_colour(colour)} and the source has none "
                f"(nearest {hex_colour(names[nearest])}): paint each target region in a source label's colour"
            )
    return nearest_label(source, names), nearest_label(target, names), len(names)


def regions(picture: Tensor) -> Tensor:
    """The colours [n, 3] that cover a region of a label picture, darkest first."""
    pixels = picture[0, ..., :3].reshape(-1, 3)
    coarse = (pixels * 255 / GRAIN).round().to(torch.int64)
    keys = (coarse[:, 0] * 64 + coarse[:, 1]) * 64 + coarse[:, 2]
    _, which, counts = keys.unique(return_inverse=True, return_counts=True)
    means = pixels.new_zeros(len(counts), 3).index_add_(0, which, pixels) / counts[:, None]
    found: list[Tensor] = []
    for index in counts.argsort(descending=True, stable=True):
        common = counts[index] >= max(1, RARE * len(pixels))
        if common and all((means[index] - other).norm() > NEAR / 2 for other in found):
            found.append(means[index])
    colours = torch.stack(found) if found else pixels.mean(0, keepdim=True)
    return colours[colours.sum(1).argsort(stable=True)]


def nearest_label(picture: Tensor, names: Tensor) -> Tensor:
    """Every pixel's label, 1..n: the nearest of n colours."""
    return torch.cdist(picture[0, ..., :3].reshape(-1, 3), names).argmin(1).view(picture.shape[1:3]) + 1


def fill(source: Tensor, of_source: Tensor, of_target: Tensor, seed: int) -> Tensor:
    """A picture [1, h, w, 3] the size of the target's labels: random source pixels of each label."""
    if of_source.shape != source.shape[1:3]:
        of_source = resize_labels(of_source, *source.shape[1:3])
    generator = torch.Generator().manual_seed(seed)
    pixels = source[0, ..., :3].reshape(-1, 3)
    out = pixels.new_empty(of_target.numel(), 3)
    for label in of_target.unique():
        (there,) = (of_target.flatten() == label).nonzero(as_tuple=True)
        (here,) = (of_source.flatten() == label).nonzero(as_tuple=True)
        if not len(here):
            raise ValueError(
                f"label {int(label)} of the target has no pixel in the source labels: use the same colours"
            )
        out[there] = pixels[here[torch.randint(len(here), (len(there),), generator=generator)]]
    return out.view(1, *of_target.shape, 3)


def resize_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """A label map at another size; names have no averages, so the nearest pixel's."""
    resized = interpolate(labels[None, None].float(), size=(height, width), mode="nearest")
    return resized[0, 0].to(labels.dtype)


def hex_colour(colour: Tensor) -> str:
    """A colour as people write it."""
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in colour)
