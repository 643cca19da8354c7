"""Textures by labels: the labels in a label picture, and the picture that an optimization starts from.

A label picture has one colour per region. Every target pixel starts as a random pixel of the source region
with the same label (supplement B, after Guided Correspondence). A target region whose colour is not in the
source raises an error. Pixels of other colours (soft edges, JPEG noise) get the label of the nearest colour.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

GRAIN = 8  # colours of a label picture that differ by less than this (of 255) are one colour
RARE = 0.002  # a colour on a smaller share of the pixels is an edge, not a region
NEAR = 0.2  # largest distance (of 1, in RGB) between the colours of a target region and of its source region


def read_labels(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
    """Label pictures [1, H, W, 3] -> label maps [H, W] of values 1..n, and n, the number of labels."""
    labels = region_colours(source)
    for colour in region_colours(target):
        gap, nearest = (labels - colour).norm(dim=1).min(dim=0)
        if gap > NEAR:
            raise ValueError(
                f"the target labels have a region of colour {hex_colour(colour)} and the source has none "
                f"(nearest {hex_colour(labels[nearest])}): paint each target region in a colour of the source"
            )
    return nearest_label(source, labels), nearest_label(target, labels), len(labels)


def region_colours(picture: Tensor) -> Tensor:
    """The colours [n, 3] of the regions of a label picture, darkest first."""
    pixels = picture[0, ..., :3].reshape(-1, 3)
    coarse = (pixels * 255 / GRAIN).round().to(torch.int64)
    keys = (coarse[:, 0] * 64 + coarse[:, 1]) * 64 + coarse[:, 2]
    _, which, counts = keys.unique(return_inverse=True, return_counts=True)
    means = pixels.new_zeros(len(counts), 3).index_add_(0, which, pixels) / counts[:, None]
    chosen: list[Tensor] = []
    for index in counts.argsort(descending=True, stable=True):
        common = counts[index] >= max(1, RARE * len(pixels))
        if common and all((means[index] - other).norm() > NEAR / 2 for other in chosen):
            chosen.append(means[index])
    colours = torch.stack(chosen) if chosen else pixels.mean(0, keepdim=True)
    return colours[colours.sum(1).argsort(stable=True)]


def nearest_label(picture: Tensor, colours: Tensor) -> Tensor:
    """Every pixel's label, 1..n: the nearest of n colours."""
    return torch.cdist(picture[0, ..., :3].reshape(-1, 3), colours).argmin(1).view(picture.shape[1:3]) + 1


def fill(source: Tensor, of_source: Tensor, of_target: Tensor, seed: int) -> Tensor:
    """A picture [1, h, w, 3] the size of the target's labels: random source pixels of each label."""
    if of_source.shape != source.shape[1:3]:
        of_source = resize_labels(of_source, *source.shape[1:3])
    generator = torch.Generator().manual_seed(seed)
    pixels = source[0, ..., :3].reshape(-1, 3)
    out = pixels.new_empty(of_target.numel(), 3)
    for label in of_target.unique():
        (targets,) = (of_target.flatten() == label).nonzero(as_tuple=True)
        (sources,) = (of_source.flatten() == label).nonzero(as_tuple=True)
        if not len(sources):
            raise ValueError(
                f"label {int(label)} of the target has no pixel in the source labels: use the same colours"
            )
        out[targets] = pixels[sources[torch.randint(len(sources), (len(targets),), generator=generator)]]
    return out.view(1, *of_target.shape, 3)


def resize_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """A label map at another size, from the nearest pixels: an average of labels would be another label."""
    resized = interpolate(labels[None, None].float(), size=(height, width), mode="nearest")
    return resized[0, 0].to(labels.dtype)


def hex_colour(colour: Tensor) -> str:
    """A colour like #ff8000."""
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in colour)
