"""Inputs that several Attention Distillation nodes declare."""

CATEGORY = "ReelBrush/Attention Distillation"
NULL = (
    "CONDITIONING",
    {
        "tooltip": "The empty text: CLIP Text Encode of nothing, with the checkpoint's own CLIP. "
        "Features are read under it."
    },
)
STYLE = (
    "LATENT",
    {"tooltip": "One or several style pictures through VAE Encode; their features are pooled."},
)
LAYERS = (
    "STRING",
    {
        "default": "last 6",
        "tooltip": "Self-attention layers in execution order (0-15 on SD1.5, 0-69 on SDXL): 'last 6' is the "
        "paper's; '8-15' or 'all' carry larger structures over.",
    },
)
SCALE = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.1,
        "max": 4.0,
        "step": 0.05,
        "tooltip": "Multiplies the queries that look at the style: above 1 each picks fewer places.",
    },
)
STYLE_MASK = (
    "MASK",
    {"tooltip": "Labels of the style as grey levels, with target_mask: each region takes its label's."},
)
TARGET_MASK = (
    "MASK",
    {"tooltip": "Labels of the result as grey levels, one mask or one per frame; all in style_mask."},
)
SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
ON_NAN = (
    ["stop", "return last good"],
    {
        "default": "stop",
        "tooltip": "When half precision overflows: stop with an error, or keep the last sound latent.",
    },
)


def seed(what: str) -> tuple:
    """A seed input with a word on what it decides."""
    return (SEED[0], {**SEED[1], "tooltip": what})


def number(kind: str, default, low, high, tooltip: str, step=None) -> tuple:
    """An INT or FLOAT input."""
    return kind, {
        "default": default,
        "min": low,
        "max": high,
        **({"step": step} if step else {}),
        "tooltip": tooltip,
    }
