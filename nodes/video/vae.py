"""A VAE over a clip: frames encoded in a stream, latents decoded as they are saved."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from .. import host
from . import chain
from .reel import Clip, LazyVideo, Operation, Window, operation


def encode(video: LazyVideo, vae: Any) -> Tensor:
    """Latents [N, C, h, w] of all frames; only a few frames are in memory at a time."""
    parts = []
    with host.progress(video.frame_count, "Encoding frames") as bar:
        for frames in video.chunks(_per_call(video.width, video.height)):
            latent = vae.encode(frames)
            if latent.ndim != 4:
                raise ValueError(
                    "this VAE joins frames in time (a video model's): use core VAE Encode instead"
                )
            parts.append(latent.to("cpu"))
            bar.step(len(frames), frames[-1])
    return torch.cat(parts)


def decode(latents: Tensor, vae: Any, fps: float, like: LazyVideo | None) -> LazyVideo:
    """A lazy clip whose frames are decoded when somebody wants them."""
    if latents.ndim != 4:
        raise ValueError(f"latents of frames are [N, C, h, w], these are {tuple(latents.shape)}")
    rate = chain.Fraction(fps).limit_denominator(100_000) if like is None else like.fps
    source = chain.LatentSource(latents.detach().to("cpu"), rate, None if like is None else like.node)
    params = {"scale": _scale(vae)}
    return LazyVideo(source).then(
        "video.vae_decode", params, objects={f"vae:{_mark(vae)}": vae}, node="Decode Video (VAE)"
    )


def _per_call(width: int, height: int) -> int:
    return max(1, min(8, (1024 * 1024 * 2) // (width * height)))


def _scale(vae: Any) -> int:
    try:
        return int(vae.spacial_compression_decode())
    except (AttributeError, TypeError):
        return 8


def _mark(vae: Any) -> str:
    """A name for a VAE's content, so that what was decoded with another one is never reused."""
    digest = hashlib.sha256()
    for key, weight in sorted(vae.get_sd().items()):
        digest.update(key.encode())
        digest.update(weight.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@operation("video.vae_decode")
class Decode(Operation):
    """Latents [n, h, w, C] to frames."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        return width * self.params["scale"], height * self.params["scale"]

    def start(self, clip: Clip) -> None:
        (self._vae,) = self.objects.values()

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        images = self._vae.decode(frames.permute(0, 3, 1, 2).contiguous())
        return images.reshape(-1, *images.shape[-3:])[..., :3].clamp(0, 1)
