"""Pictures that tile: convolutions that look across the edge to the other side (circular padding), on clones.

A convolution's own `_conv_forward` is replaced, as an object patch that the host puts on while this clone
is loaded and takes off again: LoRAs on the weights keep working, the original model stays bit-equal.
Attention has no notion of position here, so with circular convolutions the whole UNet turns with its input.

Of a VAE only the decoder is changed: what is encoded is a reference, and a reference need not tile. For the
same reason a style's features are read with its `own_edges`: wrapped, it would teach the seam between its
opposite sides as a part of its look.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ..diffusion import unet

AXES = {"none": (False, False), "x": (True, False), "y": (False, True), "both": (True, True)}
_own_edges: ContextVar[bool] = ContextVar("own_edges", default=False)
MARGIN = 16  # latent pixels repeated beyond a circular edge where a VAE decodes in tiles


@contextmanager
def own_edges() -> Iterator[None]:
    """Within this, patched convolutions end at the edge as the original ones do."""
    token = _own_edges.set(True)
    try:
        yield
    finally:
        _own_edges.reset(token)


def seamless_model(model: Any, axes: str) -> Any:
    """A clone of a MODEL whose pictures wrap around along `axes`; "none" gives the model itself."""
    if axes == "none":
        return model
    network = unet.network(model)
    patched = model.clone()
    for name, conv in padded_convolutions(network):
        patched.add_object_patch(f"diffusion_model.{name}._conv_forward", circular(conv, axes))
    return patched


def seamless_vae(vae: Any, axes: str) -> Any:
    """A copy of a VAE whose decoder wraps around along `axes`; the weights are shared."""
    if axes == "none":
        return vae
    patched = copy.copy(vae)
    patched.patcher = vae.patcher.clone()
    for name, conv in padded_convolutions(vae.first_stage_model):
        if not name.split(".")[0].endswith("encoder"):  # TAESD's is taesd_encoder
            patched.patcher.add_object_patch(f"{name}._conv_forward", circular(conv, axes))
    if hasattr(vae, "decode_tiled_"):
        patched.decode_tiled_ = wrapped_tiles(vae.decode_tiled_, axes, vae.upscale_ratio)
    return patched


def padded_convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions that look beyond an edge."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str) and any(layer.padding):
            yield name, layer


def circular(conv: nn.Conv2d, axes: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A `_conv_forward` with circular padding along `axes` and zeros along the other."""
    along_x, along_y = AXES[axes]
    high, wide = conv.padding

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _own_edges.get():
            return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        x = pad(x, (wide, wide, 0, 0), mode="circular" if along_x else "constant")
        x = pad(x, (0, 0, high, high), mode="circular" if along_y else "constant")
        return conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    return forward


def wrapped_tiles(decode: Callable[..., Tensor], axes: str, scale: int) -> Callable[..., Tensor]:
    """Tiled decoding knows nothing of the other side: decode a margin from there too, and cut it off."""
    x, y = (MARGIN if on else 0 for on in AXES[axes])

    def decode_tiled(samples: Tensor, *args, **options) -> Tensor:
        dx, dy = min(x, samples.shape[-1]), min(y, samples.shape[-2])
        pixels = decode(pad(samples, (dx, dx, dy, dy), mode="circular"), *args, **options)
        dx, dy = dx * scale, dy * scale
        return pixels[..., dy : pixels.shape[-2] - dy, dx : pixels.shape[-1] - dx]

    return decode_tiled
