"""Hooks on modules of the UNet."""

import torch

from reelbrush.nodes.diffusion.patching.hooks import on_resblock
from reelbrush.nodes.diffusion.patching.layers import (
    decoder_blocks,
)

from ..attention_tools import BOTH, fingerprint, make, same, sample


@BOTH
def test_a_resblock_hook_sees_what_is_added_to_the_skip_path(kind):
    model = make(kind)
    plain, before = sample(model), fingerprint(model)
    hooked, seen = model.clone(), []

    def watch(h):
        seen.append(h.shape)
        return h

    block = decoder_blocks(model)[4]
    on_resblock(hooked, block, watch)
    assert torch.equal(sample(hooked), plain)
    assert seen[0][:1] + seen[0][2:] == (2, 3, 4)
    twice = hooked.clone()
    on_resblock(twice, block, lambda h: h * 2)
    count = len(seen)
    assert not torch.equal(sample(twice), plain)
    assert len(seen) == 2 * count  # the first hook is still there
    assert torch.equal(sample(model), plain)
    assert same(fingerprint(model), before) or kind == "comfy"  # ComfyUI puts `forward` back as an attribute
