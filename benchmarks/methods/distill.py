"""Attention distillation on the small private denoiser (weights=FOLDER of lab/tiny_denoiser.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelbrush.kernels import ddim
from reelbrush.lab import tiny_denoiser
from reelbrush.lab.pictures import square
from reelbrush.lab.tiny_words import encode_text
from reelbrush.nodes.distill import clip as clips
from reelbrush.nodes.distill import features
from reelbrush.nodes.distill import texture as textures
from reelbrush.nodes.distill.expand import ladder, sampling_step
from reelbrush.nodes.distill.guided import seeded
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling, gradient
from reelbrush.nodes.distill.seamless import circular, padded_convolutions, seamless_model
from reelbrush.nodes.distill.vae import tune_decoder
from reelbrush.nodes.flow.estimate import estimate

PROBES = (1, 201, 401, 601, 801)  # timesteps at which losses are compared
Numbers = dict[str, float]

_model = cache(tiny_denoiser.load)
_vae = cache(tiny_denoiser.load_vae)


@contextmanager
def _references(
    weights: str, style: Tensor, content: Any = None, *masks: Tensor, model: Any = None
) -> Iterator:
    """References on the opened model, with gradients."""
    with features.opened(model or _model(weights), encode_text("")) as (_, reader):
        yield References(reader, style, content, *masks, memory=1 << 32)


def _losses(references: References, z: Tensor, weight: float = 0.0, frame: int = 0) -> Tensor:
    """Style and content loss (eq. 5) of one frame [1, C, h, w], the mean over the probed timesteps."""
    recipe = DistillRecipe(content_weight=weight)
    each = [gradient(references, references.style_at(t), z, t, recipe, (frame,))[0] for t in PROBES]
    return torch.stack(each).mean(dim=0)[:, 0]


def optimize(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    content_weight: float = 0.25,
    steps: int = 200,
    learning_rate: float = 0.05,
    noise: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Numbers]:
    """Algorithm 1: style (lambda 0.25) and appearance transfer (0.2), Fig. 11; noise=true is a texture."""
    vae = _vae(weights)
    latent, target = vae.encode(content), vae.encode(style)
    start = seeded(seed)(target) if noise else latent
    with _references(weights, target, None if noise else latent) as references:
        recipe = DistillRecipe(learning_rate, 0.0 if noise else content_weight)
        z = distill(references, start, falling(steps), recipe)
        return vae.decode(z), {"loss": float(_losses(references, z)[0])}


def sampler(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    guidance: str = "adam",
    iterations: int = 3,
    strength: float = 0.05,
    seamless: bool = False,
    steps: int = 50,
    seed: int = 0,
) -> tuple[Tensor, Numbers]:
    """A texture by guided sampling (algorithm 2 without AdaIN), Fig. 12, and seamless tiling.

    guidance: adam (strength is its rate), fixed (strength times the gradient) or none. The numbers of the
    seam: the mean step across the wrap over the mean step inside, of the pixels, and over the mean of the
    lines between latent pixels, which are visible in the decoder's output without a seam too.
    """
    vae = tiny_denoiser.load_vae(weights)
    model, target, noise, pulls = _model(weights), vae.encode(style), seeded(seed), [0.0]
    if seamless:
        model = seamless_model(model, "both")
        for _, conv in padded_convolutions(vae.first_stage_model.taesd_decoder):
            conv._conv_forward = circular(conv, "both")
    recipe = DistillRecipe(strength, 0.0)
    with _references(weights, target, model=model) as references:
        reader, z = references.reader, noise(target)
        conditions = reader.null_conditions(z)
        for t, following in ladder(steps):
            sigma, level = reader.sigma(t), reader.sigma(following)
            z = sampling_step(model, reader.base, z, sigma, level, conditions)
            now = References(reader, ddim.noised(target, noise(target), level), memory=1 << 32)
            if guidance == "adam":
                z = distill(now, z, [following] * iterations, recipe)
            for _ in range(iterations if guidance == "fixed" else 0):
                pull = gradient(now, now.style_at(following), z, following, recipe, (0,))[1]
                pulls.append(float(pull.abs().mean()))
                z = z - strength * pull
        numbers = {"loss": float(_losses(references, z)[0]), "mean |gradient|": max(pulls)}
    shown = vae.decode(z)
    for axis, name in ((1, "vertical"), (2, "horizontal")):
        steps_between = (shown - shown.roll(-1, axis)).abs().mean(dim=[n for n in range(4) if n != axis])
        lines = steps_between[7::8]
        numbers[f"{name} seam"] = float(steps_between[-1] / steps_between[:-1].mean())
        numbers[f"{name} seam, lines"] = float(lines[-1] / lines[:-1].mean())
    return (shown.repeat(1, 2, 2, 1) if seamless else shown), numbers


def texture(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    other: str = "",
    content_weight: float = 0.0,
    steps: int = 200,
    seed: int = 0,
) -> tuple[Tensor, Numbers]:
    """Two textures in painted regions: the style, and the picture `other`, in a disc.

    The numbers are the distances of the regions' mean colours to their own texture and to the other one.
    """
    vae, side = _vae(weights), style.shape[1]
    half = square(Path(other), side) if other else 1 - style
    source = torch.cat([style[:, :, : side // 2], half[:, :, side // 2 :]], dim=2)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    disc = (x**2 + y**2 < 0.5).float()
    painted = [m[None, ..., None].repeat(1, 1, 1, 3) for m in ((x < 0).float(), disc)]
    of_source, of_target, n = textures.read_labels(*painted)
    start = vae.encode(textures.fill(source, of_source, of_target, seed))
    masks = (of_source[None] / n, of_target[None] / n)
    with _references(weights, vae.encode(source), start, *masks) as references:
        z = distill(references, start, falling(steps), DistillRecipe(content_weight=content_weight))
    shown = vae.decode(z)
    means = [shown[0][disc == k].mean(dim=0) for k in (1, 0)]
    wanted = [source[0, :, : side // 2].mean((0, 1)), source[0, :, side // 2 :].mean((0, 1))]
    far = lambda targets: sum(float((m - w).abs().mean()) for m, w in zip(means, targets, strict=True)) / 2  # noqa: E731
    return shown, {"own colour": far(wanted), "other colour": far(wanted[::-1])}


@cache
def _optimized_clip(
    weights: str, content: Tensor, style: Tensor, steps: int, warm: int, weight: float
) -> Tensor:
    vae = _vae(weights)
    latent = vae.encode(content)
    flow = estimate(content) if warm else None
    with _references(weights, vae.encode(style), latent) as references:
        recipe = DistillRecipe(content_weight=weight)
        return clips.stylize(references, latent, recipe, clips.Schedule(steps, warm), flow=flow)


def clip(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    warm_steps: int = 54,
    steps: int = 200,
    content_weight: float = 0.25,
) -> tuple[Tensor, Numbers]:
    """Algorithm 1 on a clip with warm starts; warm_steps=0 is the official loop frame by frame (--clip).

    "total share" is the fall of the loss from the content to the result, as a share of the fall that all
    steps reach, the mean over the frames after the first; "style share" is the same of the style loss.
    """
    vae = _vae(weights)
    latent = vae.encode(content)
    warm, cold = (_optimized_clip(weights, content, style, steps, n, content_weight) for n in (warm_steps, 0))
    shares = []
    with _references(weights, vae.encode(style), latent) as references:
        for frame in range(1, len(latent)):
            one = slice(frame, frame + 1)
            start, carried, alone = (
                _losses(references, z[one], content_weight, frame) for z in (latent, warm, cold)
            )
            totals = torch.tensor([1.0, content_weight], dtype=start.dtype)
            falls = [((start - x) @ totals, (start - x)[0]) for x in (carried, alone)]
            shares.append([float(a / b) for a, b in zip(*falls, strict=True)])
    means = torch.tensor(shares).mean(0).tolist() if shares else [1.0, 1.0]
    return vae.decode(warm), dict(zip(("total share", "style share"), means, strict=True))


def decoder(
    content: Tensor, style: Tensor, weights: str = "", steps: int = 75, learning_rate: float = 1e-4
) -> tuple[Tensor, Numbers]:
    """VAE decoder tuning (eq. 10) on the content, in ComfyUI; steps=0 is the decoder as it was."""
    import comfy.sd
    import comfy.utils

    file = comfy.utils.load_torch_file(str(tiny_denoiser.folder_of(weights) / "vae.safetensors"))
    vae = comfy.sd.VAE(sd=file, dtype=torch.float32)
    tuned = tune_decoder(vae, content, steps=steps, learning_rate=learning_rate)[0]
    shown = tuned.decode(tuned.encode(content))
    return shown, {"L1": float((shown - content).abs().mean())}
