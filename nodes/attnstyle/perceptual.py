"""The perceptual network of the content loss."""

from pathlib import Path

from torch import Tensor, nn

from ..common.perceptual import load_perceptual, perceptual_names, perceptual_path

EMBEDDED, NONE = "embedded", "none"


class StyA2KEyes(nn.Module):
    """The encoder of a StyA2K model: its feature maps by level, shallow to deep."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {f"level{i}": m for i, m in enumerate(self.model.encode(images).maps, start=1)}


def names() -> list[str]:
    """The choices of the `perceptual` input."""
    return [EMBEDDED, *perceptual_names(), NONE]


def load(name: str) -> nn.Module | None:
    """The network of that name; None for "none"."""
    if name == NONE:
        return None
    if name == EMBEDDED:
        from ..stya2k import checkpoint

        weights = sorted((Path(checkpoint.__file__).parent / "weights").glob("*.safetensors"))
        if not weights:
            raise RuntimeError(
                "this copy of ReelBrush has no embedded StyA2K model: choose a file in models/perceptual, "
                'or "none" with content_weight 0'
            )
        return StyA2KEyes(checkpoint.load(weights[0]))
    return load_perceptual(perceptual_path(name))
