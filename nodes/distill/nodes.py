"""Attention Distillation nodes: optimize latents, or sample with guidance."""

from ..common.inputs import choice, connection, decimal, integer, model, percent, seed, switch, text
from ..common.plot import loss_plot
from . import CATEGORY, NULL, nodes_texture, run
from .guided import Guide, sampler
from .optimize import DistillRecipe

_SIZE = integer(512, 64, 8192, "In pixels; used when neither content nor start is connected.", 8)
_STYLE = connection("LATENT", "One or several style pictures through VAE Encode; they are used together.")
_LAYERS = text(
    "last 6",
    "Self-attention layers in execution order (0-15 on SD1.5, 0-69 on SDXL): 'last 6' is the paper's; '8-15' "
    "or 'all' also transfer larger structures.",
)
_SCALE = decimal(
    1.0,
    0.1,
    4.0,
    "Multiplies the queries that attend to the style: above 1 each attends to fewer places.",
    0.05,
)
_MASKS = {
    "style_mask": connection(
        "MASK",
        "Labels of the style as grey levels, for target_mask: each region uses the style of its label.",
    ),
    "target_mask": connection(
        "MASK", "Labels of the result as grey levels of style_mask; one mask, or one per frame."
    ),
}
_ON_NAN = choice(
    ["stop", "return last good"],
    "When half precision overflows: stop with an error, or return the last valid latent.",
)


class ADOptimize:
    """Algorithm 1: style and appearance transfer, texture synthesis, whole clips."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Redraws latents in the style of reference pictures by optimization (Attention Distillation, "
        "algorithm 1). With content: style or appearance transfer, for a picture or a clip. Without content: "
        "texture synthesis from noise."
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
                "model": model("SD1.x, SD2.x or SDXL, also with LoRAs. It is not changed."),
                "null": NULL,
                "style": _STYLE,
                "width": _SIZE,
                "height": _SIZE,
                "steps": integer(200, 0, 10000, "Iterations; textures need 100-300. 0 is off."),
                "learning_rate": decimal(0.05, 0.0, 1.0, "Adam's learning rate.", 0.001),
                "content_weight": decimal(
                    0.25,
                    0.0,
                    10.0,
                    "λ, weight of the content's layout: 0.25 style, 0.2 appearance, 0.15 labels.",
                ),
                "attention_scale": _SCALE,
                "layers": _LAYERS,
                "warm_steps": integer(
                    60, 0, 10000, "With a flow: steps of a frame that starts from the one before. 0: off."
                ),
                "temporal_weight": decimal(
                    0.0,
                    0.0,
                    100.0,
                    "Weight of the distance to the warped previous frame, where the flow is valid.",
                    0.05,
                ),
                "seed": seed("Seed of the noise that a texture starts from."),
                "frames_per_call": integer(
                    0,
                    0,
                    256,
                    "Frames that the UNet evaluates at once; 0: from free memory, 1 with warm starts.",
                ),
            },
            "optional": {
                "content": connection("LATENT", "What to redraw: frames through VAE Encode."),
                "start": connection("LATENT", "Where to start instead of from the content or from noise."),
                **_MASKS,
                "flow": connection(
                    "REELBRUSH_FLOW",
                    "Optical Flow (stride 1) of the clip: frames start from the one before, except after "
                    "cuts.",
                ),
                "on_nan": _ON_NAN,
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
            DistillRecipe(
                learning_rate, content_weight, attention_scale, temporal_weight, frames_per_call, keep
            ),
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
        nonzero = {name: values for name, values in curves.items() if any(values)}
        return latent, loss_plot(nonzero, "Attention distillation")


class ADSampler:
    """Algorithm 2: attention distillation guided sampling."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "A sampler that samples in the style of reference pictures (Attention Distillation, algorithm 2), "
        "for SamplerCustom and SamplerCustomAdvanced. Prompt, guidance scale, ControlNet and LoRA work as "
        "usual."
    )
    SEARCH_ALIASES = ("attention distillation", "style guidance", "guided sampling", "style reference", "AD")
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = (
        "For SamplerCustom or SamplerCustomAdvanced; the paper uses ddim_uniform with 50 steps.",
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "style": _STYLE,
                "null": NULL,
                "iterations": integer(2, 0, 100, "Adam steps at each noise level. 0 is off: Euler."),
                "learning_rate": decimal(
                    0.015, 0.0, 1.0, "Adam's learning rate: 0.015 for text, 0.05 for textures.", 0.001
                ),
                "adain": switch(True, "Give the latent the style's mean and standard deviation first."),
                "content_weight": decimal(0.0, 0.0, 10.0, "Weight of the content's layout; needs content."),
                "layers": _LAYERS,
                "attention_scale": _SCALE,
                "start_percent": percent(0.0, "Where in the sampling guidance begins."),
                "end_percent": percent(1.0, "Where in the sampling guidance ends."),
                "seed": seed("Seed of the noise for the references."),
            },
            "optional": {
                "content": connection(
                    "LATENT", "A picture whose layout to keep; one, or one per sampled frame."
                ),
                **_MASKS,
                "frames_per_call": integer(
                    0, 0, 256, "Frames in one evaluation with gradients; 0: from free memory."
                ),
                "on_nan": _ON_NAN,
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
        keep = on_nan != "stop"
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
            DistillRecipe(learning_rate, content_weight, attention_scale, keep_last_good=keep),
            frames_per_call,
        )
        return (sampler(guide, seed),)


NODES = {
    "ReelBrushADOptimize": (ADOptimize, "Distill Style (Optimize)"),
    "ReelBrushADSampler": (ADSampler, "Distill Style (Sampler)"),
    **nodes_texture.NODES,
}
