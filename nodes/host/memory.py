"""Devices, free memory, and networks under ComfyUI's memory management."""

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import psutil
import torch
from torch import nn

from .comfyui import comfy, inside_comfyui


def device() -> torch.device:
    """The device that computes."""
    if inside_comfyui():
        return comfy("comfy.model_management").get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def offload_device() -> torch.device:
    """The device that keeps networks which are not in use."""
    if inside_comfyui():
        return comfy("comfy.model_management").unet_offload_device()
    return torch.device("cpu")


def free_memory(where: torch.device | None = None) -> int:
    """Bytes that can be allocated on a device now."""
    where = where or device()
    if inside_comfyui():
        return int(comfy("comfy.model_management").get_free_memory(where))
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    return psutil.virtual_memory().available


def make_room(size: int) -> None:
    """Ask ComfyUI to unload models until `size` bytes are free on the computing device."""
    if inside_comfyui():
        comfy("comfy.model_management").free_memory(size, device())


def release_memory() -> None:
    """Empty torch's cache of device memory, after an out-of-memory error or a clean-up."""
    if inside_comfyui():
        comfy("comfy.model_management").soft_empty_cache()
    elif torch.cuda.is_available():
        torch.cuda.empty_cache()


_last_trim = 0.0


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = (ctypes.c_size_t,)
        return trim
    except (OSError, AttributeError, TypeError):  # the C library is not glibc
        return None


def trim_heap(pause: float = 0.0) -> None:
    """Return unused memory of the C allocator to the system, at most once in `pause` seconds.

    Frames are allocated and freed on several threads. glibc keeps the gaps between them, and without this
    call the process grows with the length of the clip. Other allocators need no such call.
    """
    global _last_trim
    now, trim = time.monotonic(), _malloc_trim()
    if trim is not None and now - _last_trim >= pause:
        trim(0)
        _last_trim = time.monotonic()


def is_out_of_memory(error: BaseException) -> bool:
    """True for the out-of-memory error of a device and of the CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Managed:
    """A network of this pack under ComfyUI's memory management; `load` moves it to the computing device."""

    def __init__(self, module: nn.Module):
        self.module = module.train(False)
        self._patcher: Any = None

    def load(self) -> nn.Module:
        """The module, on the computing device."""
        if not inside_comfyui():
            return self.module.to(device())
        if self._patcher is None:
            self._patcher = comfy("comfy.model_patcher").ModelPatcher(self.module, device(), offload_device())
        load_model(self._patcher)
        return self.module


def managed(module: nn.Module) -> Managed:
    """Put a network under ComfyUI's memory management."""
    return Managed(module)


def load_model(model: Any, *others: Any) -> None:
    """Load a MODEL (or any ModelPatcher) onto the computing device, as a sampler does, with `others`."""
    if inside_comfyui():
        comfy("comfy.model_management").load_models_gpu([model, *others])
