"""How to run the attention nodes in the every-node test."""

import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from every_node import PROBES, Recipe, picture

TESTS = Path(__file__).resolve().parents[1]
for name, folder in (("tests", TESTS), ("tests.diffusion", TESTS / "diffusion")):
    package = sys.modules.setdefault(name, ModuleType(name))  # where pytest has not made them yet
    package.__path__ = [str(folder)]

from tests.diffusion import attention_tools as tools  # noqa: E402
from tests.diffusion import tiny  # noqa: E402

MODEL = tools.make("comfy" if tools.INSIDE else "tiny")


def probe(model):
    """The weights and patches of a MODEL (without addresses and running numbers), and what it predicts."""
    weights, attributes, *patches = tools.fingerprint(model)
    return [
        weights,
        attributes,
        re.sub("0x[0-9a-f]+|(?<=reelbrush )[0-9]+|[0-9]{6,}", "", str(patches)),
        tools.sample(model, frames=1),
    ]


def is_model(value):
    """A MODEL, or a stand-in; the patcher of a CLIP has no UNet."""
    return hasattr(value, "model_options") and hasattr(getattr(value, "model", None), "diffusion_model")


PROBES.append((is_model, probe))
RANGE = {"start_percent": 0.0, "end_percent": 1.0}
OTHER = "invert with the model that samples"


def latent(frames, size, seed=0):
    return {"samples": tools.latents(frames, seed, (size[1], size[0]))}


def trajectory(frames=1, size=(16, 12), seed=10):
    return tools.trajectory(MODEL, frames, seed, (size[1], size[0]))


def foreign():
    made = trajectory()
    made.family = "sdxl"
    return made


def zstar(frames, size):
    settings = {"style_scale": 1.2, "layers": "10-15", "mix": "reweight", "add_weight": 0.5, **RANGE}
    return {"model": MODEL, "style": trajectory(), **settings}


def reference(frames, size):
    settings = {"mode": "concat", "query_keep": 0.75, "temperature": 1.5, "layers": "last 6", **RANGE}
    return {"model": MODEL, "reference": trajectory(), **settings}


def noise(frames, size):
    levels = tools.levels(MODEL)
    text = tiny.conditioning(MODEL)
    return {"latent": latent(frames, size), "model": MODEL, "positive": text, "sigmas": levels, "seed": 1}


def match(frames, size):
    return {"latent": latent(frames, size), "reference": latent(1, (5, 7), 3), "strength": 1.0}


def temporal(frames, size):
    settings = {"anchors": "first + previous", "layers": "all", "strength": 1.0, **RANGE}
    return {"model": MODEL, **settings, "images": picture(frames, (48, 32))}


def view(frames, size):
    shown = {"what": "self-attention", "layer": 5, "step": 0.46}
    return {"model": MODEL, "trajectory": trajectory(frames), **shown}


BAD_LAYERS = ({"layers": "10-99"}, "layers are 0..15")

RECIPES = {
    "ReelBrushZStar": Recipe(
        zstar,
        off=({"layers": "none"}, "model", 0),
        wrong=[
            BAD_LAYERS,
            ({"style": foreign()}, OTHER),
            ({"content_pull": 0.01}, "connect `content`"),
            ({"model": torch.nn.Linear(2, 2)}, "not a Stable Diffusion"),
        ],
    ),
    "ReelBrushReferenceAttention": Recipe(
        reference,
        off=({"start_percent": 1.0}, "model", 0),
        wrong=[BAD_LAYERS, ({"reference": foreign()}, OTHER), ({"mode": "style-id"}, "connect `content`")],
    ),
    "ReelBrushReferenceNoise": Recipe(
        noise, wrong=[({"sigmas": torch.zeros(0)}, "no noise levels")], sizes=((16, 12), (9, 7))
    ),
    "ReelBrushMatchLatent": Recipe(
        match,
        frames=0,
        off=({"strength": 0.0}, "latent", 0),
        wrong=[({"reference": latent(2, (8, 8))}, "give one reference frame")],
        sizes=((16, 12), (9, 7)),
    ),
    "ReelBrushTemporalAttention": Recipe(
        temporal,
        off=({"strength": 0.0}, "model", 0),
        wrong=[BAD_LAYERS, ({"anchors": "x"}, "choose first, previous")],
    ),
    "ReelBrushFramesPerCall": Recipe(
        lambda frames, size: {"model": MODEL, "frames": 4}, wrong=[({"frames": -1}, "a number from 0")]
    ),
    "ReelBrushAttentionView": Recipe(
        view,
        frames=0,
        wrong=[
            ({"layer": 16}, "no attention layer 16"),
            ({"what": "style share"}, "connect `style`"),
            ({"what": "features PCA", "layer": 12}, "no decoder block 12"),
        ],
    ),
}
