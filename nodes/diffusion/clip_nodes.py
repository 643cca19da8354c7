"""Nodes for clips, and for looking at attention: declarations only. The methods are beside this file."""

from ..flow.cuts import find_cuts
from . import rows, unet
from . import view as views
from .declare import CATEGORY, LAYERS, RANGE, choice, decimal, given, part
from .temporal import ANCHORS, Temporal


class TemporalAttention:
    """Anchor frames in self-attention."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes frames of a clip alike: each frame's self-attention also looks at the shot's first frame and "
        "the frame before, across UNet calls too, so that it goes with Frames per Call and with Z*. The "
        "frames are one batch of latents. Connect the content's images, and anchors start anew at every cut."
    )
    SEARCH_ALIASES = ("cross-frame attention", "temporal consistency", "flicker", "video consistency")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A copy of the model whose frames look at each other.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", "A Stable Diffusion 1.x, 2.x or XL model."),
                "anchors": choice(
                    ANCHORS,
                    "Which frames are looked at: the shot's first, the one before, both, or all of the call.",
                    "first + previous",
                ),
                "layers": ("STRING", {"default": "all", "tooltip": LAYERS}),
                "start_percent": part(0.0),
                "end_percent": part(1.0),
                "strength": decimal(
                    1.0, 0.0, 1.0, "0 is off; between, plain and anchored attention mix.", 0.05
                ),
            },
            "optional": {
                "images": given("IMAGE", "The content's frames: a cut in them resets the anchors."),
            },
        }

    def patch(self, model, anchors, layers, start_percent, end_percent, strength, images=None):
        chosen = unet.pick_layers(model, layers)
        when = unet.sigma_range(model, start_percent, end_percent)
        if not chosen or when.empty or strength == 0:
            return (model,)
        cuts = [] if images is None else find_cuts(images)
        patched = model.clone()
        Temporal(chosen, when, anchors, strength, cuts).attach(patched)
        return (patched,)


class FramesPerCall:
    """A clip in one batch of latents, the UNet a few frames at a time."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lets one KSampler hold a whole clip: latents stay in one batch, the UNet sees a few frames at a "
        "time. Frames keep their own ControlNet hints and conditioning. The result is the same as in one "
        "call."
    )
    SEARCH_ALIASES = ("video batch", "chunk", "out of memory", "batch size", "controlnet video")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A copy of the model that takes the clip in parts.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", "Any model that samples images."),
                "frames": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "Frames in one UNet call; 0: as many as free memory takes.",
                    },
                ),
            }
        }

    def patch(self, model, frames):
        patched = model.clone()
        rows.FramesPerCall(frames).attach(patched)
        return (patched,)


class AttentionView:
    """Pictures of what attention does."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows what a layer does with a picture at one moment of the sampling: its features by colour, where "
        "a point looks, how much attention goes to the style, and how much of the content each way of mixing "
        "keeps."
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
                "model": given("MODEL", "The model that the trajectory was made with."),
                "trajectory": given("REELBRUSH_TRAJECTORY", "The pictures to look at: a DDIM Inversion."),
                "what": choice(
                    views.VIEWS,
                    "features PCA of a decoder block; self-attention of a point; the style's share in Z*'s "
                    "softmax; cosine between Z*'s attention and self-attention for eqs. 7, 8 and 12 (low: "
                    "content is lost).",
                ),
                "layer": (
                    "INT",
                    {
                        "default": 5,
                        "min": 0,
                        "max": 99,
                        "tooltip": "Decoder block (0-11 on SD1.x) for features PCA, else self-attention "
                        "layer (0-15).",
                    },
                ),
                "step": decimal(
                    0.46, 0.0, 1.0, f"When: 0.46 is timestep 540 of DiffStyler's Fig. 3. {RANGE}"
                ),
            },
            "optional": {
                "style": given("REELBRUSH_TRAJECTORY", "The style, for style share and content similarity."),
                "point_x": decimal(0.5, 0.0, 1.0, "For self-attention: the point, from the left."),
                "point_y": decimal(0.5, 0.0, 1.0, "For self-attention: the point, from the top."),
                "style_scale": decimal(
                    1.2, 0.0, 5.0, "λ of Z*, for style share and content similarity.", 0.05
                ),
            },
        }

    def view(
        self, model, trajectory, what, layer, step, style=None, point_x=0.5, point_y=0.5, style_scale=1.2
    ):
        point = (point_x, point_y)
        return (views.view(model, trajectory, style, what, layer, step, point=point, scale=style_scale),)


NODES = {
    "ReelBrushTemporalAttention": (TemporalAttention, "Temporal Attention"),
    "ReelBrushFramesPerCall": (FramesPerCall, "Frames per Call"),
    "ReelBrushAttentionView": (AttentionView, "View Attention"),
}
