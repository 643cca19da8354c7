"""Declarations, and one text format, of inputs that nodes of several packages have in common."""

import math
from collections.abc import Sequence
from typing import Any


def connection(kind: str, tooltip: str) -> tuple:
    """An input that only takes a connection: IMAGE, MODEL, VIDEO, ..."""
    return (kind, {"tooltip": tooltip})


def integer(
    default: int, low: int, high: int, tooltip: str, step: int | None = None, **options: Any
) -> tuple:
    """An INT; without `step` the front end uses 1."""
    return _number("INT", default, low, high, tooltip, step, options)


def decimal(
    default: float, low: float, high: float, tooltip: str, step: float | None = 0.01, **options: Any
) -> tuple:
    """A FLOAT."""
    return _number("FLOAT", default, low, high, tooltip, step, options)


def _number(kind, default, low, high, tooltip, step, options) -> tuple:
    steps = {} if step is None else {"step": step}
    return (kind, {"default": default, "min": low, "max": high, **steps, **options, "tooltip": tooltip})


def text(default: str, tooltip: str, **options: Any) -> tuple:
    """A STRING."""
    return ("STRING", {"default": default, **options, "tooltip": tooltip})


def comma_separated(words: str) -> list[str]:
    """The items of a text like "a, b, c", without empty ones."""
    return [word.strip() for word in words.split(",") if word.strip()]


def picture_weights(words: str, pictures: int) -> list[float]:
    """A text like "1, 0.5" as one share per picture, with the sum 1; an empty text gives equal shares."""
    try:
        weights = [float(word) for word in comma_separated(words.replace(";", ","))]
    except ValueError:
        raise ValueError(f"the weights {words!r} are not numbers: write them as 1, 0.5") from None
    weights = weights or [1.0] * pictures
    if len(weights) != pictures:
        raise ValueError(f"{len(weights)} weights for {pictures} style pictures: give one per picture")
    if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
        raise ValueError(f"the weights {words!r} must not be negative, and not all be 0")
    return [weight / sum(weights) for weight in weights]


def switch(default: bool, tooltip: str, **options: Any) -> tuple:
    """A BOOLEAN."""
    return ("BOOLEAN", {"default": default, **options, "tooltip": tooltip})


def choice(options: Sequence[str], tooltip: str, default: str | None = None) -> tuple:
    """One of several texts; the first one unless `default` names another."""
    return (list(options), {"default": options[0] if default is None else default, "tooltip": tooltip})


def names(options: Sequence[str], tooltip: str) -> tuple:
    """A file or folder from a list that is read from disk."""
    return (list(options), {"tooltip": tooltip})


def seed(tooltip: str) -> tuple:
    """A seed, with the front end's control for the next run."""
    return integer(0, 0, 2**64 - 1, tooltip, control_after_generate=True)


def fixed_seed(tooltip: str) -> tuple:
    """A seed that stays the same for the next run: a training can only be resumed with its own seed."""
    return integer(0, 0, 2**63 - 1, tooltip, control_after_generate=False)


def strength(tooltip: str, default: float = 1.0) -> tuple:
    """A strength from 0 (off) to 1."""
    return decimal(default, 0.0, 1.0, tooltip, 0.05)


def percent(default: float, tooltip: str) -> tuple:
    """A position in the sampling schedule, as ComfyUI counts it: 0 is the noisiest level, 1 the end."""
    return decimal(default, 0.0, 1.0, tooltip, 0.001)


def max_side(tooltip: str, high: int = 16384) -> tuple:
    """The number of pixels of the longer side; 0 keeps the size."""
    return integer(0, 0, high, tooltip, 8)


SAMPLING_RANGE = "0 is the start of the sampling, 1 its end, for any sampler and number of steps."


def percent_range(start: float = 0.0, tooltip: str = SAMPLING_RANGE) -> dict[str, tuple]:
    """`start_percent` and `end_percent`: the part of the sampling in which a node is active."""
    return {"start_percent": percent(start, tooltip), "end_percent": percent(1.0, SAMPLING_RANGE)}


def layers(default: str) -> tuple:
    """Self-attention layers of a UNet."""
    return text(
        default,
        'Self-attention layers in execution order: "10-15", "last 6", "all", "0, 3, 5-7", "none". SD1.x and '
        "SD2.x have 0-15 (10-15 are decoder blocks 6-11), SDXL has 0-69 (64-69 are the last of the decoder).",
    )


def model(
    tooltip: str = "A Stable Diffusion 1.x, 2.x or XL model, also with LoRAs and ControlNets.",
) -> tuple:
    """A MODEL."""
    return connection("MODEL", tooltip)


def trajectory(tooltip: str) -> tuple:
    """A TRAJECTORY: the latents of a clip at every noise level, from DDIM Inversion."""
    return connection("REELBRUSH_TRAJECTORY", tooltip)
