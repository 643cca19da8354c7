"""ComfyUI's MODEL: conditionings."""

import pytest
import torch

from reelbrush.nodes import host

from ..diffusion.attention_tools import BOTH, SIZE, latents, make
from ..diffusion.tiny import conditioning


@BOTH
def test_conditions_take_the_entry_whose_range_holds_the_noise_level(kind):
    model, z = make(kind, "sdxl"), latents(size=SIZE)
    early, late = (conditioning(model, seed=s)[0] for s in (1, 2))
    pair = [[early[0], {**early[1], "end_percent": 0.5}], [late[0], {**late[1], "start_percent": 0.5}]]
    middle = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert torch.equal(host.conditions(model, pair, z, middle * 2)["c_crossattn"], early[0])
    assert torch.equal(host.conditions(model, pair, z, middle / 2)["c_crossattn"], late[0])
    assert host.conditions(model, pair, z)["y"].shape == (1, 2816)
    with pytest.raises(ValueError, match="no entry for this noise level"):
        host.conditions(model, pair[1:], z, middle * 2)
