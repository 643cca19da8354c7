"""Losses of StyA2K: eqs. 16-18, and the terms that the training of the small network adds.

Every term takes feature dicts of a perceptual network (common/perceptual.py). `equations` is the form of
eqs. 16 and 17. "paper": Euclidean norms of a picture's differences, averaged over the batch; eq. 17's regions
are given by their number, and its keys are of one layer. "official", as the authors' code: mean squares;
regions are given by their size, keys contain all shallower layers. "relative" is ours: norms relative to the
norm of their target, so that one set of weights works with any perceptual network, and no pair of pictures
dominates its batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.all_to_key import Arithmetic, all_to_key
from ...kernels.flow import inside, targets, warp
from ...kernels.moments import moments, normalize

Features = dict[str, Tensor]


def _power(wanted: Tensor, out: Tensor, bounded: bool) -> Tensor:
    """What squared distances are relative to: the target's squares, or (`bounded`) the mean of both, so that
    a dark style, whose features are small, does not outweigh the others."""
    squares = wanted.square()
    return (squares + out.detach().square()) / 2 if bounded else squares


def _norm(difference: Tensor) -> Tensor:
    """The mean Euclidean norm of a batch."""
    return difference.flatten(1).norm(dim=1).mean()


def moments_loss(
    out: Features,
    style: Features,
    layers: tuple[str, ...],
    equations: str = "relative",
    bounded: bool = False,
) -> Tensor:
    """Eq. 16: distance of mean and deviation per channel."""
    total = torch.zeros((), device=out[layers[0]].device)
    for layer in layers:
        mean, std = moments(out[layer])
        want_mean, want_std = moments(style[layer])
        if equations == "paper":
            total = total + _norm(mean - want_mean) + _norm(std - want_std)
            continue
        miss = ((mean - want_mean).square() + (std - want_std).square()).mean((1, 2, 3))
        if equations == "relative":
            power = (_power(want_mean, mean, bounded) + _power(want_std, std, bounded)).mean((1, 2, 3))
            miss = (miss / power.clamp_min(1e-12) + 1e-8).sqrt()
        total = total + miss.mean()
    return total


def gram(x: Tensor) -> Tensor:
    """Second moments between channels [N, C, C]."""
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[-1]


def gram_loss(out: Features, style: Features, layers: tuple[str, ...], bounded: bool = False) -> Tensor:
    """Distance of Gram matrices relative to the style's: texture beyond mean and deviation."""
    total = torch.zeros((), device=out[layers[0]].device)
    for layer in layers:
        want, made = gram(style[layer]), gram(out[layer])
        miss = (made - want).square().sum((1, 2))
        power = _power(want, made, bounded).sum((1, 2))
        total = total + (miss / power.clamp_min(1e-12) + 1e-8).sqrt().mean()
    return total


def _spread_points(maps: Tensor, count: int) -> Tensor:
    """`count` points of maps [N, C, H, W], spread over them, [N, C, count]."""
    flat = maps.flatten(2)
    places = torch.linspace(0, flat.shape[2] - 1, count, device=maps.device).round().long()
    return flat[..., places]


def sliced_distance(out: Tensor, wanted: Tensor, directions: Tensor, points: int = 1024) -> Tensor:
    """Sliced Wasserstein distance of the points of maps [N, C, H, W], relative to the spread of `wanted`.

    A point is a vector of C channels; `directions` [C or more, K] are random. Along a direction, the nearest
    arrangement of two sets of numbers is their order, so every value of the style has to occur as often as it
    does there: unlike with moments, the mean of two colours is as wrong as any other colour."""
    along = directions[: out.shape[1]]
    along = along / along.norm(dim=0)
    count = min(points, out[0, 0].numel())
    made, want = (
        torch.einsum("ncp,ck->nkp", _spread_points(x, count), along).sort(-1).values for x in (out, wanted)
    )
    spread = (want - want.mean(-1, keepdim=True)).abs().mean((1, 2)).clamp_min(1e-4)
    return ((made - want).abs().mean((1, 2)) / spread).mean()


def sliced_loss(out: Features, style: Features, layers: tuple[str, ...], directions: Tensor) -> Tensor:
    """Distance of the distributions of features: it averages neither colours nor textures."""
    return sum(sliced_distance(out[layer], style[layer], directions) for layer in layers)


def palette_loss(out: Tensor, style: Tensor, directions: Tensor) -> Tensor:
    """The same of the colours at half size."""
    return sliced_distance(*(functional.avg_pool2d(x, 2) for x in (out, style)), directions, points=2048)


def edges(images: Tensor) -> Tensor:
    """Strength of the luma's edges at half size (Sobel), relative to a picture's own: silhouettes in any
    palette."""
    red, green, blue = images.split(1, 1)
    light = functional.avg_pool2d(0.2126 * red + 0.7152 * green + 0.0722 * blue, 2)
    down = light[..., :-2, :] + 2 * light[..., 1:-1, :] + light[..., 2:, :]
    across = light[..., :-2] + 2 * light[..., 1:-1] + light[..., 2:]
    x, y = down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]
    strength = (x.square() + y.square() + 6e-4).sqrt()
    return strength / strength.mean((2, 3), keepdim=True)


def edge_loss(out: Tensor, content: Tensor) -> Tensor:
    """Keeps silhouettes where they are, without halos."""
    return (edges(out) - edges(content)).abs().mean()


def content_loss(
    out: Features, content: Features, layers: tuple[str, ...], weights: tuple[float, ...] | None = None
) -> Tensor:
    """Distance of instance-normalized features: structure, independent of the palette."""
    weights = weights or (1.0,) * len(layers)
    return sum(
        w * functional.mse_loss(normalize(out[layer]), normalize(content[layer]))
        for layer, w in zip(layers, weights, strict=True)
    )


def keys_of(features: Features, layers: tuple[str, ...], upto: int) -> Tensor:
    """Eq. 17's keys in the official code: this layer and all shallower ones, normalized, resized to it."""
    size = features[layers[upto]].shape[-2:]
    return torch.cat(
        [normalize(functional.interpolate(features[name], size)) for name in layers[: upto + 1]], 1
    )


def match_loss(
    out: Features,
    content: Features,
    style: Features,
    layers: tuple[str, ...],
    shallow: tuple[str, ...] = (),
    sizes: tuple[int, ...] = (),
    heads: int = 8,
    equations: str = "relative",
) -> Tensor:
    """Eq. 17: distance to the target from all-to-key attention without parameters.

    `shallow` are layers that are only used in the keys; `sizes` are the regions' points per side, or with the
    paper's equations the regions per side.
    """
    names = (*shallow, *layers)
    total = torch.zeros((), device=out[layers[0]].device)
    for i, layer in enumerate(layers):
        side = sizes[i] if sizes else 8
        with torch.no_grad():
            if equations == "paper":
                how = Arithmetic(count=side, heads=heads, extra=0)
                q, k = normalize(content[layer]), normalize(style[layer])
            else:
                how = Arithmetic(size=side, heads=heads, scaled=equations == "relative")
                q, k = (keys_of(x, names, len(shallow) + i) for x in (content, style))
            made = all_to_key(q, k, style[layer], how)
        if (
            equations == "relative"
        ):  # the scale of a sum of three terms is arbitrary: compare normalized features
            total = total + functional.mse_loss(normalize(out[layer]), normalize(made))
        elif equations == "official":
            total = total + functional.mse_loss(out[layer], made + content[layer])
        else:
            total = total + _norm(out[layer] - made - content[layer])
    return total


def variation_loss(x: Tensor) -> Tensor:
    """Total variation, and a penalty for values outside 0..1."""
    tv = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
    return tv + 10 * (x - x.clamp(0, 1)).square().mean()


@dataclass(frozen=True)
class MovedFrame:
    """A moved copy [N, 3, H, W] of a frame. `flow` leads back to the frame where `valid`."""

    frame: Tensor
    flow: Tensor
    valid: Tensor

    @classmethod
    def affine(cls, images: Tensor, theta: Tensor) -> "MovedFrame":
        """Pictures transformed by affine maps [N, 2, 3] in -1..1 coordinates."""
        h, w = images.shape[-2:]
        grid = functional.affine_grid(theta.to(images), list(images.shape), align_corners=True)
        rest = functional.affine_grid(torch.eye(2, 3).to(images)[None], [1, 1, h, w], align_corners=True)
        size = torch.tensor([w - 1, h - 1]).to(images) / 2
        flow = ((grid - rest) * size).permute(0, 3, 1, 2)
        return cls(warp(images, flow), flow, inside(flow))

    def to(self, device: torch.device) -> "MovedFrame":
        return MovedFrame(self.frame.to(device), self.flow.to(device), self.valid.to(device))


def temporal_loss(out: Tensor, moved: Tensor, motion: MovedFrame) -> Tensor:
    """The distance between the stylized moved frame and the moved stylized frame."""
    h, w = out.shape[-2:]
    x, y = targets(
        motion.flow
    )  # `warp` tests whether the flow is in whole pixels, which a CUDA graph cannot contain
    grid = torch.stack([x * (2 / (w - 1)) - 1, y * (2 / (h - 1)) - 1], dim=-1)
    there = functional.grid_sample(out, grid, padding_mode="border", align_corners=True)
    valid = motion.valid[:, None].to(out.dtype)
    return ((moved - there).square() * valid).sum() / (3 * valid.sum()).clamp_min(1)
