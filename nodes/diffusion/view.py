"""Pictures of attention: features by colour, where a point attends, how much attention goes to the style.

    features PCA        the three leading principal components of a decoder block's features as red, green
                        and blue, over all frames together (DiffStyler, Fig. 3)
    self-attention      where the token at a point attends, mean over the heads; with Temporal Attention on
                        the model, also where it attends in each anchor
    style share         the share of each token's attention to the style in Z*'s one softmax (eq. 12)
    content similarity  cosine between the outputs of Z*'s attention and of self-attention, for eqs. 7, 8 and
                        12 side by side; low values mean that content is lost (the paper's heat map)

All but the first show what a sampler sees with the same MODEL: its patches are active in earlier layers, and
anchors are among a frame's own keys. Then a style counts as often as a frame's own content, as in `beside`.

The N x N weights are never stored: shares are computed from log-sum-exp, a few queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from ...kernels.attention import attend, by_queries, weights
from ...kernels.reweight import reweighted_attention
from .. import host
from ..common.plot import figure_to_image, new_figure
from .inversion.trajectory import Trajectory
from .patching import unet
from .patching.hooks import hook_output
from .patching.layers import AttentionLayer, DecoderBlock, attention_layers, decoder_blocks, numbered
from .patching.rows import FRAMES, fitting
from .patching.unet import AttentionSite, Features, UNetCall

VIEWS = ("features PCA", "self-attention", "style share", "content similarity")


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
    `step` is the position in the sampling, 0 to 1; `point` is x, y in 0 to 1."""
    if what not in VIEWS:
        raise ValueError(f"what is {what!r}: choose {', '.join(VIEWS)}")
    needs_style = what in ("style share", "content similarity")
    if needs_style and style is None:
        raise ValueError(f"{what} needs a style: connect `style`, a DDIM Inversion of the style picture")
    sigma = trajectory.reached(host.percent_to_sigma(model, step))
    if what == "features PCA":
        block = numbered(decoder_blocks(model), number, "decoder block")
        height, width = trajectory.latents.shape[-2:]
        colours = principal(_block_features(model, trajectory, block, sigma))
        return interpolate(colours, size=(height * 8, width * 8), mode="nearest").movedim(1, -1)
    layer = numbered(attention_layers(model), number, "attention layer")
    pictures = []
    with host.progress(trajectory.frames, "Reading attention") as bar:
        shown = style if needs_style else None
        for titled in attention_maps(model, trajectory, shown, what, layer, sigma, point, scale):
            pictures.append(_drawn(titled, what, number))
            bar.step()
    return torch.cat(pictures)


def attention_maps(
    model: Any,
    trajectory: Trajectory,
    style: Trajectory | None,
    what: str,
    layer: AttentionLayer,
    sigma: float,
    point: tuple[float, float] = (0.5, 0.5),
    scale: float = 1.2,
) -> Iterator[dict[str, Tensor]]:
    """Maps [h, w] of each frame, by title."""
    model, seen = model.clone(), []

    def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        seen.append((Features(layer, site.size, q, k, v), site.copies))
        raise unet.StopForward

    def patch(call: UNetCall) -> Tensor:
        return call.run(options=unet.with_attention(call.options, [layer], attend))

    unet.attach(model, "view", patch, rank=7)  # inside Z* and references, outside temporal attention
    with host.loaded(model) as base:
        options = host.transformer_options(model, torch.tensor([sigma]))
        latents = trajectory.at(sigma).to(model.load_device)
        of_style = None if style is None else _of_style(base, style, layer, sigma, latents, options)
        for frames in torch.arange(len(latents)).split(fitting(base, len(latents), 1, latents)):
            host.check_interrupt()
            z, options[FRAMES] = latents[frames], frames.tolist()
            conditions = host.conditions(base, trajectory.conditioning, z, sigma)
            with suppress(unet.StopForward), torch.no_grad():
                host.evaluate(base, z, sigma, conditions, options)
            if not seen:
                raise unet.unreadable()
            rows, copies = seen.pop()
            for i in range(len(rows.q) - len(z), len(rows.q)):  # Z*'s style rows come first
                yield maps(rows.map(lambda t, i=i: t[i : i + 1]), of_style, what, point, scale, copies)


def _of_style(
    base: Any, style: Trajectory, layer: AttentionLayer, sigma: float, like: Tensor, options: dict
) -> Features:
    """Keys and values of all style pictures, concatenated."""
    latents = style.at(sigma).to(like)
    conditions = host.conditions(base, style.conditioning, latents, sigma)
    captured = unet.capture(base, latents, sigma, conditions, [layer], "kv", options=options)
    return captured[layer.number].map(lambda t: t.reshape(1, -1, t.shape[-1]))


def maps(
    f: Features,
    style: Features | None,
    what: str,
    point: tuple[float, float],
    scale: float,
    copies: int = 1,
) -> dict[str, Tensor]:
    """Maps [h, w] of one frame, by title. Its keys have those of `copies` - 1 anchors in front."""
    height, width = f.size
    q, k, v = (f.heads(name).float() for name in "qkv")
    if what == "self-attention":
        x, y = (min(max(int(p * n), 0), n - 1) for p, n in zip(point, (width, height), strict=True))
        at = y * width + x
        row = weights(q[:, :, at : at + 1], k).mean(1)[0, 0, -copies * q.shape[2] :]
        *anchors, own = row.view(copies, height, width)
        return {f"from {x}, {y}": own} | {f"anchor {i}": values for i, values in enumerate(anchors, 1)}
    k_s, v_s = (style.heads(name).float() for name in "kv")
    if what == "style share":
        return {f"λ = {scale:g}": style_share(q, k, k_s, scale, copies).view(height, width)}
    own = attend(q, k, v)
    only = attend(q, k_s, v_s)
    as_often = k_s.new_full((k_s.shape[2],), math.log(copies))
    both = reweighted_attention(q, (k, v), (k_s, v_s), scale=scale, bias=as_often)
    mixed = {
        "swap (eq. 7)": only,
        "add (eq. 8), 0.5": (own + only) / 2,
        f"reweight (eq. 12), λ = {scale:g}": both,
    }
    join = lambda t: t.transpose(1, 2).flatten(2)[0]  # noqa: E731
    return {
        name: cosine_similarity(join(out), join(own), dim=-1).view(height, width)
        for name, out in mixed.items()
    }


def style_share(q: Tensor, k: Tensor, k_style: Tensor, scale: float, copies: int = 1) -> Tensor:
    """Share of eq. 12's softmax that goes to the style, per query, mean over heads [N]; rows of one frame.
    The style counts `copies` times."""

    def share(some: Tensor) -> Tensor:
        some = some * q.shape[-1] ** -0.5
        to_style = (scale * some @ k_style.transpose(-1, -2)).logsumexp(-1) + math.log(copies)
        to_own = (some @ k.transpose(-1, -2)).logsumexp(-1)
        return (to_style - to_own).sigmoid()

    return by_queries(share, q).mean(1)[0]


def _drawn(titled: dict[str, Tensor], what: str, layer: int) -> Tensor:
    figure = new_figure(4.2 * len(titled), 4.0)
    for i, (name, values) in enumerate(titled.items()):
        axes = figure.add_subplot(1, len(titled), i + 1)
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


def _block_features(model: Any, trajectory: Trajectory, block: DecoderBlock, sigma: float) -> Tensor:
    """The output of a decoder block's residual block for every frame, [N, C, h, w], on the CPU."""
    model, outputs = model.clone(), []

    def keep(x: Tensor, out: Tensor) -> Tensor:
        outputs.append(out.detach().float().cpu())
        return out

    hook_output(model, block.path, keep)
    frames = trajectory.at(sigma).to(model.load_device).split(1)
    with host.loaded(model) as base, host.progress(len(frames), "Reading features") as bar, torch.no_grad():
        for latents in frames:
            conditions = host.conditions(base, trajectory.conditioning, latents, sigma)
            options = unet.reading_options(host.transformer_options(model, torch.tensor([sigma])))
            host.evaluate(base, latents, sigma, conditions, options)
            bar.step()
    return torch.cat(outputs)


def principal(features: Tensor) -> Tensor:
    """The three leading principal components over all positions of all frames, [N, 3, h, w] in 0..1."""
    n, c, h, w = features.shape
    flat = features.movedim(1, -1).reshape(-1, c).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    # an eigenvector's sign is arbitrary: make its largest entry positive
    components = flat @ (vectors * largest.sign())
    low, high = (components.quantile(p, dim=0) for p in (0.01, 0.99))
    colours = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colours.view(n, h, w, -1).movedim(-1, 1).float()
