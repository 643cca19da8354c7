"""Attention Distillation on whole clips."""

import torch

from .. import host
from ..common.inputs import connection, decimal, integer, max_side, model
from ..flow.estimate import opencv
from ..video.lazy_video import LazyVideo
from ..video.vae import fitted
from . import CATEGORY, NULL
from .video import DistillFrames


class ADVideo:
    """Algorithm 1 on a clip of any length."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Redraws a clip of any length in the style of a picture (Attention Distillation), frame by frame, "
        "while it is saved. Each frame continues from the one before it along the motion. Memory does not "
        "grow with the clip, and a cancelled save continues where it stopped."
    )
    SEARCH_ALIASES = (
        "attention distillation video",
        "AD video",
        "style transfer video",
        "restyle video",
        "long video",
    )
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The clip; it is computed when it is saved.",)
    FUNCTION = "distill"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": connection("VIDEO", "The clip. After a cut, a frame starts from its content."),
                "model": model("SD1.x, SD2.x or SDXL, also with LoRAs. It is not changed."),
                "vae": connection("VAE", "Encodes and decodes the frames."),
                "null": NULL,
                "style": connection("IMAGE", "One or several style pictures; they are used together."),
                "content_weight": decimal(
                    0.25, 0.0, 10.0, "Weight of the content's layout. Lower is more style."
                ),
                "steps": integer(200, 1, 10000, "Iterations for the first frame of a shot."),
                "warm_steps": integer(
                    54, 0, 10000, "Iterations for every other frame; 0: all frames take `steps`."
                ),
                "max_side": max_side("Shrink the longer side to this many pixels first; 0 keeps the size."),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    def distill(self, video, model, vae, null, style, max_side, prompt=None, unique_id=None, **settings):
        opencv()  # an error now, not in the save
        clip = fitted(LazyVideo.of(video).fit(max_side), vae)
        graph = host.graph_key(prompt, unique_id, ("model", "vae", "null"), model)
        pictures = torch.as_tensor(style[..., :3]).cpu()
        objects = {"model": model, "null": null, "vae": vae}
        return (
            clip.then(DistillFrames, graph, pictures, **settings, **objects, node="Distill Style (Video)"),
        )


NODES = {"ReelBrushADVideo": (ADVideo, "Distill Style (Video)")}
