"""A judge of textures for AttnStyle's clips that is not trained.

A picture is reduced to 64x64 pixels. Its luma, and the luma of half that size, are filtered by Gabor pairs of
four directions (wavelength 4). The features of each of 8x8 places are the log energies of each direction and
size, relative to `TYPICAL`. A word is a direction in that space: more of everything (rough), less of
everything (smooth), more of one direction than of the others (striped, upright). "photo" is a constant.

A trained judge can score a color highly that it never saw in training; here "striped" needs stripes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, normalize, pad

from reelbrush.nodes.attnstyle.judge import EmbeddingJudge

WORDS = ("striped", "upright", "rough", "smooth", "photo")
ANGLES = (90, 0, 45, 135)  # of the wave, in degrees: 90 gives horizontal lines
WAVE, SIDE, TYPICAL, FLOOR = 4.0, 7, 8e-3, 1e-5


def gabors() -> Tensor:
    """[8, 1, 7, 7]: even and odd waves of each angle in a Gaussian window, without mean."""
    y, x = torch.meshgrid(*[torch.arange(SIDE) - SIDE // 2] * 2, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * 1.8**2))
    rows = []
    for degrees in ANGLES:
        a = math.radians(degrees)
        phase = (x * math.cos(a) + y * math.sin(a)) * 2 * math.pi / WAVE
        for wave in (phase.cos() * window, phase.sin() * window):
            wave = wave - window * wave.sum() / window.sum()
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
            waves = conv2d(pad(x, (SIDE // 2,) * 4, mode="reflect"), self.filters)
            energies.append(avg_pool2d(waves.unflatten(1, (len(ANGLES), 2)).square().sum(2), cell))
        features = ((torch.cat(energies, 1) + FLOOR) / TYPICAL).log()
        tokens = torch.cat([features, torch.ones_like(features[:, :1])], 1).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens

    def words(self, images: Tensor) -> Tensor:
        """[N, 5]: the probability of every word."""
        return self.probability(images, list(WORDS))
