"""Judges: differentiable scorers of pictures against texts.

A judge with two towers (CLIP, or a network trained like it) embeds texts and pictures in one space. Style is
a direction in it, from the source text to the style text. The loss compares it with the direction from the
content picture to the stylized one (the directional loss, Gal et al. 2021, CLIPstyler):

    loss(I) = 1 - cos(E(I) - E(I_cont), E_T(style) - E_T(source))          in 0..2, 1: nothing changed

The cosine's denominator is softened, |d| -> sqrt(|d|^2 + eps^2) with eps = 0.01, because training starts at
the content picture itself, where the cosine has no useful gradient.

A judge without towers is possible: training only uses its `Aim` (see diffusion_judge.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from .prompts import OURS, embed

SOFT = 0.01
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Aim(Protocol):
    """A style text and content pictures, prepared by one judge."""

    def sharing(self, images: Tensor) -> AbstractContextManager:
        """In the block, losses of these very pictures share one pass through the judge."""
        ...

    def loss(self, images: Tensor, frame: Tensor) -> Tensor:
        """[M]: each picture's distance from the style; `frame` [M] is the number of its content picture."""
        ...

    def doubt(self, images: Tensor) -> Tensor:
        """[M]: -log P(style text | picture) / k, where P compares style text, source text and other texts.

        k is the factor with which the judge's scores become probabilities. Dividing by it makes a loss
        weight mean the same with every judge.
        """
        ...

    def layout(self, images: Tensor) -> Tensor:
        """[N, texts, P]: how well each text fits each patch of a picture, patches row by row."""
        ...


class Judge(Protocol):
    """Scores how well a text describes a picture [N, 3, H, W] in 0..1, with gradients."""

    size: int  # side of its input in pixels

    def ready(self) -> AbstractContextManager:
        """Keep the weights on the device, ready for gradients, during many calls."""
        ...

    def aim(
        self,
        style_text: str,
        source_text: str,
        content: Tensor,
        others: Sequence[str] = (),
        templates: str = OURS,
    ) -> Aim: ...

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        """[N, T]: the texts' shares, as in zero-shot classification."""
        ...


class EmbeddingJudge:
    """A judge with two towers. A subclass defines `text`, `towers` and its constants."""

    size = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    scale = 100.0  # CLIP's logit scale, which its training clips there

    def ready(self) -> AbstractContextManager:
        return nullcontext()

    def text(self, texts: list[str]) -> Tensor:
        """[T, D], unit length; without gradients."""
        raise NotImplementedError

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [N, 3, size, size] to embeddings of pictures [N, D] and of patches [N, P, D]."""
        raise NotImplementedError

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of pictures [N, D] and of their patches, row by row [N, P, D]."""
        whole, patches = self.towers(self.pixels(images))
        return normalize(whole, dim=-1), normalize(patches, dim=-1)

    def pixels(self, images: Tensor) -> Tensor:
        """The whole picture, resized to the judge's square (a crop would lose its sides)."""
        if images.shape[-2:] != (self.size, self.size):
            images = interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def aim(
        self,
        style_text: str,
        source_text: str,
        content: Tensor,
        others: Sequence[str] = (),
        templates: str = OURS,
    ) -> "DirectionalAim":
        texts = [embed(self.text, text, templates) for text in (style_text, source_text, *others)]
        if (texts[0] - texts[1]).norm() < 1e-3:
            raise ValueError(
                f"the judge cannot tell the style text {style_text!r} from the source text {source_text!r}: "
                "describe the pictures in source_text, and the wanted style in style_text"
            )
        return DirectionalAim(self, torch.stack(texts), content)

    def probability(self, images: Tensor, texts: list[str]) -> Tensor:
        words = torch.stack([embed(self.text, text) for text in texts])
        image, _ = self.see(images)
        return (self.scale * image @ words.to(image).T).softmax(-1)


def directional(image: Tensor, content: Tensor, direction: Tensor) -> Tensor:
    """1 - cos(image - content, direction) [N], softened at image = content; `direction` is a unit vector."""
    moved = image - content
    return 1 - (moved @ direction) / (moved.square().sum(-1) + SOFT**2).sqrt()


class DirectionalAim:
    """The direction from the source text to the style text, and the embeddings of the content pictures.

    `texts` [T, D] are the style text, the source text, and more classes for `doubt`.
    """

    def __init__(self, judge: EmbeddingJudge, texts: Tensor, content: Tensor):
        self.judge = judge
        with torch.no_grad():
            self.content = judge.see(content)[0].clone()
        self.choices = texts.to(self.content)
        self.words = self.choices[:2]
        self.direction = normalize(self.words[0] - self.words[1], dim=-1)
        self._shared: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @contextmanager
    def sharing(self, images: Tensor) -> Iterator[None]:
        self._shared = images, self.judge.see(images)
        try:
            yield
        finally:
            self._shared = None

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        known = self._shared is not None and self._shared[0] is images
        return self._shared[1] if known else self.judge.see(images)

    def loss(self, images: Tensor, frame: Tensor) -> Tensor:
        return directional(self._see(images)[0], self.content[frame], self.direction)

    def doubt(self, images: Tensor) -> Tensor:
        logits = self.judge.scale * self._see(images)[0] @ self.choices.T
        return -logits.log_softmax(-1)[:, 0] / self.judge.scale

    def layout(self, images: Tensor) -> Tensor:
        return self.words @ self._see(images)[1].transpose(-1, -2)
