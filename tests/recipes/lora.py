"""How to run the LoRA nodes in the every-node test."""

import sys
from pathlib import Path
from types import ModuleType

import torch
from every_node import Recipe

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora import file as lora

TESTS = Path(__file__).resolve().parents[1]
for name, folder in (("tests", TESTS), ("tests.diffusion", TESTS / "diffusion")):
    package = sys.modules.setdefault(name, ModuleType(name))  # where pytest has not made them yet
    package.__path__ = [str(folder)]

from tests.diffusion import tiny  # noqa: E402
from tests.diffusion.lora_tools import random_lora  # noqa: E402


def model():
    return (tiny.comfy_model if host.inside_comfyui() else tiny.tiny_model)("mini")


def training(frames, size):
    made, g = model(), torch.Generator().manual_seed(1)
    latent = {"samples": torch.randn(frames, 4, size[1] // 4, size[0] // 4, generator=g)}
    settings = {"rank": 2, "steps": 2, "learning_rate": 1e-3, "projections": "q,k,v", "seed": 0}
    return {
        "model": made,
        "style": latent,
        "positive": tiny.conditioning(made),
        **settings,
        "save_as": "mine",
    }


def saved(*_):
    lora.save(random_lora(model()), host.trained_path(lora.KIND, "mine.safetensors"), "sgm")
    broken = host.trained_path(lora.KIND, "broken.safetensors")
    broken.write_bytes(b"not a safetensors file")
    return {"file": "mine.safetensors"}


RECIPES = {
    "ReelBrushTrainStyleLoRA": Recipe(
        training,
        wrong=[
            ({"projections": "q,w"}, "name some of q, k, v and out"),
            ({"save_as": "../mine"}, "leaves the loras folder"),
            ({"steps": 0}, "a number from 1"),
            ({"style": {"samples": torch.zeros(1, 16, 8, 8)}}, "encode pictures with the VAE"),
            ({"model": torch.nn.Linear(2, 2)}, "not a Stable Diffusion"),
            ({"positive": []}, "the conditioning is empty"),
        ],
    ),
    "ReelBrushLoadStyleLoRA": Recipe(
        saved,
        wrong=[
            ({"file": "no LoRA found"}, "there is no LoRA yet"),
            ({"file": "other.safetensors"}, "not found"),
            ({"file": "broken.safetensors"}, "cannot be read"),
            ({"file": "../x.safetensors"}, "leaves the"),
        ],
    ),
}
