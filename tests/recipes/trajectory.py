"""How to run the trajectory nodes in the every-node test."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from every_node import Recipe, picture

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.inversion.trajectory import Trajectory, save, target

TESTS = Path(__file__).resolve().parents[1]
for name, folder in (("tests", TESTS), ("tests.diffusion", TESTS / "diffusion")):
    package = sys.modules.setdefault(name, ModuleType(name))  # where pytest has not made them yet
    package.__path__ = [str(folder)]

from tests.diffusion import tiny  # noqa: E402


def model():
    return (tiny.comfy_model if host.inside_comfyui() else tiny.tiny_model)("mini", prediction="v")


def latent(frames, size):
    g = torch.Generator().manual_seed(1)
    return {"samples": torch.randn(frames, 4, size[1] // 4, size[0] // 4, generator=g)}


def trajectory(frames, size, family="sd1"):
    g = torch.Generator().manual_seed(2)
    levels = torch.randn(3, frames, 4, size[1] // 4, size[0] // 4, generator=g)
    return Trajectory(levels, torch.tensor([0.03, 1.0, 9.0]), tiny.conditioning(model()), family, "noised")


def invert(frames, size):
    made = model()
    settings = {"steps": 3, "convention": "next timestep", "refine": 1, "save_steps": 2, "frames_per_call": 2}
    return {"model": made, "positive": tiny.conditioning(made), "latent": latent(frames, size), **settings}


def saved(frames, size):
    save(trajectory(frames, size), target("clip"))
    return {"file": "clip.safetensors"}


def reconstruct(frames, size):
    decode = lambda z: z[:, :3].movedim(1, -1).repeat_interleave(4, 1).repeat_interleave(4, 2)  # noqa: E731
    return {
        "trajectory": trajectory(frames, size),
        "model": model(),
        "vae": SimpleNamespace(decode=decode),
        "images": picture(frames, size),
    }


def null_text(frames, size):
    made = model()
    settings = {"cfg": 3.0, "inner_steps": 2, "learning_rate": 0.01, "frames_per_call": 2}
    given = {"positive": tiny.conditioning(made, seed=7), "trajectory": trajectory(frames, size)}
    return {"model": made, **given, **settings}


OTHER = (trajectory(3, (33, 21), "sdxl"), "made with a sdxl model, this model is sd1")

RECIPES = {
    "ReelBrushInvert": Recipe(
        invert,
        frames=0,
        wrong=[({"sigmas": torch.tensor([2.0, 2.0])}, "at least two noise levels")],
        needs="comfyui",
    ),
    "ReelBrushSaveTrajectory": Recipe(
        lambda frames, size: {"trajectory": trajectory(frames, size), "name": "clip"},
        wrong=[({"name": "../clip"}, "leaves the"), ({"name": " "}, "name is empty")],
    ),
    "ReelBrushLoadTrajectory": Recipe(
        saved,
        wrong=[({"file": "nothing saved yet"}, "Save Trajectory"), ({"file": "other"}, "not found")],
    ),
    "ReelBrushReconstruct": Recipe(
        reconstruct,
        frames=0,
        wrong=[({"trajectory": OTHER[0]}, OTHER[1]), ({"images": picture(2, (33, 21))}, "has 3 frames")],
        needs="comfyui",
    ),
    "ReelBrushNullText": Recipe(
        null_text,
        off=({"cfg": 1.0, "null": [[torch.zeros(1, 77, 768), {}]]}, "null", 0),
        wrong=[({"trajectory": OTHER[0]}, OTHER[1])],
        needs="comfyui",
    ),
}
