"""VAE decoder tuning (eq. 10): argmin over the decoder's weights of | D(E(x)) - x |, by Adam, on a copy.

The encoder stays: latents made before and after mean the same. The copy is a module of its own with its own
place in the host's memory management, because a VAE saved by the host loses patches.
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
    """A VAE like `vae` whose decoder redraws `images` [N, H, W, 3] better, and the loss before each step."""
    if steps == 0:
        return vae, []
    losses: list[float] = []
    # Weights that were made in the host's inference mode cannot be trained; copies made outside it can.
    with torch.inference_mode(False), torch.enable_grad():
        network = copy.deepcopy(vae.first_stage_model).float().requires_grad_(False)
        decoder = getattr(network, "decoder", None) or getattr(network, "taesd_decoder", None)
        if decoder is None:
            raise ValueError(
                f"{type(network).__name__} has no decoder of its own: give a Stable Diffusion VAE"
            )
        where = vae.patcher.load_device
        patcher = type(vae.patcher)(network, load_device=where, offload_device=vae.patcher.offload_device)
        host.load_model(patcher)
        pictures = vae.process_input(fit(images, vae).clone().movedim(-1, 1)).to(where)
        with torch.no_grad():
            latents = torch.cat([network.encode(p) for p in pictures.split(1)])
        weights = list(decoder.requires_grad_().parameters())
        optimizer = torch.optim.Adam(weights, lr=learning_rate)
        for step in range(steps):
            optimizer.zero_grad()
            loss = 0.0
            for latent, picture in zip(latents.split(1), pictures.split(1), strict=True):
                each = (network.decode(latent) - picture).abs().mean() / len(pictures)
                each.backward()
                loss += float(each.detach())
            if loss != loss:
                raise RuntimeError("the VAE's loss is not a number: lower learning_rate")
            losses.append(loss)
            optimizer.step()
            report(step, loss)
        network.requires_grad_(False).to(vae.vae_dtype)
    return with_network(vae, patcher), losses


def fit(images: Tensor, vae: Any) -> Tensor:
    """The pictures' largest middle part whose sides the VAE's scale divides."""
    scale = int(vae.downscale_ratio)
    height, width = (side // scale * scale for side in images.shape[1:3])
    if not height or not width:
        raise ValueError(
            f"the picture is {images.shape[2]}x{images.shape[1]} and this VAE needs at least {scale}x{scale}"
        )
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width, :3]


def with_network(vae: Any, patcher: Any) -> Any:
    """A VAE of the host's around the network of another patcher, with the precision and patches of `vae`."""
    other = copy.copy(vae)
    other.first_stage_model = patcher.model
    patcher.size = 0  # the host counts it anew: the weights may be of another type than when it was loaded
    other.patcher = patcher.clone()  # a clone keeps its parent, which the host knows as the loaded one
    other.patcher.object_patches = dict(vae.patcher.object_patches)
    return other
