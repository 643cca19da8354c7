"""How to run the nodes that sample whole clips in the every-node test."""

import torch
from attention import MODEL, tiny
from distill import MODEL as SMALL
from distill import NULL
from every_node import Recipe, clip, picture
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


class EightTimesSmaller(Vae):
    downscale_ratio = 8


def distilled(frames, size):
    return dict(
        video=clip(frames, size),
        model=SMALL,
        vae=EightTimesSmaller(),
        null=NULL,
        style=picture(1, (40, 32), 1),
        content_weight=0.25,
        steps=2,
        warm_steps=1,
        max_side=0,
    )


RECIPES = {
    "ReelBrushADVideo": Recipe(
        distilled,
        frames=0,
        wrong=[
            (dict(video="x"), "VIDEO is needed"),
            (dict(style=picture(1, (40, 4), 1)), "this VAE needs at least 8x8"),
        ],
    ),
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
