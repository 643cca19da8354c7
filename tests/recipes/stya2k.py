"""How to run the StyA2K nodes in the every-node test."""

import os
from pathlib import Path

import torch
from every_node import Recipe, clip, picture
from safetensors.torch import save_file

from reelbrush.nodes.common.perceptual import SqueezeNet
from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.small import SmallStyA2K
from reelbrush.nodes.stya2k.style import load_model, make_style, mix_styles


def home(*parts):
    path = Path(os.environ["REELBRUSH_HOME"]).joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def file(name="tiny"):
    path = home("output", "stya2k", f"{name}.safetensors")
    if not path.exists():
        torch.manual_seed(len(name))
        checkpoint.save(SmallStyA2K((4, 8, 8, 16, 16)), path, half=False)
    return path


def style(seed=1, name="tiny"):
    return make_style(load_model(file(name)), picture(1, (40, 30), seed), size=64)


class Moving:
    """A style with a mask of three frames; made when it is used, for it needs a home folder."""

    @property
    def model(self):
        return style().model

    @property
    def parts(self):
        return mix_styles(style(), style(2), 1.0, torch.rand(3, 4, 4)).parts


def squeezenet():
    """An untrained SqueezeNet under its prototxt's names."""
    path = home("output", "perceptual", "squeezenet.safetensors")
    if not path.exists():
        torch.manual_seed(0)
        names = {"0": "conv1x1_1", "1": "conv1x1_2", "2": "conv3x3_2"}
        weights = {}
        for key, value in SqueezeNet().state_dict().items():
            layer, _, rest = key.partition(".")
            place, _, kind = rest.partition(".")
            weights[key if layer == "conv1" else f"{layer}/{names[place]}.{kind}"] = value.contiguous()
        save_file(weights, path)
    return path.name


def folder(name, seed):
    import cv2

    for i, image in enumerate(picture(2, (70, 66), seed)):
        path = home("input", name, f"{i}.png")
        cv2.imwrite(str(path), (image * 255).byte().numpy())
    return name


def training(*_):
    return {
        "content_folder": folder("contents", 0),
        "style_folder": folder("styles", 5),
        "perceptual": squeezenet(),
        "size": "small",
        "attention": "all-to-key",
        "steps": 2,
        "batch": 1,
        "load_size": 64,
        "crop": 64,
        "learning_rate": 2e-4,
        "style_weight": 10.0,
        "match_weight": 1.25,
        "temporal_weight": 0.0,
        "seed": 0,
        "save_as": "mine",
        "resume": True,
    }


LOOK = {"strength": 1.0, "keep_color": False}
RECIPES = {
    "ReelBrushStylizeVideo": Recipe(
        lambda n, size: dict(
            video=clip(n, size),
            style=picture(1, (40, 30), 1),
            model=file().name,
            stroke_size=64,
            stabilize=0.8,
            max_side=0,
            **LOOK,
        ),
        frames=0,
        same_size=True,
        off=(dict(strength=0.0), "video", 0),
        wrong=[(dict(video="no clip"), "VIDEO is needed"), (dict(model="none.pth"), "was not found")],
    ),
    "ReelBrushLoadStyA2K": Recipe(
        lambda n, size: dict(model=file().name, precision="auto"),
        wrong=[
            (dict(model="none.safetensors"), "was not found"),
            (dict(model="../x.safetensors"), "leaves the"),
            (dict(precision="int3"), "not known"),
        ],
    ),
    "ReelBrushStyA2KStyle": Recipe(
        lambda n, size: dict(model=load_model(file()), style=picture(n, size), weights="", size=64),
        wrong=[
            (dict(weights="1, 2"), "2 weights for 3"),
            (dict(weights="much"), "not numbers"),
            (dict(style=torch.zeros(1, 1, 1, 3)), "1 x 1 pixels"),
        ],
    ),
    "ReelBrushStyA2KMix": Recipe(
        lambda n, size: dict(a=style(), b=style(2), amount=0.5),
        off=(dict(amount=0.0), "a", 0),
        wrong=[(dict(amount=0.5, mask=torch.rand(2, 4, 4), b=Moving()), "one length")],
    ),
    "ReelBrushStyA2KApply": Recipe(
        lambda n, size: dict(style=style(), images=picture(n, size), attention="all-to-key", chunk=0, **LOOK),
        frames=0,
        same_size=True,
        alone="images",
        off=(dict(strength=0.0), "images", 0),
        wrong=[(dict(attention="more"), "not known")],
    ),
    "ReelBrushStyA2KApplyVideo": Recipe(
        lambda n, size: dict(style=style(), video=clip(n, size), max_side=0, **LOOK),
        frames=0,
        same_size=True,
        alone="video",
        off=(dict(strength=0.0), "video", 0),
        wrong=[(dict(video="no clip"), "VIDEO is needed"), (dict(max_side=1), "leaves no picture")],
    ),
    "ReelBrushTrainStyA2K": Recipe(
        training,
        changes=("log",),
        counts=(1,),
        sizes=((33, 21),),
        wrong=[
            (dict(save_as=" "), "empty"),
            (dict(save_as="../x"), "leaves the stya2k folder"),
            (dict(content_folder="none"), "not in the input folder"),
            (dict(perceptual="none.safetensors"), "was not found"),
            (dict(size="paper"), "VGG-19"),
        ],
    ),
}
