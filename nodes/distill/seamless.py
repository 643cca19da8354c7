"""Pictures that tile: convolutions with circular padding, on clones.

A convolution's `_conv_forward` is replaced by an object patch, which ComfyUI applies only while this clone is
loaded: LoRAs on the weights keep working, the original model stays bit-equal. Attention has no positions
here, so with circular convolutions the whole UNet is equivariant to shifts around the edge.

Of a VAE only the decoder is changed, because encoded pictures are references, which do not tile. For the same
reason a style's features are read with `own_edges`: with circular padding, the seam between its opposite
edges would be a part of the style.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from .. import host
from ..diffusion.patching.layers import network

AXES = {"none": (False, False), "x": (True, False), "y": (False, True), "both": (True, True)}
_own_edges: ContextVar[bool] = ContextVar("own_edges", default=False)
MARGIN = 16  # latent pixels from the opposite edge, where a VAE decodes in tiles


def sides(axes: str) -> tuple[bool, bool]:
    """Whether the picture continues at its left and right, and at its upper and lower edges."""
    if axes not in AXES:
        raise ValueError(f"{axes!r} names no edges: choose one of {', '.join(AXES)}")
    return AXES[axes]


@contextmanager
def own_edges() -> Iterator[None]:
    """In this context, patched convolutions pad with zeros like the original ones."""
    token = _own_edges.set(True)
    try:
        yield
    finally:
        _own_edges.reset(token)


def seamless_model(model: Any, axes: str) -> Any:
    """A clone of a MODEL with circular padding along `axes`; for "none" the model itself."""
    if axes == "none":
        return model
    net = network(model)
    patched = model.clone()
    for name, conv in padded_convolutions(net):
        patched.add_object_patch(f"diffusion_model.{name}._conv_forward", circular(conv, axes))
    return patched


def seamless_vae(vae: Any, axes: str) -> Any:
    """A copy of a VAE with circular padding in the decoder along `axes`; the weights are shared."""
    if axes == "none":
        return vae
    patches = {
        f"{name}._conv_forward": circular(conv, axes)
        for name, conv in padded_convolutions(vae.first_stage_model)
        if not name.split(".")[0].endswith("encoder")  # TAESD's is taesd_encoder
    }
    return host.patched_vae(vae, patches, lambda decode: wrapped_tiles(decode, axes, vae.upscale_ratio))


def padded_convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions with padding."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str) and any(layer.padding):
            yield name, layer


def circular(conv: nn.Conv2d, axes: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A `_conv_forward` with circular padding along `axes` and zero padding along the others."""
    along_x, along_y = sides(axes)
    high, wide = conv.padding

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _own_edges.get():
            return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        x = pad(x, (wide, wide, 0, 0), mode="circular" if along_x else "constant")
        x = pad(x, (0, 0, high, high), mode="circular" if along_y else "constant")
        return conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    return forward


def wrapped_tiles(decode: Callable[..., Tensor], axes: str, scale: int) -> Callable[..., Tensor]:
    """Tiled decoding of latents with a margin from the opposite edge, which is cut off afterwards."""
    x, y = (MARGIN if on else 0 for on in sides(axes))

    def decode_tiled(samples: Tensor, *args, **options) -> Tensor:
        dx, dy = min(x, samples.shape[-1]), min(y, samples.shape[-2])
        pixels = decode(pad(samples, (dx, dx, dy, dy), mode="circular"), *args, **options)
        dx, dy = dx * scale, dy * scale
        return pixels[..., dy : pixels.shape[-2] - dy, dx : pixels.shape[-1] - dx]

    return decode_tiled
