"""Prompt templates: the target is the mean embedding of a style text in many templates."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import normalize

TEMPLATES = (
    "{}",
    "{} style",
    "a picture in the style of {}",
    "a painting in the style of {}",
    "a drawing in the style of {}",
    "artwork: {}",
    "a scene rendered as {}",
    "an image made of {}",
    "a canvas of {}",
    "the look of {}",
    "the texture of {}",
    "the colors of {}",
    "a detail of {}",
    "a wide view of {}",
    "a close view of {}",
    "many kinds of {}",
    "a frame of a film that looks like {}",
    "a print of {}",
    "a poster of {}",
    "a sketch of {}",
    "a clear view of {}",
    "a dim view of {}",
    "a small picture of {}",
    "a large picture of {}",
)


def wordings(text: str) -> list[str]:
    """The text in every template. An empty text is rejected."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("the text is empty: describe in a few words how the picture should look")
    return [template.replace("{}", text) for template in TEMPLATES]


def embed(text: Callable[[list[str]], Tensor], prompt: str) -> Tensor:
    """The unit mean [D] of the embeddings of all wordings of a prompt; `text` is a judge's text tower."""
    return normalize(text(wordings(prompt)).mean(0), dim=-1)
