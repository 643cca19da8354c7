"""DiffStyler's nodes beside a style LoRA: regions, injection, a mask from a word."""

from ..common.inputs import (
    SAMPLING_RANGE,
    choice,
    connection,
    decimal,
    integer,
    model,
    percent,
    switch,
    text,
    trajectory,
)
from ..video.lazy_video import LazyVideo
from . import CATEGORY, masks
from .inject import BLENDS, KINDS, PRESETS, InjectPatch, preset_settings
from .inversion.trajectory import WindowTrajectory
from .moving_mask import MovingMask
from .patching.layers import decoder_blocks, family, pick_blocks, sigma_range
from .regions import Region, apply

_ALL = "SD1.x and SD2.x have 0-11, SDXL 0-8."


def _blocks(default: str, tooltip: str) -> tuple:
    return text(default, f'{tooltip} Decoder blocks in order: "4-11", "4", "all", "last 3", "none". {_ALL}')


class ApplyStyleLoRA:
    """A style LoRA, for one region or everywhere (eqs. 6 and 7)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Applies a style LoRA to the model, inside a mask if one is connected. Use one node per region, in a "
        "chain: all regions are computed in one batch, with one copy of the weights. Outside all masks the "
        "base model is used, or with `content` the inverted clip stays as it is. Unlike with ComfyUI's LoRA "
        "hooks, no weights are patched between steps, and masks may move."
    )
    SEARCH_ALIASES = ("regional lora", "lora mask", "diffstyler", "local style transfer", "attention couple")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("A copy of the model with one more region; the input model is unchanged.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("A Stable Diffusion 1.x, 2.x or XL model, or another Apply Style LoRA."),
                "lora": connection("REELBRUSH_LORA", "From Train Style LoRA or Load Style LoRA."),
                "strength": decimal(1.0, -4.0, 4.0, "Strength of the LoRA; 0 removes the region.", 0.05),
            },
            "optional": {
                "mask": connection(
                    "MASK",
                    "Where the style is applied (white), one mask or one per frame, also with soft edges. "
                    "Masks that overlap are mixed. Without a mask: everywhere, also in the other regions.",
                ),
                "positive": connection("CONDITIONING", "The region's prompt instead of the sampler's."),
                "content": trajectory(
                    "The clip's DDIM Inversion: outside all masks the clip stays as it is (eq. 6)."
                ),
                "mask_video": connection(
                    "VIDEO", "The masks as a clip (white: the style), read while Sample Video needs them."
                ),
            },
        }

    def patch(self, model, lora, strength, mask=None, positive=None, content=None, mask_video=None):
        if mask is not None and mask_video is not None:
            raise ValueError("mask and mask_video are both connected: connect one of them")
        mask = None if mask is None else mask.reshape(-1, *mask.shape[-2:])
        if mask_video is not None:
            mask = MovingMask(LazyVideo.of(mask_video))
        region = Region(lora, strength, mask, positive)
        if strength == 0 or (region.black and content is None):
            return (model,)
        return (apply(model, region, content),)


class Inject:
    """Feature and attention injection (eqs. 4 and 5)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Keeps a clip's layout while the model paints it in another style: features and attention of the "
        "clip's own inversion are used in the sampling (DiffStyler, Plug-and-Play). Sample from the "
        "inversion's noise with its sigmas. It costs one more UNet evaluation per frame and step. Ends of 0 "
        "or blocks none return the model."
    )
    SEARCH_ALIASES = ("plug and play", "pnp", "diffstyler", "feature injection", "attention injection")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = (
        "A copy of the model that follows the content's layout; the input model is unchanged.",
    )
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model(),
                "feature_blocks": _blocks("4-11", "Where features are injected. Official code: 4."),
                "attention_blocks": _blocks(
                    "all", "Where queries and keys are injected. Official code: 4-11."
                ),
                "feature_end": percent(0.6, f"Paper: 30 of 50 steps. {SAMPLING_RANGE}"),
                "attention_end": percent(0.5, f"Paper: 25 of 50 steps. {SAMPLING_RANGE}"),
                "self_attention": switch(True, "Inject the layout: shapes and positions."),
                "cross_attention": switch(
                    True, "Inject the cross-attention to the text. Official code: off."
                ),
                "blend": choice(
                    BLENDS,
                    "replace: the content's queries and keys (paper). fade: their share falls as "
                    "min(1, 2t/1000) (official code).",
                ),
            },
            "optional": {
                "content": trajectory(
                    "The clip's DDIM Inversion with this model. Not needed for Sample Video."
                ),
                "outside_end": percent(
                    0.0,
                    f"Until when pixels outside all masks are injected. Official code: 1. {SAMPLING_RANGE}",
                ),
                "preset": choice(
                    PRESETS,
                    "Settings for the connected model in place of all inputs above. paper: keeps most of the "
                    "clip. official code: fewer blocks, so more style arrives.",
                ),
            },
        }

    def patch(
        self,
        model,
        content=None,
        feature_blocks="",
        attention_blocks="",
        self_attention=True,
        cross_attention=True,
        preset="custom",
        **settings,
    ):
        settings |= {"feature_blocks": feature_blocks, "attention_blocks": attention_blocks}
        settings |= {"self_attention": self_attention, "cross_attention": cross_attention}
        settings |= preset_settings(preset, len(decoder_blocks(model)))
        return (_injected(model, content, **settings),)


def _injected(
    model, content, *, feature_blocks, attention_blocks, self_attention, cross_attention, **settings
):
    features = pick_blocks(model, feature_blocks)
    layers = [layer for block in pick_blocks(model, attention_blocks) for layer in block.layers]
    kinds = [k for k, on in zip(KINDS, (self_attention, cross_attention), strict=True) if on]
    ends = [settings.pop(f"{name}_end", 0.0) for name in ("feature", "attention", "outside")]
    active = [sigma_range(model, 0.0, end) for end in ends]
    if content is not None:
        content.require(family(model))
    patched = model.clone()
    content = WindowTrajectory(patched, family(model)) if content is None else content
    injection = InjectPatch(content, features, layers, *active, kinds, **settings)
    if all(sigmas.empty for sigmas in active) or not (features or (layers and kinds)):
        return model
    injection.attach(patched)
    return patched


class PromptMask:
    """Cross-attention of an inverted clip as a mask."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds where a clip shows what a word names, from the model's own attention: no other model is "
        "needed. For sharp outlines use a SAM or FastSAM pack (as in the paper): its MASK can be "
        "connected to Apply Style LoRA directly."
    )
    SEARCH_ALIASES = ("segment", "mask from text", "attention mask", "daam", "sam", "fastsam")
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("mask", "heatmap")
    OUTPUT_TOOLTIPS = (
        "White where the map is above the threshold, one per frame.",
        "The map, from black over red and yellow to white; use it to choose the threshold.",
    )
    FUNCTION = "find"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("The model that the trajectory was made with."),
                "clip": connection("CLIP", "The model's text encoder."),
                "trajectory": trajectory("The clip's DDIM Inversion."),
                "text": text(
                    "a deer on the grass", "What the clip shows, the other things too.", multiline=True
                ),
                "words": text(
                    "deer",
                    "What the mask shows: words of the text, separated by commas. Empty: the whole text.",
                ),
                "threshold": decimal(0.5, 0.0, 1.0, "Higher values make a smaller mask."),
            },
            "optional": {
                "steps": integer(5, 1, 50, "How many noise levels are averaged."),
                "refine": integer(2, 0, 10, "How often self-attention spreads the map: 0 keeps it rough."),
                "blocks": _blocks("3-8", "Where attention is read."),
                "start_percent": percent(0.3, f"The noisiest level that is read. {SAMPLING_RANGE}"),
                "end_percent": percent(0.8, f"The cleanest level that is read. {SAMPLING_RANGE}"),
            },
        }

    def find(self, model, clip, trajectory, text, words, threshold, refine=2, blocks="3-8", **range_read):
        trajectory.require(family(model))
        tokens = masks.positions(clip, text, words)
        layers = [layer for block in pick_blocks(model, blocks) for layer in block.layers]
        if not layers:
            raise ValueError(f"decoder blocks {blocks!r} have no attention: name others, such as 3-8")
        levels = masks.levels(model, trajectory, **range_read)
        heat = masks.heat(model, trajectory, masks.encoded(clip, text), tokens, layers, levels, refine)
        large = masks.enlarged(heat)
        return ((large >= threshold).float(), masks.coloured(large))


NODES = {
    "ReelBrushApplyStyleLoRA": (ApplyStyleLoRA, "Apply Style LoRA"),
    "ReelBrushInject": (Inject, "Inject Features"),
    "ReelBrushPromptMask": (PromptMask, "Mask from Prompt"),
}
