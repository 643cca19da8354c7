"""How to run DiffStyler's nodes (regions, injection, a mask from a word) in the every-node test."""

import torch
from attention import BAD_LAYERS, MODEL, OTHER, foreign, trajectory
from every_node import Recipe

from tests.diffusion.lora_tools import random_lora, soft_masks
from tests.diffusion.small_clip import SmallClip

LORA = random_lora(MODEL)


def region(frames, size):
    return {"model": MODEL, "lora": LORA, "strength": 1.0, "mask": soft_masks(frames)[0]}


def injection(frames, size):
    blocks = {"feature_blocks": "4-11", "attention_blocks": "all"}
    ends = {"feature_end": 0.6, "attention_end": 0.5}
    switches = {"self_attention": True, "cross_attention": True, "blend": "replace"}
    return {"model": MODEL, "content": trajectory(frames, size), **blocks, **ends, **switches}


def mask(frames, size):
    found = {"text": "a deer on the grass", "words": "deer", "threshold": 0.5, "steps": 1}
    return {"model": MODEL, "clip": SmallClip(), "trajectory": trajectory(frames, size), **found}


BAD_BLOCKS = BAD_LAYERS[1].replace("layers", "blocks").replace("15", "11")

RECIPES = {
    "ReelBrushApplyStyleLoRA": Recipe(
        region,
        off=({"strength": 0.0}, "model", 0),
        wrong=[
            ({"content": foreign()}, OTHER),
            ({"model": torch.nn.Linear(2, 2)}, "not a Stable Diffusion"),
        ],
    ),
    "ReelBrushInject": Recipe(
        injection,
        off=({"feature_end": 0.0, "attention_end": 0.0}, "model", 0),
        wrong=[
            ({"feature_blocks": "4-12"}, BAD_BLOCKS),
            ({"content": foreign()}, OTHER),
            ({"blend": "x"}, "choose replace, fade"),
        ],
        sizes=((16, 12), (9, 7)),
    ),
    "ReelBrushPromptMask": Recipe(
        mask,
        frames=0,
        wrong=[
            ({"words": "harbour"}, "are not in the text"),
            ({"blocks": "0-2"}, "have no attention"),
            ({"trajectory": foreign()}, OTHER),
        ],
        sizes=((16, 12), (9, 7)),
    ),
}
