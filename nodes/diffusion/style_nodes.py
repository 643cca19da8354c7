"""Nodes that let a picture look at another one: declarations only. The methods are beside this file."""

from torch import Tensor

from . import unet
from .declare import CACHE, CATEGORY, LAYERS, RANGE, choice, decimal, given, part
from .reference import MODES, ReferenceAttention, match, noised
from .store import CACHES, Reference
from .trajectory import Trajectory
from .zstar import MIXES, ContentPull, ZStar


def _nothing(mask: Tensor | None) -> bool:
    return mask is not None and not bool((mask > 0).any())


class ZStarNode:
    """Z*, eq. 12 (and 7, 8) in ComfyUI's own MODEL."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Zero-shot style transfer (Z*): while the model samples, the picture's attention also looks at the "
        "style's features and takes what resembles. Sample from the content's DDIM Inversion noise, added "
        "noise off, empty prompt, CFG 1. The style is computed once for all frames. Layers none, an empty "
        "range or a black mask give the model back as it is."
    )
    SEARCH_ALIASES = ("zstar", "style transfer", "attention reweighting", "training-free style")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (
        "A copy of the model with the style in its attention; the model that came in is unchanged.",
    )
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given(
                    "MODEL", "A Stable Diffusion 1.x, 2.x or XL model; LoRAs and ControlNets welcome."
                ),
                "style": given(
                    "REELBRUSH_TRAJECTORY",
                    "The style picture's DDIM Inversion with this model (or Reference from Noise). Several "
                    "pictures are looked at together.",
                ),
                "style_scale": decimal(
                    1.2,
                    0.0,
                    5.0,
                    "λ of eq. 12: the style's logits are multiplied by it. Higher is more style; "
                    "0 is not off.",
                    0.05,
                ),
                "layers": ("STRING", {"default": "10-15", "tooltip": LAYERS}),
                "start_percent": part(0.167, f"Paper: steps 5 to 30 of 30. {RANGE}"),
                "end_percent": part(1.0),
                "mix": choice(
                    MIXES,
                    "reweight: style and content in one softmax (eq. 12). swap: only the style (eq. 7). add: "
                    "a weighted sum of both attentions (eq. 8).",
                ),
                "add_weight": decimal(0.5, 0.0, 1.0, "λ of eq. 8, for mix = add: 0 is off, 1 is swap.", 0.05),
            },
            "optional": {
                "content": given("REELBRUSH_TRAJECTORY", "The frames' DDIM Inversion; for content_pull."),
                "content_pull": decimal(
                    0.0,
                    0.0,
                    1.0,
                    "Moves the latents towards the content's inversion by this share at every step. "
                    "Official code: 0.01.",
                    0.005,
                ),
                "style_branch_scale": decimal(
                    0.0,
                    0.0,
                    5.0,
                    "Official code: 1.5. Above 0 the style looks back at the content: twice the work, "
                    "nothing is shared between frames, and the style must have the content's size.",
                    0.05,
                ),
                "style_mask": given("MASK", "Which part of the style picture may be looked at (white)."),
                "content_mask": given("MASK", "Where the style goes (white); one mask, or one per frame."),
                "cache": choice(CACHES, CACHE),
            },
        }

    def patch(
        self,
        model,
        style,
        style_scale,
        layers,
        start_percent,
        end_percent,
        mix,
        add_weight,
        content=None,
        content_pull=0.0,
        style_branch_scale=0.0,
        style_mask=None,
        content_mask=None,
        cache="gpu",
    ):
        chosen = unet.pick_layers(model, layers)
        when = unet.sigma_range(model, start_percent, end_percent)
        if content_pull > 0 and content is None:
            raise ValueError(
                "content_pull needs the content's latents: connect `content`, the frames' DDIM Inversion"
            )
        if content_pull > 0:
            content.require(unet.family(model))
        off = not chosen or when.empty or _nothing(style_mask) or _nothing(content_mask)
        off = off or (mix == "add" and add_weight == 0)
        if off and content_pull == 0:
            return (model,)
        patched = model.clone()
        if not off:
            reference = Reference(model, style, chosen, cache=cache)
            settings = (style_scale, mix, add_weight, style_branch_scale, style_mask, content_mask)
            ZStar(reference, chosen, when, *settings).attach(patched)
        if content_pull > 0:
            ContentPull(content, content_pull).attach(patched)
        return (patched,)


class ReferenceAttentionNode:
    """Reference-only attention and StyleID."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lets the picture's self-attention look at a reference picture: beside its own tokens (concat), in "
        "their place (swap), or as StyleID does (style-id: swap with the content's own queries and sharper "
        "attention; start it from Match Latent Statistics)."
    )
    SEARCH_ALIASES = ("reference only", "styleid", "style injection", "attention swap", "consistent style")
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (
        "A copy of the model that looks at the reference; the model that came in is unchanged.",
    )
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", "A Stable Diffusion 1.x, 2.x or XL model."),
                "reference": given(
                    "REELBRUSH_TRAJECTORY", "The reference: Reference from Noise, or a DDIM Inversion."
                ),
                "mode": choice(
                    MODES, "concat: both. swap: only the reference. style-id: StyleID's injection."
                ),
                "query_keep": decimal(
                    0.75, 0.0, 1.0, "γ of style-id: how much of the query is the content's own.", 0.05
                ),
                "temperature": decimal(1.5, 0.1, 5.0, "τ of style-id: logits are multiplied by it.", 0.05),
                "layers": ("STRING", {"default": "last 6", "tooltip": LAYERS}),
                "start_percent": part(0.0),
                "end_percent": part(1.0),
            },
            "optional": {
                "content": given("REELBRUSH_TRAJECTORY", "The frames' DDIM Inversion; style-id needs it."),
                "cache": choice(CACHES, CACHE),
            },
        }

    def patch(
        self,
        model,
        reference,
        mode,
        query_keep,
        temperature,
        layers,
        start_percent,
        end_percent,
        content=None,
        cache="gpu",
    ):
        chosen = unet.pick_layers(model, layers)
        when = unet.sigma_range(model, start_percent, end_percent)
        if not chosen or when.empty:
            return (model,)
        keys = Reference(model, reference, chosen, cache=cache)
        blends = mode == "style-id" and query_keep > 0 and content is not None
        queries = Reference(model, content, chosen, "q", frames_apart=True) if blends else None
        patched = model.clone()
        ReferenceAttention(keys, chosen, when, mode, query_keep, temperature, queries).attach(patched)
        return (patched,)


class ReferenceNoise:
    """A reference without an inversion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes a trajectory of a picture by adding one fixed noise at every level: a reference for Reference "
        "Attention or Z* in no time. An inversion is closer to how the model itself sees the picture."
    )
    SEARCH_ALIASES = ("reference only", "noised reference", "style reference")
    RETURN_TYPES = ("REELBRUSH_TRAJECTORY",)
    OUTPUT_TOOLTIPS = ("The picture at every noise level, for Reference Attention and Z*.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": given("LATENT", "The reference picture, encoded with the model's VAE."),
                "model": given("MODEL", "The model that will look at it."),
                "positive": given("CONDITIONING", "What the picture shows; the empty text will do."),
                "sigmas": given("SIGMAS", "The levels that sampling visits (a scheduler node's output)."),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**64 - 1,
                        "tooltip": "Seed of the noise.",
                        "control_after_generate": True,
                    },
                ),
            }
        }

    def make(self, latent, model, positive, sigmas, seed):
        inside = model.model.process_latent_in(latent["samples"].float())
        latents, levels = noised(inside, sigmas, seed)
        return (Trajectory(latents, levels, positive, unet.family(model), "noised"),)


class MatchLatent:
    """StyleID's initial latent: the content's noise with the style's statistics."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Gives each channel of a latent the mean and spread of a reference latent (AdaIN). "
        "Use it on the noise of a DDIM Inversion, with the style's noise as the reference, before sampling."
    )
    SEARCH_ALIASES = ("adain", "styleid", "latent color match")
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent with the reference's statistics.",)
    FUNCTION = "match"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": given("LATENT", "The latent to change; every frame is matched on its own."),
                "reference": given(
                    "LATENT", "Where the statistics come from. One frame serves all; N frames pair up."
                ),
                "strength": decimal(1.0, 0.0, 1.0, "0 keeps the latent as it is.", 0.05),
            }
        }

    def match(self, latent, reference, strength):
        if strength == 0:
            return (latent,)
        return ({**latent, "samples": match(latent["samples"], reference["samples"], strength)},)


NODES = {
    "ReelBrushZStar": (ZStarNode, "Z* Style Attention"),
    "ReelBrushReferenceAttention": (ReferenceAttentionNode, "Reference Attention"),
    "ReelBrushReferenceNoise": (ReferenceNoise, "Reference from Noise"),
    "ReelBrushMatchLatent": (MatchLatent, "Match Latent Statistics"),
}
