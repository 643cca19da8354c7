"""A VAE over a clip: frames are encoded in a stream, latents are decoded as they are saved."""

from dataclasses import field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .. import host
from .lazy_video import LazyVideo
from .operation import Operation, Worker, digest
from .sources import LatentSource


def encode(video: LazyVideo, vae: Any) -> Tensor:
    """Latents [N, C, h, w] of all frames; only a few frames are in memory at a time."""
    parts = []
    with host.progress(video.frame_count, "Encoding frames") as bar:
        for frames in video.chunks(_per_call(video.width, video.height)):
            latent = vae.encode(frames)
            if latent.ndim != 4:
                raise ValueError(
                    "this VAE belongs to a video model and compresses time: use core VAE Encode instead"
                )
            parts.append(latent.to("cpu"))
            bar.step(len(frames), frames[-1])
    return torch.cat(parts)


def decode(latents: Tensor, vae: Any, fps: float, like: LazyVideo | None) -> LazyVideo:
    """A lazy clip whose frames are decoded when they are needed."""
    if latents.ndim != 4:
        raise ValueError(f"latents of frames are [N, C, h, w], these are {tuple(latents.shape)}")
    rate = Fraction(fps).limit_denominator(100_000) if like is None else like.fps
    source = LatentSource(latents.detach().to("cpu"), rate, None if like is None else like.operation)
    weights = digest(vae.get_sd())
    return LazyVideo(source).then(DecodeLatents, vae, weights, _scale(vae), node="Decode Video (VAE)")


def _per_call(width: int, height: int) -> int:
    return max(1, min(8, (1024 * 1024 * 2) // (width * height)))


def _scale(vae: Any) -> int:
    try:
        return int(vae.spacial_compression_decode())
    except (AttributeError, TypeError):
        return 8


class DecodeLatents(Operation, name="video.vae_decode"):
    """Latents [n, h, w, C] to frames."""

    source: Operation
    vae: Any = field(compare=False)
    weights: str  # their hash, so that frames that another VAE decoded are not reused
    scale: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        return width * self.scale, height * self.scale

    def start(self) -> Worker:
        worker = Worker(self._decode)
        worker.batch = _per_call(self.clip.width, self.clip.height)
        return worker

    def _decode(self, latents: Tensor) -> Tensor:
        images = self.vae.decode(latents.permute(0, 3, 1, 2).contiguous())
        return images.reshape(-1, *images.shape[-3:])[..., :3].clamp(0, 1)
