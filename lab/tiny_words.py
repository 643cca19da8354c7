"""The vocabulary of the small denoiser: text embeddings, and which words describe a picture.

A text is a bag of WORDS. Each word has a fixed random vector; unknown words work, but mean nothing.
"""

import hashlib
from itertools import pairwise

import torch
from torch import Tensor

FAMILIES = {  # the first six characters of the file names of the paintings in each
    "sketch": (
        "01cf59 0637ec 0e6d0c 156c11 298ba9 45c75c 4faa01 598c99 628a61 711384 883d8a b58115 bf0e19 c476e0 "
        "d6e6c7 dedfcc e292ee"
    ),
    "engraving": "16a31b 2624d6 3bd181 262b23",
    "watercolour": "0f1708 4ee67c 585e1a 753fd2 87a35a 98b641 b9e238",
    "cubist": "01862e 065403 22d3b7 3b4cb7 49d75c 5ccf05 745f07 8bb383 92c6c1 d653b9 e8e7db",
    "landscape": (
        "01bbbc 08ae45 408947 4d4cbf 75108f 84182c c4b917 cf7bd4 dd1d1e ff5128 bdb4e1 e11af6 330458"
    ),
    "portrait": "370491 3ac09d 4e65ce 4e745a 5307b9 eb4f26 fe9503 3a3711",
    "fire": "06ba9c",
    "wave": "2e3e00 42f5a6",
    "starry": "8d185b b3a6b1",
    "scream": "3ae9b5 bf9a3f",
    "rain": "3cb23b b192d3",
    "mosaic": "4e3bb5 63b4bf 66acff b267bf",
    "wood": "1d57f5 438818 6e40d9 cd20fa df6bbd",
    "leaves": "8893f3",
    "feathers": "06f859",
    "stripes": "55de63",
}
COLOURS = ("red", "orange", "yellow", "green", "blue")
WORDS = ("photo", "painting", *FAMILIES, "dark", "bright", "grey", *COLOURS)
HUES = torch.tensor([-60.0, 16.0, 44.0, 68.0, 165.0, 290.0])  # degrees between which each colour lies


def encode_text(text: str) -> list:
    """CONDITIONING of a text: one fixed random vector per word; the rest of the 77 tokens is padding."""
    return [[torch.stack([_vector(word) for word in _tokens(text)])[None], {}]]


def _tokens(text: str) -> list[str]:
    words = ["<start>", *text.lower().split()][:77]
    return words + ["<pad>"] * (77 - len(words))


def _vector(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(768, generator=torch.Generator().manual_seed(seed))


def described(colours: Tensor) -> Tensor:
    """Which of "dark", "bright", "grey" and COLOURS fit pictures [N, h, w, 3] in 0..1: bool [N, 8]."""
    red, green, blue = colours.float().unbind(-1)
    light = (0.299 * red + 0.587 * green + 0.114 * blue).mean((1, 2))
    chroma = colours.amax(-1).float() - colours.amin(-1).float()
    angle = torch.rad2deg(torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue))
    angle = torch.where(angle < HUES[0].item(), angle + 360, angle)
    edges = HUES.tolist()
    amounts = [(chroma * ((angle >= low) & (angle < high))).mean((1, 2)) for low, high in pairwise(edges)]
    light_words = [light < 0.33, light > 0.62, chroma.mean((1, 2)) < 0.09]
    return torch.stack([*light_words, *(amount > 0.09 for amount in amounts)], dim=1)


class Texts:
    """The contexts of random subsets of the words that fit each picture."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        vocabulary = ("<start>", "<pad>", *WORDS)
        self.vectors = torch.stack([_vector(w) for w in vocabulary]).to(device, dtype)
        self.rest = torch.ones(76 - len(WORDS), dtype=torch.long, device=device)

    def contexts(self, fits: Tensor, g: torch.Generator) -> Tensor:
        """[N, 77, 768] for bool [N, words]; each word stays with 70 %, a third of the texts is empty."""
        chance = torch.rand(fits.shape, generator=g, device=fits.device)
        some = torch.rand(len(fits), 1, generator=g, device=fits.device) > 0.33
        chosen = fits & (chance < 0.7) & some
        number = torch.arange(2, 2 + len(WORDS), device=fits.device)
        words = torch.where(chosen, number, 1)
        start, rest = torch.zeros_like(words[:, :1]), self.rest.expand(len(fits), -1)
        return self.vectors[torch.cat([start, words, rest], dim=1)]
