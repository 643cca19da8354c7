"""Attention Distillation nodes: declarations only. The methods are beside this file."""

from ..common.plot import loss_plot
from . import run, texture_nodes
from .guided import Guide, sampler
from .inputs import CATEGORY, LAYERS, NULL, ON_NAN, SCALE, STYLE, STYLE_MASK, TARGET_MASK, number, seed
from .optimize import Recipe


class ADOptimize:
    """Algorithm 1: style and appearance transfer, texture synthesis, whole clips."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Redraws latents in the style of reference pictures by optimisation (Attention Distillation, "
        "algorithm 1). With content: style or appearance transfer, for a picture or a clip. "
        "Without: texture synthesis from noise."
    )
    SEARCH_ALIASES = (
        "attention distillation",
        "style transfer",
        "appearance transfer",
        "texture synthesis",
        "AD",
    )
    RETURN_TYPES = ("LATENT", "IMAGE")
    RETURN_NAMES = ("latent", "plot")
    OUTPUT_TOOLTIPS = ("The redrawn frames; decode them with the VAE.", "The losses over the steps.")
    FUNCTION = "distill"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "SD1.x, SD2.x or SDXL; LoRAs on it count, it is not changed."},
                ),
                "null": NULL,
                "style": STYLE,
                "width": number("INT", 512, 64, 8192, "Pixels, when neither content nor start is given.", 8),
                "height": number("INT", 512, 64, 8192, "Pixels, when neither content nor start is given.", 8),
                "steps": number("INT", 200, 0, 10000, "Iterations; textures take 100-300. 0 is off."),
                "learning_rate": number("FLOAT", 0.05, 0.0, 1.0, "Adam's step on the latent.", 0.001),
                "content_weight": number(
                    "FLOAT",
                    0.25,
                    0.0,
                    10.0,
                    "λ, how firmly the layout holds: 0.25 style, 0.2 appearance, 0.15 labels.",
                    0.01,
                ),
                "attention_scale": SCALE,
                "layers": LAYERS,
                "warm_steps": number(
                    "INT",
                    60,
                    0,
                    10000,
                    "With a flow: steps of a frame that starts as changed as the one before. 0: off.",
                ),
                "temporal_weight": number(
                    "FLOAT",
                    0.0,
                    0.0,
                    100.0,
                    "Pull towards the warped frame before, where the flow holds.",
                    0.05,
                ),
                "seed": seed("Decides the noise that a texture starts from."),
                "frames_per_call": number(
                    "INT",
                    0,
                    0,
                    256,
                    "Frames that the UNet sees at once; 0: from free memory, 1 for warm ones.",
                ),
            },
            "optional": {
                "content": ("LATENT", {"tooltip": "What to redraw: frames through VAE Encode."}),
                "start": (
                    "LATENT",
                    {"tooltip": "Where to start instead of at the content or at noise."},
                ),
                "style_mask": STYLE_MASK,
                "target_mask": TARGET_MASK,
                "flow": (
                    "REELBRUSH_FLOW",
                    {"tooltip": "Optical Flow (stride 1) of the clip: frames start warm, cuts afresh."},
                ),
                "on_nan": ON_NAN,
            },
        }

    def distill(
        self,
        model,
        null,
        style,
        width,
        height,
        steps,
        learning_rate,
        content_weight,
        attention_scale,
        layers,
        warm_steps,
        temporal_weight,
        seed,
        frames_per_call,
        content=None,
        start=None,
        style_mask=None,
        target_mask=None,
        flow=None,
        on_nan="stop",
    ):
        keep = on_nan != "stop"
        latent, curves = run.optimized(
            model,
            null,
            style,
            Recipe(learning_rate, content_weight, attention_scale, temporal_weight, frames_per_call, keep),
            content=content,
            start=start,
            size=(height, width),
            steps=steps,
            warm_steps=warm_steps,
            layers=layers,
            masks=(style_mask, target_mask),
            flow=flow,
            seed=seed,
        )
        shown = {name: values for name, values in curves.items() if any(values)}
        return latent, loss_plot(shown, "Attention distillation")


class ADSampler:
    """Algorithm 2: attention distillation guided sampling."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "A sampler that draws in the style of reference pictures (Attention Distillation, algorithm 2), for "
        "SamplerCustom and SamplerCustomAdvanced. Prompt, guidance scale, ControlNet and LoRA work as ever."
    )
    SEARCH_ALIASES = ("attention distillation", "style guidance", "guided sampling", "style reference", "AD")
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = (
        "For SamplerCustom or SamplerCustomAdvanced; ddim_uniform with 50 steps is the paper's.",
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "style": STYLE,
                "null": NULL,
                "iterations": number(
                    "INT", 2, 0, 100, "Adam steps at each noise level. 0 is off: plain Euler."
                ),
                "learning_rate": number(
                    "FLOAT", 0.015, 0.0, 1.0, "Adam's step; 0.015 for text, 0.05 for textures.", 0.001
                ),
                "adain": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Give the latent the style's mean and spread first."},
                ),
                "content_weight": number(
                    "FLOAT", 0.0, 0.0, 10.0, "How firmly the content's layout holds; needs content.", 0.01
                ),
                "layers": LAYERS,
                "attention_scale": SCALE,
                "start_percent": number(
                    "FLOAT", 0.0, 0.0, 1.0, "Where in the sampling guidance begins.", 0.001
                ),
                "end_percent": number("FLOAT", 1.0, 0.0, 1.0, "Where in the sampling guidance ends.", 0.001),
                "seed": seed("Decides the noise that the references are noised with."),
            },
            "optional": {
                "content": (
                    "LATENT",
                    {"tooltip": "A picture whose layout to keep; one, or one per sampled frame."},
                ),
                "style_mask": STYLE_MASK,
                "target_mask": TARGET_MASK,
                "frames_per_call": number(
                    "INT", 0, 0, 256, "Frames that share a pass with gradients; 0 decides from free memory."
                ),
                "on_nan": ON_NAN,
            },
        }

    def make(
        self,
        style,
        null,
        iterations,
        learning_rate,
        adain,
        content_weight,
        layers,
        attention_scale,
        start_percent,
        end_percent,
        seed,
        content=None,
        style_mask=None,
        target_mask=None,
        frames_per_call=0,
        on_nan="stop",
    ):
        recipe = Recipe(learning_rate, content_weight, attention_scale, keep_last_good=on_nan != "stop")
        guide = Guide(
            run.samples(style, "style"),
            null,
            run.samples(content, "content"),
            iterations,
            adain,
            layers,
            start_percent,
            end_percent,
            style_mask,
            target_mask,
            recipe,
            frames_per_call,
        )
        return (sampler(guide, seed),)


NODES = {
    "ReelBrushADOptimize": (ADOptimize, "Distill Style (Optimize)"),
    "ReelBrushADSampler": (ADSampler, "Distill Style (Sampler)"),
    **texture_nodes.NODES,
}
