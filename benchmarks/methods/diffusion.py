"""Diffusion methods on the small private denoiser (weights=FOLDER of lab/tiny_denoiser.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from reelbrush.lab import tiny_denoiser
from reelbrush.lab.lora_style import merged
from reelbrush.lab.tiny_words import WORDS, described, encode_text
from reelbrush.nodes import host
from reelbrush.nodes.diffusion.inversion.inversion import psnr
from reelbrush.nodes.diffusion.lora import file as lora_file
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.nodes_inject import ApplyStyleLoRA, Inject
from reelbrush.nodes.diffusion.nodes_style import MatchLatent
from reelbrush.nodes.diffusion.nodes_trajectory import Invert
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import pick_layers, sigma_range
from reelbrush.nodes.diffusion.temporal import TemporalPatch
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.estimate import estimate
from reelbrush.nodes.flow.report import Report, measure_with_flow
from reelbrush.tests.diffusion import attention_tools as tools
from reelbrush.tests.diffusion import tiny

POINT = 8  # pixels of a latent pixel

_model = cache(tiny_denoiser.load)
_vae = cache(tiny_denoiser.load_vae)
_lora = cache(lambda path: lora_file.load(Path(path)))


@contextmanager
def _sampling() -> Iterator[None]:
    """Outside ComfyUI, `host.sample` is the tests' sampling loop."""
    if host.inside_comfyui():
        yield
        return
    with patch.object(host, "sample", tiny.sample):
        yield


@cache  # tensors are equal only to themselves
def _inverted(weights: str, images: Tensor, steps: int, refine: int) -> tuple:
    """DDIM Inversion under the empty text: noise, trajectory, noise levels."""
    latent = {"samples": _vae(weights).encode(images)}
    settings = (steps, "next timestep", refine, 0, 8)
    with _sampling():
        return Invert().invert(_model(weights), encode_text(""), latent, *settings)


def _drawn(weights: str, model: Any, noise: Tensor, sigmas: Tensor, prompt: str = "", cfg: float = 1.0):
    """The latents that Euler samples, with guidance if there is a prompt."""
    texts = [encode_text(text) for text in (prompt, "")]
    with _sampling():
        return host.sample(model, tiny.euler, noise, sigmas, *texts, cfg=cfg if prompt else 1.0)


def zstar(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    mix: str = "reweight",
    style_scale: float = 1.2,
    layers: str = "10-15",
    start: float = 0.167,
    steps: int = 30,
    refine: int = 1,
) -> Tensor:
    """Z* (eq. 12; mix=swap is eq. 7, add is eq. 8, none is the reconstruction without a style)."""
    noise, _, sigmas = _inverted(weights, content, steps, refine)
    model = _model(weights)
    if mix != "none":
        other = _inverted(weights, style, steps, refine)[1]
        settings = {"style_scale": style_scale, "layers": layers, "start_percent": start, "mix": mix}
        model = tools.zstar(model, other, **settings)
    return _vae(weights).decode(_drawn(weights, model, noise["samples"], sigmas))


def reference(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    mode: str = "concat",
    layers: str = "10-15",
    match: float = 0.0,
    steps: int = 30,
    refine: int = 1,
) -> Tensor:
    """Reference Attention (mode=style-id with match=1 is StyleID)."""
    noise, path, sigmas = _inverted(weights, content, steps, refine)
    other = _inverted(weights, style, steps, refine)
    model = tools.reference(_model(weights), other[1], mode, layers=layers, content=path)
    noise = MatchLatent().match(noise, other[0], match)[0] if match else noise
    return _vae(weights).decode(_drawn(weights, model, noise["samples"], sigmas))


def inject(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    lora: str = "",
    strength: float = 1.0,
    what: str = "features+self+cross",
    feature_end: float = 0.6,
    attention_end: float = 0.5,
    blocks: str = "4-11",
    prompt: str = "",
    cfg: float = 3.0,
    steps: int = 50,
    refine: int = 1,
) -> Tensor:
    """DiffStyler (Figs. 6 and 7): injection for a LoRA, a prompt or both. prompt=auto describes the style."""
    noise, path, sigmas = _inverted(weights, content, steps, refine)
    if prompt == "auto":
        fits = described(avg_pool2d(style.movedim(-1, 1), POINT).movedim(1, -1))[0].tolist()
        prompt = " ".join(["painting", *(w for w, fit in zip(WORDS[-len(fits) :], fits, strict=True) if fit)])
    model = _model(weights)
    if lora:
        model = ApplyStyleLoRA().patch(model, _lora(lora), strength)[0]
    ends = {"feature_end": feature_end if "features" in what else 0.0, "attention_end": attention_end}
    kinds = ("self" in what, "cross" in what)
    model = Inject().patch(model, path, blocks, "all", *kinds, blend="replace", **ends)[0]
    return _vae(weights).decode(_drawn(weights, model, noise["samples"], sigmas, prompt, cfg))


def regions(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    loras: str = "",
    outside: str = "base",
    strength: float = 1.0,
    feature_end: float = 0.6,
    attention_end: float = 0.5,
    cfg: float = 3.0,
    steps: int = 50,
    refine: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Two LoRAs (loras=a+b) in moving masks; outside=base is eq. 7, outside=content is eq. 6.

    The numbers are PSNRs outside the masks: to the clip and to the reconstruction, in latents and in pixels
    (the decoder sees neighbours, so pixels beside a mask change where no latent does), and 4 latent pixels
    further outside.
    """
    noise, path, sigmas = _inverted(weights, content, steps, refine)
    count, size = len(content), content.shape[1]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centers = size // 4 + size // 3 * torch.arange(count)[:, None, None] // max(count - 1, 1)
    disc = ((x - centers) ** 2 + (y - size // 3) ** 2 < (size // 5) ** 2).float()
    masks = [disc, (y > size * 3 // 4).float().expand(count, -1, -1)]
    model, text = _model(weights), encode_text("painting")
    for name, mask in zip(loras.split("+"), masks, strict=True):
        more = {"mask": mask, "positive": text, "content": path if outside == "content" else None}
        model = ApplyStyleLoRA().patch(model, _lora(name), strength, **more)[0]
    ends = {"feature_end": feature_end, "attention_end": attention_end}
    model = Inject().patch(model, path, "4-11", "all", True, True, blend="replace", **ends)[0]
    vae, empty = _vae(weights), encode_text("")
    with _sampling():
        latent = host.sample(model, tiny.euler, noise["samples"], sigmas, empty, empty, cfg=cfg)
    shown, numbers = vae.decode(latent), {}
    back = _drawn(weights, _model(weights), noise["samples"], sigmas)
    touched = max_pool2d((masks[0] + masks[1])[:, None], POINT)
    for far in (0, 4):
        free = max_pool2d(touched, 2 * far + 1, 1, far) == 0
        points, pixels = free.expand_as(latent), interpolate(free.float(), scale_factor=POINT)[:, 0] > 0
        for name, other in (("reconstruction", back), ("clip", vae.encode(content))):
            numbers[f"{name} {far} latents"] = psnr(latent[points], other[points])
            numbers[f"{name} {far} pixels"] = psnr(shown[pixels], vae.decode(other)[pixels])
    return shown, numbers


def sample(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    lora: str = "",
    strength: float = 1.0,
    noised: float = 0.6,
    prompt: str = "painting",
    cfg: float = 1.0,
    steps: int = 25,
    seed: int = 0,
) -> Tensor:
    """Photographs noised to a share of the levels and redrawn, also with a LoRA; noised=1 is pure noise."""
    network = merged(_model(weights).model.diffusion_model, _lora(lora) if lora else None, strength)
    latent, g = _vae(weights).encode(content), torch.Generator().manual_seed(seed)
    noise = torch.randn(latent.shape, generator=g)
    clean = torch.zeros_like(latent) if noised >= 1 else latent
    text, top = [prompt] * len(latent), round(999 * noised)
    drawn = tiny_denoiser.draw(network, noise, text, steps, cfg=cfg, latent=clean, top=top)
    return _vae(weights).decode(drawn)


@cache
def _painted(
    weights: str,
    content: Tensor,
    style: Tensor,
    steps: int,
    layers: str,
    anchors: str,
    per_call: int,
    forget: bool,
) -> Tensor:
    """A clip painted with Z* and temporal attention."""
    noise, _, sigmas = _inverted(weights, content, steps, 0)
    other = _inverted(weights, style, steps, 0)[1]
    model = tools.zstar(_model(weights), other, layers=layers, start_percent=0.167).clone()
    if anchors != "none":
        temporal = TemporalPatch(pick_layers(model, layers), sigma_range(model, 0.0, 1.0), anchors)
        temporal.attach(model)

        def restart(call: unet.UNetCall) -> Tensor:
            temporal._restart()
            return call.run()

        if forget:
            unet.attach(model, "forget", restart, rank=7)
    if per_call:
        model = FramesPerCall().patch(model, per_call)[0]
    return _vae(weights).decode(_drawn(weights, model, noise["samples"], sigmas))


def temporal(
    content: Tensor,
    style: Tensor,
    weights: str = "",
    anchors: str = "first + previous",
    per_call: int = 4,
    forget: bool = False,
    layers: str = "10-15",
    steps: int = 10,
) -> tuple[Tensor, dict[str, float]]:
    """Z* on a clip that is split over calls (--clip): is there a seam? forget=true drops anchors per call.

    The numbers are medians of the flow error of neighbouring frames, across calls / inside them: raw, and
    with each pair divided by its error in the content, or in the same clip painted in one call. The last one
    isolates the border.
    """
    shown = _painted(weights, content, style, steps, layers, anchors, per_call, forget)
    flow = estimate(interpolate(content.movedim(-1, 1), scale_factor=4.0).movedim(1, -1))
    flow = flow.at(*content.shape[1:3])

    def errors(frames: Tensor) -> Tensor:
        report = measure_with_flow(frames, flow, Report(convention()))
        return torch.tensor([pair.error for pair in report.pairs])

    error = errors(shown)
    border = (torch.arange(len(error)) + 1) % max(per_call, 1) == 0 if per_call else torch.zeros(0)
    if not 0 < border.sum() < len(error):
        return shown, {}
    whole = errors(_painted(weights, content, style, steps, layers, "first + previous", 0, False))
    ratios = {"raw": error, "by content": error / errors(content), "by one call": error / whole}
    return shown, {k: float(e[border].median() / e[~border].median()) for k, e in ratios.items()}
