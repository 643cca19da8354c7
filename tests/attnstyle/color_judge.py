"""A judge that anyone can check by hand: it embeds mean colors, and knows the words for four of them."""

import torch
from torch.nn.functional import adaptive_avg_pool2d

from reelbrush.nodes.attnstyle.judge import EmbeddingJudge

WORDS = {
    "red": [1.0, -0.5, -0.5, 0.0],
    "blue": [-0.5, -0.5, 1.0, 0.0],
    "dark": [0.0, 0.0, 0.0, -1.0],
    "photo": [0.1, 0.1, 0.1, 0.3],
}


class ColorJudge(EmbeddingJudge):
    """Tokens: the opponent colors and the brightness of 4x4 places; the picture is their mean."""

    size, mean, std, scale = 16, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 10.0

    def text(self, texts):
        rows = [
            torch.tensor([WORDS[w] for w in t.split() if w in WORDS] or [WORDS["photo"]]).mean(0)
            for t in texts
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def towers(self, pixels):
        small = adaptive_avg_pool2d(pixels, 4)
        luma = small.mean(1, keepdim=True)
        tokens = torch.cat([small - luma, luma], 1).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens
