"""Attention Distillation nodes: optimize latents, or sample with guidance."""

from ..common.inputs import (
    choice,
    connection,
    decimal,
    integer,
    model,
    percent,
    picture_weights,
    seed,
    switch,
    text,
)
from ..common.plot import loss_plot
from . import CATEGORY, NULL, nodes_texture, nodes_video, run
from .clip import Schedule
from .guided import Guide, sampler
from .optimize import DistillRecipe

_SIZE = integer(512, 64, 8192, "In pixels; used when neither content nor start is connected.", 8)
_STYLE = connection("LATENT", "One or several style pictures through VAE Encode; they are used together.")
_LAYERS = text(
    "last 6",
    "Self-attention layers in execution order (0-15 on SD1.5, 0-69 on SDXL). 'last 6': the paper's; more "
    "layers, such as '8-15', also transfer larger structures.",
)
_SCALE = decimal(1.0, 0.1, 4.0, "Above 1 every token attends to fewer places of the style.", 0.05)
_MASKS = {
    "style_mask": connection("MASK", "Labels of the style as grey levels, for target_mask."),
    "target_mask": connection("MASK", "Where each label's style goes; one mask, or one per frame."),
}
_ON_NAN = choice(["stop", "return last good"], "After an overflow: an error, or the last valid latent.")
_STYLES = {
    "style_weights": text("", "One number per style picture, such as 1, 0.5. Empty: equal weights."),
    "style_mix": choice(
        ["one softmax", "mean"],
        "How several styles mix. one softmax: each place takes the style that resembles it; a style of "
        "weight 2 counts twice. mean: each place takes the weighted mean of the styles, an interpolation.",
    ),
}


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
                    60, 0, 10000, "With a flow: steps of each frame after a shot's first; 0: off."
                ),
                "temporal_weight": decimal(
                    0.0, 0.0, 100.0, "With a flow: keeps a frame close to the moved previous result.", 0.05
                ),
                "seed": seed("Seed of the noise that a texture starts from."),
                "frames_per_call": integer(
                    0, 0, 256, "Frames that the UNet evaluates at once; 0: automatic."
                ),
            },
            "optional": {
                "content": connection("LATENT", "What to redraw: frames through VAE Encode."),
                "start": connection("LATENT", "Where to start instead of from the content or from noise."),
                **_MASKS,
                "flow": connection(
                    "REELBRUSH_FLOW",
                    "Optical Flow (stride 1) of the clip: a frame takes over what changed in the one before.",
                ),
                "on_nan": _ON_NAN,
                "batch_size": integer(1, 1, 64, "Textures from noise: how many, each from its own noise."),
                "iterations": integer(1, 1, 100, "Adam steps at each timestep; steps x iterations in all."),
                "fixed_timestep": integer(
                    0,
                    0,
                    999,
                    "0: the timestep falls, as in the paper. Else all steps use this one: large for coarse "
                    "structure, small for fine detail (Fig. 16).",
                ),
                "noised": switch(
                    False,
                    "Noise the style and the content to each timestep before they are read (Fig. 16, case "
                    "2). The paper found it slower and noisier.",
                ),
                **_STYLES,
            },
        }

    def distill(
        self,
        width,
        height,
        steps,
        warm_steps,
        frames_per_call,
        style_mask=None,
        target_mask=None,
        on_nan="stop",
        iterations=1,
        fixed_timestep=0,
        style_mix="one softmax",
        **settings,
    ):
        weights = ("learning_rate", "content_weight", "attention_scale", "temporal_weight")
        recipe = DistillRecipe(
            **{name: settings.pop(name) for name in weights},
            frames_per_call=frames_per_call,
            keep_last_good=on_nan != "stop",
        )
        latent, curves = run.optimized(
            **settings,
            recipe=recipe,
            schedule=Schedule(steps, warm_steps, iterations, fixed_timestep),
            size=(height, width),
            masks=(style_mask, target_mask),
            blend=style_mix == "mean",
        )
        nonzero = {name: values for name, values in curves.items() if any(values)}
        return latent, loss_plot(nonzero, "Attention distillation")


class ADSampler:
    """Algorithm 2: attention distillation guided sampling."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "A sampler that samples in the style of reference pictures (Attention Distillation, algorithm 2), "
        "for SamplerCustom and SamplerCustomAdvanced. Prompt, guidance scale, ControlNet and LoRA work as "
        "usual. It steps with Euler, or with any connected sampler."
    )
    SEARCH_ALIASES = ("attention distillation", "style guidance", "guided sampling", "style reference", "AD")
    RETURN_TYPES = ("SAMPLER",)
    RETURN_NAMES = ("sampler",)
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
                "iterations": integer(2, 0, 100, "Adam steps per noise level. 0 is off: the plain sampler."),
                "learning_rate": decimal(
                    0.015, 0.0, 1.0, "0.015 for text to image, 0.05 for textures.", 0.001
                ),
                "adain": switch(True, "Give the latent the style's mean and standard deviation first."),
                "content_weight": decimal(0.0, 0.0, 10.0, "Weight of the content's layout."),
                "layers": _LAYERS,
                "attention_scale": _SCALE,
                "start_percent": percent(0.0, "Where in the sampling guidance begins."),
                "end_percent": percent(1.0, "Where in the sampling guidance ends."),
                "seed": seed("Seed of the noise for the references."),
            },
            "optional": {
                "content": connection("LATENT", "The layout to keep: one picture, or one per frame."),
                **_MASKS,
                "frames_per_call": integer(
                    0, 0, 256, "Frames that the UNet evaluates at once; 0: automatic."
                ),
                "on_nan": _ON_NAN,
                "sampler": connection(
                    "SAMPLER",
                    "Steps from level to level instead of Euler, from KSamplerSelect. It starts anew at each "
                    "guided level, so that a multi-step sampler is of first order there.",
                ),
                **_STYLES,
            },
        }

    def make(
        self,
        seed,
        learning_rate,
        content_weight,
        attention_scale,
        on_nan="stop",
        style_weights="",
        style_mix="one softmax",
        **settings,
    ):
        keep = on_nan != "stop"
        recipe = DistillRecipe(learning_rate, content_weight, attention_scale, keep_last_good=keep)
        for name in ("style", "content"):
            settings[name] = run.samples(settings.get(name), name)
        settings["style_weights"] = picture_weights(style_weights, len(settings["style"]))
        settings["blend"] = style_mix == "mean"
        return (sampler(Guide(recipe=recipe, **settings), seed),)


NODES = {
    "ReelBrushADOptimize": (ADOptimize, "Distill Style (Optimize)"),
    "ReelBrushADSampler": (ADSampler, "Distill Style (Sampler)"),
    **nodes_texture.NODES,
    **nodes_video.NODES,
}
