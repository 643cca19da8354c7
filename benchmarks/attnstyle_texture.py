"""A hand-built judge of textures for AttnStyle's clip benchmark: nothing in it is trained.

A picture is reduced to 64 pixels a side. Its luma, and the luma of half that size, go through Gabor pairs
of four directions (wavelength 4); the log of the energy, relative to `TYPICAL`, is what each of 8x8 places
knows of each direction and size. A word is a direction in that space: more of everything (rough), less of
everything (smooth), more of one direction than of the others (striped, upright). "photo" is a constant
that every picture has.

Unlike a trained judge it cannot be pleased by a color it never met: "striped" needs stripes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, pad

from reelbrush.nodes.attnstyle.judge import EmbeddingJudge

WORDS = ("striped", "upright", "rough", "smooth", "photo")
ANGLES = (90, 0, 45, 135)  # of the wave's way, in degrees: 90 makes lines that lie
WAVE, SIDE, TYPICAL, FLOOR = 4.0, 7, 8e-3, 1e-5


def gabors() -> Tensor:
    """[8, 1, 7, 7]: even and odd waves of each angle under a bell, without mean."""
    y, x = torch.meshgrid(*[torch.arange(SIDE) - SIDE // 2] * 2, indexing="ij")
    bell = torch.exp(-(x**2 + y**2) / (2 * 1.8**2))
    rows = []
    for degrees in ANGLES:
        a = math.radians(degrees)
        phase = (x * math.cos(a) + y * math.sin(a)) * 2 * math.pi / WAVE
        for wave in (phase.cos() * bell, phase.sin() * bell):
            wave = wave - bell * wave.sum() / bell.sum()
            rows.append(wave / wave.norm())
    return torch.stack(rows)[:, None]


class TextureJudge(EmbeddingJudge):
    """Words for textures, read from Gabor energies."""

    size, mean, std, scale = 64, (0.0,) * 3, (1.0,) * 3, 8.0

    def __init__(self) -> None:
        self.filters = gabors()
        one = torch.tensor([[3.0, -1, -1, -1], [-1, 3, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1], [0, 0, 0, 0]])
        rows = torch.cat([one, one, torch.tensor([[0.0, 0, 0, 0, 1]]).T], dim=1)
        self.vectors = normalize(rows, dim=-1)

    def text(self, texts: Sequence[str]) -> Tensor:
        known = [[WORDS.index(w) for w in t.lower().split() if w in WORDS] or [4] for t in texts]
        return normalize(torch.stack([self.vectors[k].mean(0) for k in known]), dim=-1)

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        luma = pixels.mean(1, keepdim=True)
        energies = []
        for x, cell in ((luma, 8), (avg_pool2d(luma, 2), 4)):
            found = conv2d(pad(x, (SIDE // 2,) * 4, mode="reflect"), self.filters)
            energies.append(avg_pool2d(found.unflatten(1, (len(ANGLES), 2)).square().sum(2), cell))
        known = ((torch.cat(energies, 1) + FLOOR) / TYPICAL).log()
        tokens = torch.cat([known, torch.ones_like(known[:, :1])], 1).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    def words(self, images: Tensor) -> Tensor:
        """[N, 5]: the probability of every word."""
        return self.probability(images, list(WORDS))
