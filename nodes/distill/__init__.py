"""Attention distillation: a style's attention features as a loss on a latent."""

from ..common.inputs import connection

CATEGORY = "ReelBrush/Attention Distillation"
NULL = connection(
    "CONDITIONING",
    "The empty text: CLIP Text Encode without text, with the checkpoint's own CLIP. The model reads features "
    "with it.",
)
