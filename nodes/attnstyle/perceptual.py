"""Which perceptual network the content loss looks through."""

from torch import nn

from .. import host

KIND = "perceptual"
EMBEDDED, NONE = "embedded", "none"


def names() -> list[str]:
    """The choices of the `perceptual` input."""
    return [EMBEDDED, *host.model_names(KIND, (".safetensors", ".pth")), NONE]


def load(name: str) -> nn.Module | None:
    """The network of that name; None for "none"."""
    if name == NONE:
        return None
    if name == EMBEDDED:
        from ..stya2k.checkpoint import embedded_encoder

        return embedded_encoder()
    from ..stya2k.perceptual import load_perceptual

    return load_perceptual(host.model_path(KIND, name))
