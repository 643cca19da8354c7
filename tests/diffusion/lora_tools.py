"""Random style LoRAs, and models with them merged into their weights: what run-time branches must equal."""

import copy
from functools import cache

import torch

from reelbrush.nodes.diffusion.lora.file import LowRank, StyleLoRA
from reelbrush.nodes.diffusion.nodes_inject import ApplyStyleLoRA
from reelbrush.nodes.diffusion.patching.layers import network

from . import tiny
from .attention_tools import make

PROJECTIONS = tuple(f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0"))
OTHERS = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")  # also in files of other trainers


def random_lora(model, seed=0, rank=3, size=0.3, projections=PROJECTIONS):
    """A change of every such layer, about `size` of the weights' own spread."""
    g = torch.Generator().manual_seed(seed)
    parts = {}
    for name, weight in sorted(network(model).state_dict().items()):
        path = name.removesuffix(".weight")
        if path.endswith(tuple(projections)) and path != name:
            out, into = weight.shape[:2]
            down = torch.randn(rank, into, generator=g) / into**0.5
            parts[path] = LowRank(down, torch.randn(out, rank, generator=g) * size, 2.0 / rank)
    return StyleLoRA(f"random {seed}", parts)


def merged(kind, loras, layout="sd15"):
    """A separate MODEL with the LoRAs merged into its weights, [(lora, strength), ...]."""
    weights = copy.deepcopy(network(make(kind, layout)).state_dict())
    for lora, strength in loras:
        for path, part in lora.weights.items():
            weight = weights[f"{path}.weight"]
            weight += (strength * part.scale * (part.up @ part.down)).view(weight.shape)
    return (tiny.comfy_model if kind == "comfy" else tiny.tiny_model)(layout, weights)


def apply(model, lora, strength=1.0, **more):
    return ApplyStyleLoRA().patch(model, lora, strength, **more)[0]


@cache
def two(kind="tiny", layout="sd15"):
    """Two LoRAs for the tests' model."""
    model = make(kind, layout)
    return random_lora(model, 1), random_lora(model, 2, rank=5)


def soft_masks(frames=1, seed=0, size=(24, 32), count=2):
    """Smooth masks with black, grey and white in them, overlapping; each frame its own."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, frames, 1, 4, 4, generator=g).flatten(0, 1)
    large = torch.nn.functional.interpolate(rough, size, mode="bicubic")[:, 0]
    return list((large * 2 + 0.3).clamp(0, 1).unflatten(0, (count, frames)))


def small(mask):
    """MASK [n, 2h, 2w] at the latents' size, by averages of four."""
    n, h, w = mask.shape
    return mask.view(n, h // 2, 2, w // 2, 2).mean((2, 4))[:, None]


def change_of(low_rank):
    """What a low-rank change adds to its weight, [out, in]."""
    return low_rank.up @ low_rank.down * low_rank.scale
