"""A VAE over a clip: frames are encoded in a stream, latents are decoded as they are saved."""

from collections.abc import Iterator
from dataclasses import field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import host
from . import codec
from .batch import Batch, Stream
from .lazy_video import LazyVideo, running_node
from .operation import Operation, digest
from .run import errors_named


def encode(video: LazyVideo, vae: Any) -> Tensor:
    """Latents [N, C, h, w] of all frames; only a few frames are in memory at a time."""
    parts = []
    with host.progress(video.frame_count, "Encoding frames") as bar:
        for frames in video.chunks(_per_call(video.width, video.height)):
            latent = vae.encode(frames)
            if latent.ndim != 4:
                raise ValueError("a video model's VAE compresses time: use core VAE Encode instead")
            parts.append(latent.to("cpu"))
            bar.step(len(frames), frames[-1])
    return torch.cat(parts)


def decode(latents: Tensor, vae: Any, fps: float, like: LazyVideo | None) -> LazyVideo:
    """A lazy clip whose frames are decoded when they are needed."""
    if latents.ndim != 4:
        raise ValueError(f"latents of frames are [N, C, h, w], these are {tuple(latents.shape)}")
    sound_from = None if like is None else like.operation
    rate = Fraction(fps).limit_denominator(100_000) if like is None else like.fps
    scale = int(getattr(vae, "spacial_compression_decode", lambda: 8)())
    fields = (latents.detach().to("cpu"), vae, digest(vae.get_sd()), scale, rate, sound_from)
    return LazyVideo(DecodeLatents(*fields, label=running_node("Decode Video (VAE)")))


def fitted(video: LazyVideo, vae: Any) -> LazyVideo:
    """The clip with sides that a diffusion model can take: multiples of the pixels that the VAE makes one of,
    and of 16 at least for a video model."""
    multiple = int(getattr(vae, "spacial_compression_encode", lambda: 8)())
    multiple = max(multiple, 16) if getattr(vae, "latent_dim", 2) == 3 else multiple
    return video.resize(*(max(multiple, round(s / multiple) * multiple) for s in video.get_dimensions()))


def _per_call(width: int, height: int) -> int:
    return max(1, min(8, (1024 * 1024 * 2) // (width * height)))


class DecodeLatents(Operation, name="video.vae_decode"):
    """The frames of latents [N, C, h, w]."""

    latents: Tensor
    vae: Any = field(compare=False)
    weights: str  # their hash, so that frames that another VAE decoded are not reused
    scale: int
    fps: Fraction
    sound_from: Operation | None = field(default=None, compare=False)

    @cached_property
    def clip(self) -> codec.VideoInfo:
        n, _, h, w = self.latents.shape
        return codec.VideoInfo(w * self.scale, h * self.scale, self.fps, n, True)

    def frames(self, inputs: list[Stream], start: int, batch: int) -> Iterator[Batch]:
        for part in self.latents[start:].split(_per_call(self.clip.width, self.clip.height)):
            with errors_named(self), torch.inference_mode():
                images = self.vae.decode(part)
            times = tuple((start + i) / self.fps for i in range(len(part)))
            yield Batch(images.reshape(-1, *images.shape[-3:])[..., :3].clamp(0, 1), times)
            start += len(part)
