"""Nodes for clips, and for looking at attention."""

from ..common.inputs import (
    SAMPLING_RANGE,
    choice,
    connection,
    decimal,
    integer,
    layers,
    model,
    percent_range,
    strength,
    trajectory,
)
from ..flow.cuts import find_cuts
from . import CATEGORY
from .patching.layers import pick_layers, sigma_range
from .patching.rows import FrameSplitter
from .temporal import ANCHORS, TemporalPatch
from .view import VIEWS, view


class TemporalAttention:
    """Anchor frames in self-attention."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reduces flicker between the frames of a clip: each frame's self-attention also attends to the "
        "shot's first frame and to the previous frame. It works across UNet calls, so with Frames per "
        "Call and with Z*. The frames are one batch of latents. Connect the content's images, so that the "
        "anchors restart at every cut."
    )
    SEARCH_ALIASES = ("cross-frame attention", "temporal consistency", "flicker", "video consistency")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("A copy of the model in which frames attend to each other.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model(),
                "anchors": choice(
                    ANCHORS, "What each frame attends to. all: all known frames of its shot.", ANCHORS[2]
                ),
                "layers": layers("all"),
                **percent_range(),
                "strength": strength("0 is off; values between mix plain and anchored attention."),
            },
            "optional": {
                "images": connection("IMAGE", "The content's frames: anchors restart at their cuts.")
            },
        }

    def patch(self, model, anchors, layers, start_percent, end_percent, strength, images=None):
        chosen = pick_layers(model, layers)
        active = sigma_range(model, start_percent, end_percent)
        if not chosen or active.empty or strength == 0:
            return (model,)
        cuts = [] if images is None else find_cuts(images)
        patched = model.clone()
        TemporalPatch(chosen, active, anchors, strength, cuts).attach(patched)
        return (patched,)


class FramesPerCall:
    """A clip in one batch of latents, the UNet a few frames at a time."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lets one KSampler sample a whole clip: the latents stay in one batch, and the UNet gets a few "
        "frames at a time. Every frame keeps its own ControlNet hint and conditioning. The result is the "
        "same as in one call, except with the anchors `all` of Temporal Attention."
    )
    SEARCH_ALIASES = ("video batch", "chunk", "out of memory", "batch size", "controlnet video")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("A copy of the model that samples a clip in parts.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        frames = integer(0, 0, 4096, "Frames in one UNet call; 0: as many as fit into free memory.")
        return {"required": {"model": model("Any model that samples images."), "frames": frames}}

    def patch(self, model, frames):
        patched = model.clone()
        FrameSplitter(frames).attach(patched)
        return (patched,)


class AttentionView:
    """Pictures of attention."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows what a layer does with a picture at one point of the sampling: its features as colours, where "
        "one point attends, how much attention goes to the style, or how much of the content remains with "
        "each way to mix in the style."
    )
    SEARCH_ALIASES = ("attention map", "heat map", "features", "pca", "debug attention")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("picture",)
    OUTPUT_TOOLTIPS = ("One picture per frame.",)
    FUNCTION = "view"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model(
                    "The model that made the trajectory, or with its patches as it samples: anchors of "
                    "Temporal Attention count."
                ),
                "trajectory": trajectory("The DDIM Inversion of the pictures."),
                "what": choice(
                    VIEWS,
                    "features PCA of a decoder block; self-attention of a point; share of the style in Z*'s "
                    "softmax; cosine of Z*'s and self-attention's outputs (low: content is lost).",
                ),
                "layer": integer(5, 0, 99, "Decoder block for features PCA, else self-attention layer."),
                "step": decimal(0.46, 0.0, 1.0, f"0.46 is timestep 540. {SAMPLING_RANGE}"),
            },
            "optional": {
                "style": trajectory("The style, for style share and content similarity."),
                "point_x": decimal(0.5, 0.0, 1.0, "The point for self-attention, from the left."),
                "point_y": decimal(0.5, 0.0, 1.0, "The point for self-attention, from the top."),
                "style_scale": decimal(1.2, 0.0, 5.0, "λ of Z*, for the views with a style.", 0.05),
            },
        }

    def view(
        self, model, trajectory, what, layer, step, style=None, point_x=0.5, point_y=0.5, style_scale=1.2
    ):
        point = (point_x, point_y)
        return (view(model, trajectory, style, what, layer, step, point=point, scale=style_scale),)


NODES = {
    "ReelBrushTemporalAttention": (TemporalAttention, "Temporal Attention"),
    "ReelBrushFramesPerCall": (FramesPerCall, "Frames per Call"),
    "ReelBrushAttentionView": (AttentionView, "View Attention"),
}
