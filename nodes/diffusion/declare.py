"""Small words for the diffusion nodes' declarations."""

from collections.abc import Sequence

CATEGORY = "ReelBrush/Diffusion"
RANGE = "0 is the start of the sampling, 1 its end, under any sampler and step count."
LAYERS = (
    'Self-attention layers in execution order: "10-15", "last 6", "all", "0, 3, 5-7", "none". SD1.x and '
    "SD2.x have 0-15 (10-15 are decoder blocks 6-11), SDXL has 0-69 (64-69 are the finest of the decoder)."
)
CACHE = (
    "Where the style's features are kept. gpu: the newest noise levels, until the run ends. cpu: all of "
    "them, with the trajectory, so that a second run computes nothing. recompute: nowhere. The picture is "
    "the same."
)


def decimal(default: float, low: float, high: float, tooltip: str, step: float = 0.01) -> tuple:
    """A FLOAT input."""
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})


def part(default: float, tooltip: str = RANGE) -> tuple:
    """A start_percent or end_percent."""
    return decimal(default, 0.0, 1.0, tooltip, 0.001)


def choice(options: Sequence[str], tooltip: str, default: str | None = None) -> tuple:
    """A combo."""
    return (list(options), {"default": default or options[0], "tooltip": tooltip})


def given(kind: str, tooltip: str) -> tuple:
    """An input that is connected."""
    return (kind, {"tooltip": tooltip})
