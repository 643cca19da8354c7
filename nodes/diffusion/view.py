"""What attention does, as pictures: features by colour, where a point looks, how much goes to the style.

    features PCA        the three leading components of a decoder block's features as red, green and blue,
                        over all frames together (DiffStyler, Fig. 3)
    self-attention      where the token at a point looks, mean over the heads
    style share         how much of each token's attention goes to the style in Z*'s one softmax (eq. 12)
    content similarity  cosine between what a token gets from Z*'s attention and from self-attention, for
                        eqs. 7, 8 and 12 side by side: low means that content is lost (the paper's heat map)

Attention is never held as N x N: shares come from log-sum-exp over a few queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from ...kernels.attention import attend
from ...kernels.reweight import reweighted_attention
from .. import host
from ..common.plot import figure_to_image, new_figure
from . import unet
from .unet import Features

if TYPE_CHECKING:
    from .trajectory import Trajectory

VIEWS = ("features PCA", "self-attention", "style share", "content similarity")
_QUERIES = 1024


def view(
    model: Any,
    trajectory: Trajectory,
    style: Trajectory | None,
    what: str,
    number: int,
    step: float,
    *,
    point: tuple[float, float] = (0.5, 0.5),
    scale: float = 1.2,
) -> Tensor:
    """IMAGE [frames, H, W, 3]. `number` is a decoder block for features PCA, else a self-attention layer;
    `step` is the part of the sampling that is over, 0 to 1; `point` is x, y in 0 to 1."""
    if what not in VIEWS:
        raise ValueError(f"{what!r} is no view of attention: {', '.join(VIEWS)}")
    needs_style = what in ("style share", "content similarity")
    if needs_style and style is None:
        raise ValueError(
            f"{what} compares with a style: connect `style`, a DDIM Inversion of the style picture"
        )
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    lowest, highest = float(trajectory.sigmas.min()), float(trajectory.sigmas.max())
    sigma = min(max(float(to_sigma(step)), lowest), highest)
    if what == "features PCA":
        return _pca_pictures(_block_features(model, trajectory, number, sigma), trajectory)
    every = unet.layers(model)
    if not 0 <= number < len(every):
        raise ValueError(f"there is no attention layer {number} in this model: it has 0..{len(every) - 1}")
    with unet.loaded(model) as base:
        read = _reader(model, base, every[number], sigma)
        pictures = read(style)[0] if needs_style else None
        maps = []
        with host.progress(trajectory.latents.shape[1], "Reading attention") as bar:
            for features in read(trajectory):
                maps.append(_maps(features, pictures, what, point, scale))
                bar.step()
    return torch.cat([_drawn(found, what, number) for found in maps])


def _reader(model: Any, base: Any, layer: unet.Layer, sigma: float) -> Callable[[Trajectory], list[Features]]:
    options = unet.standalone_options(model, torch.tensor([sigma]))

    def read(trajectory: Trajectory) -> list[Features]:
        found = []
        for latents in trajectory.at(sigma).to(model.load_device).split(1):
            host.check_interrupt()
            given = unet.conditions(base, trajectory.conditioning, latents, sigma)
            got = unet.capture(base, latents, sigma, given, [layer], "qkv", options=options)
            found.append(got[layer.number])
        return found

    return read


def _maps(
    f: Features, style: Features | None, what: str, point: tuple[float, float], scale: float
) -> dict[str, Tensor]:
    """Named maps [h, w] of one frame."""
    height, width = f.size
    q, k, v = (f.heads(name).float() for name in "qkv")
    if what == "self-attention":
        x, y = (min(int(p * n), n - 1) for p, n in zip(point, (width, height), strict=True))
        at = y * width + x
        weights = (q[:, :, at : at + 1] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return {f"from {x}, {y}": weights.mean(1)[0, 0].view(height, width)}
    k_s, v_s = (style.heads(name).float() for name in "kv")
    if what == "style share":
        return {f"λ = {scale:g}": style_share(q, k, k_s, scale).view(height, width)}
    own = attend(q, k, v)
    only = attend(q, k_s, v_s)
    mixed = {
        "swap (eq. 7)": only,
        "add (eq. 8), 0.5": (own + only) / 2,
        f"reweight (eq. 12), λ = {scale:g}": reweighted_attention(q, (k, v), (k_s, v_s), scale=scale),
    }
    join = lambda t: t.transpose(1, 2).flatten(2)[0]  # noqa: E731
    return {
        name: cosine_similarity(join(out), join(own), dim=-1).view(height, width)
        for name, out in mixed.items()
    }


def style_share(q: Tensor, k: Tensor, k_style: Tensor, scale: float) -> Tensor:
    """Share of eq. 12's softmax that goes to the style, per query, mean over heads [N]; rows of one frame."""
    shares = []
    for part in q.split(_QUERIES, dim=2):
        part = part * q.shape[-1] ** -0.5
        to_style = (scale * part @ k_style.transpose(-1, -2)).logsumexp(-1)
        to_own = (part @ k.transpose(-1, -2)).logsumexp(-1)
        shares.append((to_style - to_own).sigmoid().mean(1))
    return torch.cat(shares, dim=1)[0]


def _drawn(maps: dict[str, Tensor], what: str, layer: int) -> Tensor:
    figure = new_figure(4.2 * len(maps), 4.0)
    for i, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(1, len(maps), i + 1)
        if what == "self-attention":
            image = axes.imshow(values.cpu().numpy(), cmap="viridis")
            axes.set(title=name)
        else:
            low = min(float(values.min()), 0.0)  # a cosine may be negative, a share is not
            image = axes.imshow(values.cpu().numpy(), cmap="viridis", vmin=low, vmax=1)
            axes.set(title=f"{name}; mean {values.mean():.3f}")
        axes.set_axis_off()
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.suptitle(f"{what}, layer {layer}")
    return figure_to_image(figure)


# -- features by colour ----------------------------------------------------------------------------


def _block_features(model: Any, trajectory: Trajectory, number: int, sigma: float) -> Tensor:
    """A decoder block's residual-block output for every frame, [N, C, h, w], on the CPU."""
    every = unet.blocks(model)
    if not 0 <= number < len(every):
        raise ValueError(f"there is no decoder block {number} in this model: it has 0..{len(every) - 1}")
    model, seen = model.clone(), []
    path = f"diffusion_model.{every[number].path}.forward"
    inner = model.get_model_object(path)

    def watch(*args: Any, **kwargs: Any) -> Tensor:
        out = inner(*args, **kwargs)
        seen.append(out.detach().float().cpu())
        return out

    model.add_object_patch(path, watch)
    frames = trajectory.at(sigma).to(model.load_device).split(1)
    with unet.loaded(model) as base, host.progress(len(frames), "Reading features") as bar, torch.no_grad():
        for latents in frames:
            given = unet.conditions(base, trajectory.conditioning, latents, sigma)
            options = unet.reference(unet.standalone_options(model, torch.tensor([sigma])))
            unet.evaluate(base, latents, sigma, given, options)
            bar.step()
    return torch.cat(seen)


def principal(features: Tensor) -> Tensor:
    """The three leading components over all positions of all frames, [N, 3, h, w] in 0..1."""
    n, c, h, w = features.shape
    flat = features.movedim(1, -1).reshape(-1, c).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    parts = flat @ (
        vectors * largest.sign()
    )  # an eigenvector's sign is arbitrary: let it point to its largest
    low, high = (parts.quantile(p, dim=0) for p in (0.01, 0.99))
    parts = ((parts - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return parts.view(n, h, w, -1).movedim(-1, 1).float()


def _pca_pictures(features: Tensor, trajectory: Trajectory) -> Tensor:
    height, width = trajectory.latents.shape[-2:]
    return interpolate(principal(features), size=(height * 8, width * 8), mode="nearest").movedim(1, -1)
