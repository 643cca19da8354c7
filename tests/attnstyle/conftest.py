"""What AttnStyle's tests share."""

import pytest
import torch

from .color_judge import ColorJudge


@pytest.fixture
def judge():
    return ColorJudge()


@pytest.fixture
def pictures():
    """`pictures(n, h, w)`: smooth, different pictures [n, 3, h, w] in 0.2..0.8."""

    def make(n=2, h=32, w=40, seed=0):
        y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
        waves = [torch.sin((seed + i + 3 + 2 * c) * x + (5 - c) * y + c) for i in range(n) for c in range(3)]
        return torch.stack(waves).view(n, 3, h, w) * 0.3 + 0.5

    return make
