"""VAE decoder tuning (eq. 10): argmin over the decoder's weights of | D(E(x)) - x |, by Adam, on a copy.

The encoder is not changed, so that latents from before and after have the same meaning.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import host


def tune_decoder(
    vae: Any,
    images: Tensor,
    *,
    steps: int = 75,
    learning_rate: float = 1e-4,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Any, list[float]]:
    """A copy of `vae` that reconstructs `images` [N, H, W, 3] better, and the loss before each step."""
    if steps == 0:
        return vae, []
    losses: list[float] = []
    with host.gradients():  # a copy that is made outside inference mode can be trained
        network = copy.deepcopy(vae.first_stage_model).float().requires_grad_(False)
        decoder = getattr(network, "decoder", None) or getattr(network, "taesd_decoder", None)
        if decoder is None:
            raise ValueError(f"{type(network).__name__} has no decoder: connect a Stable Diffusion VAE")
        patcher = host.vae_patcher(vae, network)
        host.load_model(patcher)
        pictures = vae.process_input(fit(images, vae).clone().movedim(-1, 1)).to(patcher.load_device)
        with torch.no_grad():
            latents = torch.cat([network.encode(p) for p in pictures.split(1)])
        optimizer = torch.optim.Adam(list(decoder.requires_grad_().parameters()), lr=learning_rate)
        for step in range(steps):
            optimizer.zero_grad()
            total = 0.0
            for latent, picture in zip(latents.split(1), pictures.split(1), strict=True):
                loss = (network.decode(latent) - picture).abs().mean() / len(pictures)
                loss.backward()
                total += float(loss.detach())
            if total != total:
                raise RuntimeError("the loss of the VAE is not a number: lower learning_rate")
            losses.append(total)
            optimizer.step()
            report(step, total)
        network.requires_grad_(False).to(vae.vae_dtype)
    return host.vae_with_network(vae, patcher), losses


def fit(images: Tensor, vae: Any) -> Tensor:
    """The largest centre of the pictures whose sides are multiples of the VAE's scale."""
    scale = int(vae.downscale_ratio)
    height, width = (side // scale * scale for side in images.shape[1:3])
    if not height or not width:
        raise ValueError(
            f"the picture is {images.shape[2]}x{images.shape[1]} and this VAE needs at least {scale}x{scale}"
        )
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width, :3]
