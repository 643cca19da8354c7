"""Contact sheets: the grid has few empty cells."""

import pytest
import torch

from reelbrush.nodes.common.contact_sheet import contact_sheet


@pytest.mark.parametrize(
    ("count", "cells"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (12, 12)]
)
def test_grid_leaves_few_cells_empty(count, cells):
    sheet = contact_sheet(torch.zeros(count, 10, 20, 3), gap=0)[0]
    assert sheet.shape[0] * sheet.shape[1] == cells * 10 * 20
    assert float(sheet.mean()) == pytest.approx((cells - count) / cells)  # empty cells are white
