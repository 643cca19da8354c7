"""Nodes with which a picture attends to another one."""

from torch import Tensor

from ..common.inputs import (
    SAMPLING_RANGE,
    choice,
    connection,
    decimal,
    layers,
    model,
    percent_range,
    seed,
    strength,
    trajectory,
)
from . import CATEGORY
from .inversion.trajectory import Trajectory
from .patching.feature_cache import CACHES, FeatureCache
from .patching.layers import family, pick_layers, sigma_range
from .reference import MODES, ReferencePatch, match, noised_levels
from .zstar import MIXES, ZStarPatch, attach_content_pull

_CACHE = choice(
    CACHES,
    "Where the style's features are kept. gpu: the last noise levels, for one run. cpu: all, as long as the "
    "trajectory exists: a second run computes nothing. recompute: nowhere. The result is the same.",
)
_PATCHED = ("A copy of the model that attends to the other picture; the input model is unchanged.",)


def _is_black(mask: Tensor | None) -> bool:
    return mask is not None and not bool((mask > 0).any())


class ZStar:
    """Z*, eq. 12 (and 7, 8), on ComfyUI's MODEL."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Style transfer without training (Z*): while the model samples, the picture's attention also attends "
        "to the style's features and takes those that resemble it. Sample from the content's DDIM Inversion "
        "noise, added noise off, empty prompt, CFG 1. The style is computed once for all frames. With layers "
        "none, an empty range or a black mask, the model is returned unchanged."
    )
    SEARCH_ALIASES = ("zstar", "style transfer", "attention reweighting", "training-free style")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = _PATCHED
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model(),
                "style": trajectory(
                    "The DDIM Inversion of one or more style pictures, or Reference from Noise."
                ),
                "style_scale": decimal(
                    1.2, 0.0, 5.0, "λ of eq. 12. Higher is more style; 0 is not off.", 0.05
                ),
                "layers": layers("10-15"),
                **percent_range(0.167, f"Paper: steps 5 to 30 of 30. {SAMPLING_RANGE}"),
                "mix": choice(
                    MIXES,
                    "reweight: style and content in one softmax (eq. 12). swap: only the style (eq. 7). add: "
                    "a weighted sum of both attentions (eq. 8).",
                ),
                "add_weight": strength("λ of eq. 8, for mix = add: 0 is off, 1 is swap.", 0.5),
            },
            "optional": {
                "content": trajectory("The frames' DDIM Inversion; for content_pull."),
                "content_pull": decimal(
                    0.0,
                    0.0,
                    1.0,
                    "Share by which latents move to the content's inversion. Official: 0.01.",
                    0.005,
                ),
                "style_branch_scale": decimal(
                    0.0,
                    0.0,
                    5.0,
                    "The style attends to the content; twice the work. Official code: 1.5.",
                    0.05,
                ),
                "style_mask": connection("MASK", "The part of the style picture that is used (white)."),
                "content_mask": connection(
                    "MASK", "Where the style is applied (white), one or one per frame."
                ),
                "cache": _CACHE,
            },
        }

    def patch(
        self, model, style, layers, start_percent, end_percent, content=None, content_pull=0.0, **settings
    ):
        chosen = pick_layers(model, layers)
        active = sigma_range(model, start_percent, end_percent)
        if content_pull > 0:
            if content is None:
                raise ValueError(
                    "content_pull needs the content's latents: connect `content`, the frames' DDIM Inversion"
                )
            content.require(family(model))
        masks = (settings.get("style_mask"), settings.get("content_mask"))
        off = not chosen or active.empty or any(_is_black(mask) for mask in masks)
        off = off or (settings["mix"] == "add" and settings["add_weight"] == 0)
        if off and content_pull == 0:
            return (model,)
        patched = model.clone()
        if not off:
            features = FeatureCache(model, style, chosen, cache=settings.pop("cache", "gpu"))
            ZStarPatch(features, chosen, active, **settings).attach(patched)
        if content_pull > 0:
            attach_content_pull(patched, content, content_pull)
        return (patched,)


class ReferenceAttention:
    """Reference-only attention and StyleID."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lets the picture's self-attention attend to a reference picture: in addition to its own tokens "
        "(concat), instead of them (swap), or as in StyleID (style-id: swap with the content's own "
        "queries and sharper attention; start it from Match Latent Statistics)."
    )
    SEARCH_ALIASES = ("reference only", "styleid", "style injection", "attention swap", "consistent style")
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = _PATCHED
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model(),
                "reference": trajectory("The reference: Reference from Noise, or a DDIM Inversion."),
                "mode": choice(MODES, "concat: both. swap: only the reference. style-id: as in StyleID."),
                "query_keep": strength("γ of style-id: the share of the content's own query.", 0.75),
                "temperature": decimal(1.5, 0.1, 5.0, "τ of style-id: logits are multiplied by it.", 0.05),
                "layers": layers("last 6"),
                **percent_range(),
            },
            "optional": {
                "content": trajectory("The frames' DDIM Inversion; style-id needs it."),
                "cache": _CACHE,
            },
        }

    def patch(
        self, model, reference, layers, start_percent, end_percent, content=None, cache="gpu", **settings
    ):
        chosen = pick_layers(model, layers)
        active = sigma_range(model, start_percent, end_percent)
        if not chosen or active.empty:
            return (model,)
        keys = FeatureCache(model, reference, chosen, cache=cache)
        blends = settings["mode"] == "style-id" and settings["query_keep"] > 0 and content is not None
        queries = FeatureCache(model, content, chosen, "q", frames_apart=True) if blends else None
        patched = model.clone()
        ReferencePatch(keys, chosen, active, content=queries, **settings).attach(patched)
        return (patched,)


class ReferenceNoise:
    """A reference without an inversion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes a trajectory of a picture by adding one fixed noise at every level: a quick reference for "
        "Reference Attention or Z*. An inversion is closer to the model's own features of the picture."
    )
    SEARCH_ALIASES = ("reference only", "noised reference", "style reference")
    RETURN_TYPES = ("REELBRUSH_TRAJECTORY",)
    RETURN_NAMES = ("trajectory",)
    OUTPUT_TOOLTIPS = ("The picture at every noise level, for Reference Attention and Z*.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": connection("LATENT", "The reference picture, encoded with the model's VAE."),
                "model": model("The model that samples with this reference."),
                "positive": connection("CONDITIONING", "A prompt for the picture; the empty text works."),
                "sigmas": connection("SIGMAS", "The noise levels of the sampling, from a scheduler node."),
                "seed": seed("Seed of the noise."),
            }
        }

    def make(self, latent, model, positive, sigmas, seed):
        clean = model.model.process_latent_in(latent["samples"].float())
        latents, levels = noised_levels(clean, sigmas, seed)
        return (Trajectory(latents, levels, positive, family(model), "noised"),)


class MatchLatent:
    """StyleID's initial latent: the content's noise with the style's statistics."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Gives each channel of a latent the mean and standard deviation of a reference latent (AdaIN). "
        "Use it on the noise of a DDIM Inversion before sampling, with the style's noise as the reference."
    )
    SEARCH_ALIASES = ("adain", "styleid", "latent color match")
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latent with the reference's statistics.",)
    FUNCTION = "match"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": connection("LATENT", "The latent to change, frame by frame."),
                "reference": connection("LATENT", "The latent with the statistics: one frame, or as many."),
                "strength": strength("0 keeps the latent as it is."),
            }
        }

    def match(self, latent, reference, strength):
        if strength == 0:
            return (latent,)
        return ({**latent, "samples": match(latent["samples"], reference["samples"], strength)},)


NODES = {
    "ReelBrushZStar": (ZStar, "Z* Style Attention"),
    "ReelBrushReferenceAttention": (ReferenceAttention, "Reference Attention"),
    "ReelBrushReferenceNoise": (ReferenceNoise, "Reference from Noise"),
    "ReelBrushMatchLatent": (MatchLatent, "Match Latent Statistics"),
}
