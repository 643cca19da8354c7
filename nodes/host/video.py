"""ComfyUI's VIDEO type."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from .comfyui import comfy, inside_comfyui


@cache
def _comfyui_video_base() -> type:
    for name in ("comfy_api.latest._input.video_types", "comfy_api.input.video_types", "comfy_api.input"):
        try:
            return comfy(name).VideoInput
        except (ImportError, AttributeError):
            continue
    return object


def video_base() -> type:
    """ComfyUI's base class of a VIDEO, otherwise `object`."""
    return _comfyui_video_base() if inside_comfyui() else object


def video_file(video: Any) -> Any:
    """The file (a path or a BytesIO) of a ComfyUI VIDEO that was not edited, otherwise None.

    A VIDEO made from frames would return them compressed as H.264, and an edited one its unedited file.
    """
    if type(video).__name__ != "VideoFromFile":
        return None
    if getattr(video, "has_pending_frame_edits", lambda: False)():
        return None
    return video.get_stream_source()


def video_components(images: Tensor, fps: Fraction, audio: dict | None = None) -> Any:
    """ComfyUI's VideoComponents: images [N, H, W, C], audio or None, frame_rate."""
    if inside_comfyui():
        make: Callable[..., Any] = comfy("comfy_api.util").VideoComponents
    else:
        make = SimpleNamespace
    return make(images=images, audio=audio, frame_rate=fps)
