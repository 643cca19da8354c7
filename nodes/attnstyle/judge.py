"""Judges: differentiable scorers of pictures against texts.

A judge with two towers (CLIP, or anything trained like it) embeds texts and pictures in one space. Style
is a direction in it, from the source text to the style text, and a picture is right when its own way, from
the content picture to the stylized one, points there (the directional loss, Gal et al. 2021, CLIPstyler):

    loss(I) = 1 - cos(E(I) - E(I_cont), E_T(style) - E_T(source))          in 0..2, 1: nothing changed

The cosine's denominator is softened, |d| -> sqrt(|d|^2 + eps^2) with eps = 0.01: training starts at the
content picture itself, where the cosine has no gradient that a computer can use.

A judge need not have towers: what a training asks of it is an `Aim` (see diffusion_judge.py).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from .prompts import embed

SOFT = 0.01
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Aim(Protocol):
    """A style text and the content pictures, as one judge sees them."""

    def loss(self, images: Tensor, frame: Tensor) -> Tensor:
        """[M]: how far each picture is from the style; `frame` [M] says which content it was made of."""
        ...

    def doubt(self, images: Tensor) -> Tensor:
        """[M]: -log P(style text | picture) / k among style text, source text and others.

        k is the sharpness with which the judge's scores become probabilities: divided by it, a weight
        means the same with every judge.
        """
        ...

    def layout(self, images: Tensor) -> Tensor:
        """[N, texts, P]: how much each text fits at each place of a picture, places row by row."""
        ...


class Judge(Protocol):
    """Anything that can say how well a text describes a picture [N, 3, H, W] in 0..1, with gradients."""

    size: int  # how many pixels a side it looks at

    def ready(self) -> AbstractContextManager:
        """Hold what gradients need (weights on the device) while many calls are made."""
        ...

    def aim(self, style_text: str, source_text: str, content: Tensor, others: Sequence[str] = ()) -> Aim: ...

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        """[N, T]: the texts' shares, as in zero-shot classification."""
        ...


class EmbeddingJudge:
    """A judge with two towers; a subclass gives `text`, `towers`, and its numbers."""

    size = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    scale = 100.0  # CLIP's logit scale, which its training clips there

    def ready(self) -> AbstractContextManager:
        return nullcontext()

    def text(self, texts: list[str]) -> Tensor:
        """[T, D], unit length; no gradient is asked of it."""
        raise NotImplementedError

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [N, 3, size, size] to embeddings of pictures [N, D] and of patches [N, P, D]."""
        raise NotImplementedError

    def image(self, images: Tensor) -> Tensor:
        """[N, D], unit length."""
        return normalize(self.towers(self.pixels(images))[0], dim=-1)

    def patch_tokens(self, images: Tensor) -> Tensor:
        """[N, P, D], unit length, patches row by row."""
        return normalize(self.towers(self.pixels(images))[1], dim=-1)

    def pixels(self, images: Tensor) -> Tensor:
        """The whole picture, squashed to the judge's square (a crop would hide its sides)."""
        if images.shape[-2:] != (self.size, self.size):
            images = interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def aim(
        self, style_text: str, source_text: str, content: Tensor, others: Sequence[str] = ()
    ) -> "DirectionalAim":
        return DirectionalAim(self, style_text, source_text, content, others)

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        words = torch.stack([embed(self.text, text) for text in texts])
        image = self.image(images)
        return (self.scale * image @ words.to(image).T).softmax(-1)


def directional(image: Tensor, content: Tensor, direction: Tensor) -> Tensor:
    """1 - cos(image - content, direction) [N], softened at image = content; `direction` is a unit vector."""
    moved = image - content
    return 1 - (moved @ direction) / (moved.square().sum(-1) + SOFT**2).sqrt()


class DirectionalAim:
    """The way from the source text to the style text, and where the content pictures stand.

    `others` are more texts that a picture could be taken for: they count in `doubt` alone.
    """

    def __init__(
        self,
        judge: EmbeddingJudge,
        style_text: str,
        source_text: str,
        content: Tensor,
        others: Sequence[str] = (),
    ):
        self.judge = judge
        with torch.no_grad():
            self.content = judge.image(content).clone()
            texts = (style_text, source_text, *others)
            self.choices = torch.stack([embed(judge.text, t) for t in texts]).to(self.content)
        self.words = self.choices[:2]
        way = self.words[0] - self.words[1]
        if way.norm() < 1e-3:
            raise ValueError(
                f"to the judge, the style text {style_text!r} and the source text {source_text!r} mean the "
                "same: describe in source_text what the pictures are, in style_text what they become"
            )
        self.direction = normalize(way, dim=-1)

    def loss(self, images: Tensor, frame: Tensor) -> Tensor:
        return directional(self.judge.image(images), self.content[frame], self.direction)

    def doubt(self, images: Tensor) -> Tensor:
        logits = self.judge.scale * self.judge.image(images) @ self.choices.T
        return -logits.log_softmax(-1)[:, 0] / self.judge.scale

    def layout(self, images: Tensor) -> Tensor:
        return self.words @ self.judge.patch_tokens(images).transpose(-1, -2)
