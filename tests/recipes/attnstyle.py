"""How to run the AttnStyle nodes in the every-node test."""

import importlib.util
import os
from pathlib import Path

import torch
from every_node import Recipe, clip, picture

from reelbrush.nodes.attnstyle import style
from reelbrush.nodes.attnstyle.network import AttnStyleNet

HERE = Path(__file__).parents[1]


def _module(*parts):
    path = HERE.joinpath(*parts)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


clips = _module("attnstyle", "small_clips.py")
ColorJudge = _module("attnstyle", "color_judge.py").ColorJudge


def models(kind):
    # output/<kind> is always looked into; ComfyUI keeps the first models folder that it was told
    folder = Path(os.environ["REELBRUSH_HOME"]) / "output" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trained():
    torch.manual_seed(0)
    network = AttnStyleNet()
    torch.nn.init.normal_(network.leave.weight, std=0.2)
    return style.TextStyle.of(network, style_text="red", source_text="a photo", size=[16, 16])


def saved(*_):
    path = models("attnstyle") / "a.safetensors"
    if not path.exists():
        style.save(trained(), path)
    return {"file": "a.safetensors"}


def hugging_face(*_):
    if not (models("style_judge") / "tiny").exists():
        clips.save_folder(models("style_judge") / "tiny")
    return {"folder": "tiny"}


def training(n, size):
    return {
        "judge": ColorJudge(),
        "images": picture(n, size),
        "style_text": "red",
        "source_text": "a photo",
        "epochs": 2,
        "learning_rate": 5e-4,
        "global_weight": 500.0,
        "patch_weight": 9000.0,
        "patch_scales": "global 1, intermediate 1, local 1",
        "attention_weight": 1.0,
        "content_weight": 0.0,
        "layout_weight": 1.0,
        "tv_weight": 2e-3,
        "temporal_weight": 10.0 if n > 1 else 0.0,
        "patches": 4,
        "threshold": 0.7,
        "curriculum": True,
        "perceptual": "none",
        "seed": 3,
    }


RECIPES = {
    "ReelBrushStyleJudge": Recipe(
        lambda n, size: {
            "clip": clips.comfy_clip(),
            "clip_vision": clips.comfy_vision(models("clip_vision")),
        },
        wrong=[({"clip_vision": None}, "clip_vision is empty")],
        needs="comfyui",
        sizes=((16, 16),),
        counts=(1,),
    ),
    "ReelBrushLoadStyleJudge": Recipe(
        hugging_face,
        wrong=[({"folder": "nowhere"}, "was not found"), ({"folder": "../tiny"}, "leaves")],
        needs="transformers",
        sizes=((16, 16),),
        counts=(1,),
    ),
    "ReelBrushDiffusionJudge": Recipe(
        lambda n, size: {**_diffusion(), "timesteps": "0.2-0.6", "samples": 1, "size": 64},
        wrong=[({"timesteps": "late"}, "timesteps is 'late'")],
        sizes=((16, 16),),
        counts=(1,),
    ),
    "ReelBrushKeyFrames": Recipe(
        lambda n, size: {"video": clip(n, size), "count": 2}, wrong=[({"video": 3}, "VIDEO is needed")]
    ),
    "ReelBrushAttnStyle": Recipe(
        training,
        frames=0,
        same_size=True,
        wrong=[
            ({"judge": 3}, "judge is a int"),
            ({"style_text": " "}, "the text is empty"),
            ({"patch_scales": "huge 1"}, "patch_scales has 'huge 1'"),
            ({"images": torch.rand(1, 8, 8, 3)}, "16x16"),
            ({"content_weight": 1.0}, "needs a perceptual network"),
            ({"content_weight": 1.0, "perceptual": "no.pth"}, "was not found"),
        ],
    ),
    "ReelBrushAttnStyleApply": Recipe(
        lambda n, size: {"model": trained(), "images": picture(n, size), "strength": 1.0},
        frames=0,
        same_size=True,
        alone="images",
        off=({"strength": 0.0}, "images", 0),
        wrong=[({"model": "x"}, "connect AttnStyle"), ({"model": None}, "model is empty: connect")],
    ),
    "ReelBrushAttnStyleApplyVideo": Recipe(
        lambda n, size: {"model": trained(), "video": clip(n, size), "strength": 1.0},
        frames=0,
        same_size=True,
        alone="video",
        off=({"strength": 0.0}, "video", 0),
        wrong=[({"model": 5}, "connect AttnStyle"), ({"video": 5}, "VIDEO is needed")],
    ),
    "ReelBrushSaveAttnStyle": Recipe(
        lambda n, size: {"model": trained(), "name": "a/b"},
        wrong=[
            ({"model": 5}, "connect AttnStyle"),
            ({"name": "../../b"}, "leaves the output folder"),
        ],
        changes=("path",),
        sizes=((16, 16),),
        counts=(1,),
    ),
    "ReelBrushLoadAttnStyle": Recipe(
        saved,
        wrong=[({"file": "none.safetensors"}, "was not found"), ({"file": "../a.safetensors"}, "leaves")],
        sizes=((16, 16),),
        counts=(1,),
    ),
}


def _diffusion():
    class Part:
        first_stage_model = torch.nn.Conv2d(3, 4, 8, 8)

        def __init__(self):
            self.model = self
            self.model_sampling = self
            self.diffusion_model = torch.nn.Module()
            for name in ("input_blocks", "middle_block", "output_blocks"):
                setattr(self.diffusion_model, name, torch.nn.ModuleList())

        def clone(self):
            return self

    return {"model": Part(), "vae": Part(), "clip": Part()}
