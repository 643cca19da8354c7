"""DiffStyler's nodes around a style LoRA: regions, injection, a mask from a word. Declarations only."""

from . import inject, masks, regions, unet
from .declare import CATEGORY, RANGE, choice, decimal, given, part

MODEL = "A Stable Diffusion 1.x, 2.x or XL model; LoRAs and ControlNets welcome."
BLOCKS = (
    'Decoder blocks, in order: "4-11", "4", "all", "last 3", "none". SD1.x and SD2.x have 0-11, SDXL 0-8.'
)


class ApplyStyleLoRA:
    """Low-rank branches at run time, a region per node (eqs. 6 and 7)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Puts a style LoRA on the model, inside a mask if one is connected. Chain it, one region per node: "
        "all regions are computed in one batched call, with one copy of the weights. Outside all masks the "
        "base model speaks, or with `content` the inverted clip stays as it is. Strength 0 takes the region "
        "out. Core's LoRA hooks with masked conditioning also make regions; here nothing is patched from "
        "step to step, masks may move, and Inject Features keeps the content's layout."
    )
    SEARCH_ALIASES = ("regional lora", "lora mask", "diffstyler", "local style transfer", "attention couple")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A copy of the model with one region more; the model that came in is unchanged.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", f"{MODEL} Or the output of another Apply Style LoRA."),
                "lora": given("REELBRUSH_LORA", "From Train Style LoRA or Load Style LoRA."),
                "strength": decimal(
                    1.0, -4.0, 4.0, "How much of the LoRA; 0 takes the region out of the chain.", 0.05
                ),
            },
            "optional": {
                "mask": given(
                    "MASK",
                    "Where the style goes (white): one mask, or one per frame; any size, soft edges welcome, "
                    "from Mask from Prompt, a SAM pack or a painted picture. Overlapping regions share. "
                    "Without a mask the LoRA is everywhere, in the other regions too.",
                ),
                "positive": given(
                    "CONDITIONING", "The region's own prompt; without it the sampler's positive serves."
                ),
                "content": given(
                    "REELBRUSH_TRAJECTORY",
                    "The clip's DDIM Inversion: outside all masks it stays as it is (eq. 6). Connect it to "
                    "every node of the chain, and sample from the inversion's noise with its sigmas.",
                ),
            },
        }

    def patch(self, model, lora, strength, mask=None, positive=None, content=None):
        mask = None if mask is None else mask.reshape(-1, *mask.shape[-2:])
        region = regions.Region(lora, strength, mask, positive)
        if strength == 0 or (region.black and content is None):
            return (model,)
        return (regions.apply(model, region, content),)


class Inject:
    """Feature and attention injection (eqs. 4 and 5)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Keeps a clip's layout while the model paints it anew: features and attention of the clip's own "
        "inversion are put into the sampling (DiffStyler; Plug-and-Play is feature_blocks 4, "
        "attention_blocks 4-11, cross_attention off). Sample from the inversion's noise with its sigmas, "
        "with any style LoRA, prompt and ControlNet. The source costs one model call per frame and step, for "
        "all regions together. Ends of 0, or blocks none, give the model back as it is."
    )
    SEARCH_ALIASES = ("plug and play", "pnp", "diffstyler", "feature injection", "attention injection")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (
        "A copy of the model that follows the content's layout; the model that came in is unchanged.",
    )
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", MODEL),
                "content": given("REELBRUSH_TRAJECTORY", "The clip's DDIM Inversion with this model."),
                "feature_blocks": (
                    "STRING",
                    {"default": "4-11", "tooltip": f"Where features are put in. Official code: 4. {BLOCKS}"},
                ),
                "attention_blocks": (
                    "STRING",
                    {
                        "default": "all",
                        "tooltip": f"Where queries and keys are put in. Official code: 4-11. {BLOCKS}",
                    },
                ),
                "feature_end": part(0.6, f"Until when features are: 30 of the paper's 50 steps. {RANGE}"),
                "attention_end": part(0.5, f"Until when attention is: 25 of the paper's 50 steps. {RANGE}"),
                "self_attention": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Shape and place of things: queries and keys, values stay."},
                ),
                "cross_attention": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Which place listens to the prompt. Official code: off."},
                ),
                "blend": choice(
                    inject.BLENDS,
                    "replace: queries and keys are the content's (paper). fade: less of them in the last "
                    "half, by min(1, 2t/1000) (official code).",
                ),
            },
            "optional": {
                "outside_end": part(
                    0.0,
                    "With masked style LoRAs: until when both are put in outside all masks, too. Paper: 0, "
                    f"official code: 1. {RANGE}",
                ),
            },
        }

    def patch(
        self,
        model,
        content,
        feature_blocks,
        attention_blocks,
        feature_end,
        attention_end,
        self_attention,
        cross_attention,
        blend,
        outside_end=0.0,
    ):
        every = unet.blocks(model)
        picked = {
            name: [every[i] for i in unet.pick(expression, len(every), "block")]
            for name, expression in (("features", feature_blocks), ("attention", attention_blocks))
        }
        layers = [unet.layers(model)[i] for block in picked["attention"] for i in block.layers]
        kinds = [k for k, on in zip(inject.KINDS, (self_attention, cross_attention), strict=True) if on]
        ends = [unet.sigma_range(model, 0.0, end) for end in (feature_end, attention_end, outside_end)]
        nothing = all(end.empty for end in ends) or not (picked["features"] or (layers and kinds))
        injection = inject.Inject(content, picked["features"], layers, *ends, kinds, blend)
        content.require(unet.family(model))
        if nothing:
            return (model,)
        patched = model.clone()
        injection.attach(patched)
        return (patched,)


class PromptMask:
    """Cross-attention of an inverted clip as a mask."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds where a clip shows what a word says, from the model's own attention: no other model is "
        "needed. For sharp outlines take a SAM or FastSAM pack (the paper does): its MASK goes into Apply "
        "Style LoRA as it is."
    )
    SEARCH_ALIASES = ("segment", "mask from text", "attention mask", "daam", "sam", "fastsam")
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("mask", "heatmap")
    OUTPUT_TOOLTIPS = (
        "White where the map is above the threshold, one per frame.",
        "The map itself, black over red and yellow to white: look at it to choose the threshold.",
    )
    FUNCTION = "find"

    @classmethod
    def INPUT_TYPES(cls):
        count = {"default": 5, "min": 1, "max": 50, "tooltip": "How many noise levels are averaged."}
        refine = {
            "default": 2,
            "min": 0,
            "max": 10,
            "tooltip": "How often the map is spread by self-attention: 0 leaves it rough, more fills and "
            "smooths.",
        }
        blocks = {"default": "3-8", "tooltip": f"Where attention is read. {BLOCKS}"}
        return {
            "required": {
                "model": given("MODEL", "The model that the trajectory was made with."),
                "clip": given("CLIP", "Its text encoder."),
                "trajectory": given("REELBRUSH_TRAJECTORY", "The clip's DDIM Inversion."),
                "text": (
                    "STRING",
                    {
                        "default": "a deer on the grass",
                        "multiline": True,
                        "tooltip": "What the clip shows: naming the rest too keeps the words apart.",
                    },
                ),
                "words": (
                    "STRING",
                    {
                        "default": "deer",
                        "tooltip": "What is masked: words as they stand in the text, commas between several. "
                        "Empty: the whole text.",
                    },
                ),
                "threshold": decimal(
                    0.5, 0.0, 1.0, "Higher is a smaller mask; the map reaches from 0 to 1 over the clip."
                ),
            },
            "optional": {
                "steps": ("INT", count),
                "refine": ("INT", refine),
                "blocks": ("STRING", blocks),
                "start_percent": part(0.3, f"The noisiest level that is read. {RANGE}"),
                "end_percent": part(0.8, f"The cleanest level that is read. {RANGE}"),
            },
        }

    def find(
        self,
        model,
        clip,
        trajectory,
        text,
        words,
        threshold,
        steps=5,
        refine=2,
        blocks="3-8",
        start_percent=0.3,
        end_percent=0.8,
    ):
        trajectory.require(unet.family(model))
        places = masks.positions(clip, text, words)
        every = unet.blocks(model)
        numbers = [i for b in unet.pick(blocks, len(every), "block") for i in every[b].layers]
        if not numbers:
            raise ValueError(f"decoder blocks {blocks!r} hold no attention: name others, like 3-8")
        chosen = [unet.layers(model)[i] for i in numbers]
        levels = masks.levels(model, trajectory, start_percent, end_percent, steps)
        found = masks.heat(model, trajectory, masks.encoded(clip, text), places, chosen, levels, refine)
        large = masks.enlarged(found)
        return ((large >= threshold).float(), masks.coloured(large))


NODES = {
    "ReelBrushApplyStyleLoRA": (ApplyStyleLoRA, "Apply Style LoRA"),
    "ReelBrushInject": (Inject, "Inject Features"),
    "ReelBrushPromptMask": (PromptMask, "Mask from Prompt"),
}
