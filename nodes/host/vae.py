"""ComfyUI's VAE, which has no `clone`: copies with patches, or with a network of their own."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def patched_vae(
    vae: Any,
    patches: dict[str, Callable],
    wrap_tiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
) -> Any:
    """A copy with object patches on its network and with wrapped tiled decoding; it shares the weights."""
    other = copy.copy(vae)
    other.patcher = vae.patcher.clone()
    for name, patch in patches.items():
        other.patcher.add_object_patch(name, patch)
    if hasattr(vae, "decode_tiled_"):
        other.decode_tiled_ = wrap_tiled(vae.decode_tiled_)
    return other


def vae_patcher(vae: Any, network: nn.Module) -> Any:
    """A ModelPatcher for another network of this VAE's kind, on the VAE's devices."""
    devices = {"load_device": vae.patcher.load_device, "offload_device": vae.patcher.offload_device}
    return type(vae.patcher)(network, **devices)


def vae_with_network(vae: Any, patcher: Any) -> Any:
    """A copy with another patcher's network, and with the precision and the object patches of `vae`.

    ComfyUI loses patches when it saves a VAE, so changed weights need a network of their own.
    """
    other = copy.copy(vae)
    other.first_stage_model = patcher.model
    patcher.size = 0  # ComfyUI measures it again: the weights may have another type than when it was loaded
    other.patcher = patcher.clone()  # a clone keeps its parent, which ComfyUI knows as the loaded one
    other.patcher.object_patches = dict(vae.patcher.object_patches)
    return other
