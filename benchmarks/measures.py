"""How far pictures and clips are from a style and from their content. Lower is better."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, unfold

from reelbrush.nodes.attnstyle.losses import local_variance
from reelbrush.nodes.common.perceptual import Perceptual
from reelbrush.nodes.stya2k.losses import content_loss, moments_loss

PROJECTIONS, SCALES, PATCH, STROKE = 128, 3, 5, 9


def distances(judge: Perceptual | None, out: Tensor, content: Tensor, style: Tensor) -> dict[str, float]:
    """The means over pictures [N, h, w, 3]; those of features only with a judge (SqueezeNet)."""
    colour = sum(colour_distance(x, style[0]) for x in out) / len(out)
    values = {"colour": colour, "layout": layout_distance(out, content), "1-SSIM": 1 - ssim(out, content)}
    if judge is None:
        return values
    x, c, s = (planes(t, max(128, t.shape[1])) for t in (out, content, style))
    fx, fc, fs = (judge(t) for t in (x, c, s))
    values["style"] = float(moments_loss(fx, fs, judge.style))
    values["content"] = float(content_loss(fx, fc, judge.content))
    grams = [relative(gram(fx[name]), gram(fs[name])) for name in judge.gram]
    values["gram"] = sum(grams) / len(grams)
    deep = [relative(fx[name], fc[name]) for name in judge.content]
    values["features"] = sum(deep) / len(deep)
    values["swd"] = 255 * sliced(x, s, PATCH)
    grey = [t.mean(1, keepdim=True) for t in (x, s)]
    flat = [torch.stack([g / g.std().clamp_min(1e-3) for g in t]) for t in grey]
    values["strokes"] = 100 * sliced(*flat, STROKE)
    return values


def planes(x: Tensor, side: int = 0) -> Tensor:
    """[N, h, w, 3] as [N, 3, h, w], enlarged to `side` where that is larger."""
    x = x.movedim(-1, 1)
    if not side or x.shape[-2] >= side:
        return x.contiguous()
    return interpolate(x, size=side, mode="bicubic").clamp(0, 1)


def gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.mT / flat.shape[-1]


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).mean())


def sliced(pictures: Tensor, style: Tensor, patch: int) -> float:
    """Sliced Wasserstein distance of patches to the style's, the mean over scales and pictures."""
    total = 0.0
    for scale in range(SCALES):
        wanted = projected(style, patch, scale)
        for x in pictures:
            sides = [projected(x[None], patch, scale), wanted]
            n = min(s.shape[1] for s in sides)
            sides = [s[:, np.linspace(0, s.shape[1] - 1, n).round().astype(int)] for s in sides]
            total += float(np.abs(sides[0] - sides[1]).mean())
    return total / SCALES / len(pictures)


def projected(x: Tensor, patch: int, scale: int) -> np.ndarray:
    """Some patches of a picture along random directions, each row sorted. Grey patches lose their mean."""
    directions = torch.randn(
        x.shape[1] * patch**2, PROJECTIONS, generator=torch.Generator().manual_seed(scale)
    )
    small = interpolate(x, scale_factor=0.5**scale, mode="area") if scale else x
    patches = unfold(small, patch)[0]
    patches = patches[:, torch.randperm(patches.shape[1], generator=torch.manual_seed(7))[:8192]]
    if x.shape[1] == 1:
        patches = patches - patches.mean(0)
    return np.sort(((directions / directions.norm(dim=0)).T @ patches).numpy(), 1)  # faster than torch.sort


def colour_distance(a: Tensor, b: Tensor) -> float:
    """The distance of the colours of two pictures, wherever they are in the picture."""
    a, b = (x.reshape(-1, 3).sort(dim=0).values for x in (a, b))
    if len(a) != len(b):
        a = a[torch.linspace(0, len(a) - 1, len(b)).round().long()]
    return float((a - b).abs().mean())


def layout_distance(a: Tensor, b: Tensor) -> float:
    """The distance of edges: |gradients| of the luminance, scaled to a mean of 1 in each clip."""

    def edges(x: Tensor) -> Tensor:
        y = x.mean(dim=-1)
        e = y.diff(dim=-1)[..., 1:, :].abs() + y.diff(dim=-2)[..., 1:].abs()
        return e / e.mean().clamp(min=1e-6)

    return float((edges(a) - edges(b)).abs().mean())


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of the lumas over 7x7 windows."""
    a, b = (x.mean(-1)[:, None] for x in (a, b))
    mean: Callable[[Tensor], Tensor] = lambda x: avg_pool2d(x, 7, 1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def contrast(clip: Tensor) -> float:
    """Mean deviation within 7x7 pixels, 0-255."""
    return 255 * float(local_variance(planes(clip)).sqrt().mean())
