"""Our versions of the ComfyUI core nodes that video graphs use, for running such graphs without ComfyUI.

Ids, inputs, outputs and results are ComfyUI's. Where versions of ComfyUI differ, our nodes have the inputs
and outputs of all of them. All other core nodes (checkpoints, samplers, ...) need ComfyUI.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from ..common import pictures
from ..common.checks import checked
from ..video.lazy_video import LazyVideo

CORE_NODES: dict[str, tuple[type, str]] = {}
"""Class and display name by class type."""

_METADATA = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def core_node(
    class_type: str,
    name: str,
    outputs: tuple[str, ...],
    required: dict[str, tuple],
    optional: dict[str, tuple] | None = None,
    hidden: dict[str, str] | None = None,
    *,
    is_output: bool = False,
    validate: Callable[..., bool | str] | None = None,
) -> Callable[[Callable], Callable]:
    """Register a function as a core node."""

    def register(function: Callable) -> Callable:
        inputs = {"required": required, "optional": optional or {}, "hidden": hidden or {}}
        members = {
            "INPUT_TYPES": staticmethod(lambda: inputs),
            "RETURN_TYPES": outputs,
            "OUTPUT_NODE": is_output,
            "FUNCTION": "run",
            "run": staticmethod(function),
        }
        if validate is not None:
            members["VALIDATE_INPUTS"] = staticmethod(validate)
        CORE_NODES[class_type] = (checked(type(f"Core{class_type}", (), members)), name)
        return function

    return register


# -- loading and saving ----------------------------------------------------------------------------


def _is_in_input(name: str, what: str) -> bool | str:
    """True, or the error message about a file name; asked for before anything runs."""
    try:
        host.input_path(name, what)
    except ValueError as error:
        return str(error)
    return True


def _shown(paths: list[Path], subfolder: str, kind: str) -> dict[str, list]:
    return {"images": [{"filename": p.name, "subfolder": subfolder, "type": kind} for p in paths]}


def _whole_numbers(image: Tensor) -> Tensor:
    """A picture in 0..1 as 8 bits, cut to whole numbers as ComfyUI does."""
    return image.detach().cpu().clamp(0, 1).mul(255).to(torch.uint8)


@core_node(
    "LoadImage",
    "Load Image",
    ("IMAGE", "MASK"),
    {"image": ("STRING", {"image_upload": True})},
    validate=lambda image: _is_in_input(image, "picture"),
)
def load_image(image):
    picture, opacity = pictures.read(host.input_path(image, "picture"))
    mask = torch.zeros(64, 64) if opacity is None else 1 - opacity
    return picture[None], mask[None]


@core_node(
    "LoadVideo",
    "Load Video",
    ("VIDEO",),
    {"file": ("STRING", {"video_upload": True})},
    validate=lambda file: _is_in_input(file, "clip"),
)
def load_video(file):
    return (LazyVideo.from_file(host.input_path(file, "clip")),)


@core_node(
    "SaveVideo",
    "Save Video",
    ("VIDEO",),
    {
        "video": ("VIDEO",),
        "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
        "format": (["auto", "mp4", "mkv", "webm", "mov", "gif"], {"default": "auto"}),
    },
    {
        "codec": (["auto", "h264", "h265", "vp9", "av1"], {"default": "auto"}),
        # Newer ComfyUIs have these where `codec` is chosen.
        "encoding": (["auto", "re-encode"], {"default": "auto"}),
        "crf": ("FLOAT", {"default": 23.0, "min": 0.0, "max": 63.0}),
        "color_space": (["auto", "sRGB", "HDR", "HDR PQ"], {"default": "auto"}),
    },
    _METADATA,
    is_output=True,
)
def save_video(
    video,
    filename_prefix,
    format,
    codec="auto",
    encoding="auto",
    crf=23.0,
    color_space="auto",
    prompt=None,
    extra_pnginfo=None,
):
    suffix = "mp4" if format == "auto" else format
    path, subfolder = host.numbered(filename_prefix, f".{suffix}", video.get_dimensions())
    metadata = {**(extra_pnginfo or {}), "prompt": prompt}
    options = {"crf": round(crf), "color_space": color_space} if encoding == "re-encode" else {}
    video.save_to(str(path), format=suffix, codec=codec, metadata=metadata, **options)
    return {"ui": _shown([path], subfolder, "output"), "result": (video,)}


@core_node(
    "SaveImage",
    "Save Image",
    ("IMAGE",),
    {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
    hidden=_METADATA,
    is_output=True,
)
def save_image(images, filename_prefix, prompt=None, extra_pnginfo=None):
    metadata = {"prompt": prompt, **(extra_pnginfo or {})}
    text = {key: json.dumps(value) for key, value in metadata.items()}
    size = images.shape[2], images.shape[1]
    paths, subfolder = [], ""
    for image in images:
        path, subfolder = host.numbered(filename_prefix, ".png", size)
        paths.append(pictures.write(path, _whole_numbers(image), text))
    return {"ui": _shown(paths, subfolder, "output"), "result": (images,)}


# -- previews --------------------------------------------------------------------------------------


@core_node(
    "PreviewImage",
    "Preview Image",
    ("IMAGE",),
    {"images": ("IMAGE",)},
    hidden={"node": "UNIQUE_ID"},
    is_output=True,
)
def preview_image(images, node=None):
    """Write the pictures into the temp folder."""
    stem = f"preview_{str(node).replace(':', '_')}"
    paths = [
        pictures.write(host.folder("temp") / f"{stem}_{number:05}_.png", _whole_numbers(image))
        for number, image in enumerate(images, 1)
    ]
    return {"ui": _shown(paths, "", "temp"), "result": (images,)}


@core_node(
    "MaskPreview",
    "Preview Mask",
    ("MASK",),
    {"mask": ("MASK",)},
    hidden={"node": "UNIQUE_ID"},
    is_output=True,
)
def preview_mask(mask, node=None):
    return preview_image(mask[..., None].expand(-1, -1, -1, 3), node) | {"result": (mask,)}


@core_node("PreviewAny", "Preview Any", ("STRING",), {"source": ("*", {})}, is_output=True)
def preview_any(source):
    text = source if isinstance(source, str) else json.dumps(source, default=str, indent=2)
    sys.stdout.write(text.rstrip("\n") + "\n")
    return {"ui": {"text": (text,)}, "result": (text,)}


# -- clips and pictures ----------------------------------------------------------------------------


@core_node(
    "GetVideoComponents",
    "Get Video Components",
    ("IMAGE", "AUDIO", "FLOAT", "INT", "COMBO"),
    {"video": ("VIDEO",)},
)
def get_video_components(video):
    parts = video.get_components()
    rate = float(parts.frame_rate)
    return parts.images, parts.audio, rate, video.get_bit_depth(), video.get_color_space()


@core_node(
    "CreateVideo",
    "Create Video",
    ("VIDEO",),
    {"images": ("IMAGE",), "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0})},
    {"audio": ("AUDIO",), "bit_depth": ("INT", {"default": 8, "min": 8, "max": 10, "step": 2})},
)
def create_video(images, fps, audio=None, bit_depth=8):
    return (LazyVideo.from_frames(images, fps, audio, bit_depth),)


_SIDE = ("INT", {"default": 512, "min": 0, "max": 16384})


@core_node(
    "ImageScale",
    "Upscale Image",
    ("IMAGE",),
    {
        "image": ("IMAGE",),
        "upscale_method": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],),
        "width": _SIDE,
        "height": _SIDE,
        "crop": (["disabled", "center"],),
    },
)
def scale_image(image, upscale_method, width, height, crop):
    if not (width or height):
        return (image,)
    high, wide = image.shape[1:3]
    width, height = (
        width or max(1, round(wide * height / high)),
        height or max(1, round(high * width / wide)),
    )
    if crop == "center":
        narrower = (width / height) / (wide / high)  # rounds ties as ComfyUI does
        x = round((wide - wide * narrower) / 2) if narrower < 1 else 0
        y = round((high - high * ((wide / high) / (width / height))) / 2) if narrower > 1 else 0
        image = image[:, y : high - y, x : wide - x]
    if upscale_method == "lanczos":
        return (torch.stack([_lanczos(picture, width, height) for picture in image]),)
    out = interpolate(image.permute(0, 3, 1, 2), (height, width), mode=upscale_method)
    return (out.clamp(0, 1).permute(0, 2, 3, 1).contiguous(),)


def _lanczos(image: Tensor, width: int, height: int) -> Tensor:
    """One picture [H, W, C] resized in 8 bits by Pillow, as ComfyUI does it."""
    import numpy
    from PIL import Image

    resized = Image.fromarray(_whole_numbers(image).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.asarray(resized, numpy.float32) / 255)


@core_node("ImageBatch", "Batch Images", ("IMAGE",), {"image1": ("IMAGE",), "image2": ("IMAGE",)})
def batch_images(image1, image2):
    if image1.shape[1:3] != image2.shape[1:3]:
        (image2,) = scale_image(image2, "bilinear", image1.shape[2], image1.shape[1], "center")
    channels = min(image1.shape[3], image2.shape[3])
    return (torch.cat([image1[..., :channels], image2[..., :channels]]),)


@core_node(
    "ImageFromBatch",
    "ImageFromBatch",
    ("IMAGE",),
    {
        "image": ("IMAGE",),
        "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
        "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
    },
)
def image_from_batch(image, batch_index, length):
    start = min(len(image) - 1, batch_index)
    return (image[start : start + length].clone(),)


def _primitive(class_type: str, name: str, type_: str, **options: Any) -> None:
    core_node(class_type, name, (type_,), {"value": (type_, options)})(lambda value: (value,))


_primitive("PrimitiveInt", "Int", "INT", control_after_generate=True)
_primitive("PrimitiveFloat", "Float", "FLOAT")
_primitive("PrimitiveString", "String", "STRING")
_primitive("PrimitiveStringMultiline", "String (Multiline)", "STRING", multiline=True)
_primitive("PrimitiveBoolean", "Boolean", "BOOLEAN")
