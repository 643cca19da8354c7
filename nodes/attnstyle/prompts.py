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


def _clipstyler() -> tuple[str, ...]:
    """CLIPstyler's 79 templates: CLIP's for ImageNet. Most of them exist with "a" and with "the"."""
    photos = "bad, low resolution, cropped, bright, dark, close-up, black and white, pixelated, blurry, good"
    kinds = [f"a {kind} photo" for kind in f"{photos}, jpeg corrupted".split(", ")]
    kinds += [f"a {kind}" for kind in ("sculpture", "rendering", "tattoo", "drawing", "painting", "photo")]
    kinds += ["a doodle", "a sketch", "a rendition", "graffiti", "art", "itap"]
    things = ["hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small"]
    made = ["embroidered", "plastic", "origami", "toy", "cartoon", "plushie"]
    found = ["a photo of my {}.", "itap of my {}.", "a photo of one {}."]
    for article in ("a", "the"):
        found += [f"{kind} of {article} {{}}." for kind in kinds]
        found += [f"a photo of {article} {thing} {{}}." for thing in things]
        found += [f"{article} {how} {{}}." for how in made] + [f"{article} {{}} in a video game."]
    return tuple(found)


OURS, CLIPSTYLER = "24 templates", "CLIPstyler (79 templates)"
SETS = {OURS: TEMPLATES, CLIPSTYLER: _clipstyler()}


def wordings(text: str, templates: str = OURS) -> list[str]:
    """The text in every template. An empty text is rejected."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("the text is empty: describe in a few words how the picture should look")
    if templates not in SETS:
        raise ValueError(f"the templates {templates!r} are unknown: choose one of {', '.join(SETS)}")
    return [template.replace("{}", text) for template in SETS[templates]]


def embed(text: Callable[[list[str]], Tensor], prompt: str, templates: str = OURS) -> Tensor:
    """The unit mean [D] of the embeddings of all wordings of a prompt; `text` is a judge's text tower."""
    return normalize(text(wordings(prompt, templates)).mean(0), dim=-1)
