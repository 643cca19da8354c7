"""How to run Sample Video in the every-node test."""

import torch
from attention import MODEL, tiny
from every_node import Recipe, clip
from video import Vae

from reelbrush.nodes import host


def sampled(frames, size):
    text = tiny.conditioning(MODEL)
    return dict(
        video=clip(frames, size),
        model=MODEL,
        positive=text,
        negative=text,
        vae=Vae(),
        sampler=host.comfy("comfy.samplers").sampler_object("euler"),
        sigmas=torch.tensor([9.0, 1.0, 0.0]),
        cfg=1.0,
        start="inversion",
        invert_steps=2,
        refine=0,
        window=2,
        overlap=1,
        match_color="source",
        max_side=0,
        seed=1,
    )


RECIPES = {
    "ReelBrushSampleVideo": Recipe(
        sampled,
        frames=0,
        wrong=[
            (dict(overlap=2), "a frame would be in three windows"),
            (dict(sigmas=torch.tensor([1.0])), "sigmas has no step"),
            (dict(video="x"), "VIDEO is needed"),
        ],
        needs="comfyui",
    ),
}
