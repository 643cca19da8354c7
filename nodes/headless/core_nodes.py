"""Our versions of the ComfyUI core nodes that video graphs use, for running such graphs without ComfyUI.

Ids, inputs, outputs and results are ComfyUI's. Where versions of ComfyUI differ, our nodes have the inputs
and outputs of all of them. All other core nodes (checkpoints, samplers, ...) need ComfyUI.
"""

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from ..common import pictures
from ..video.lazy_video import LazyVideo


class CoreLoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image):
        return _in_input(image, "picture")

    def load(self, image):
        picture, opacity = pictures.read(host.input_path(image, "picture"))
        mask = torch.zeros(64, 64) if opacity is None else 1 - opacity
        return picture[None], mask[None]


class CoreLoadVideo:
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {"video_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return _in_input(file, "clip")

    def load(self, file):
        return (LazyVideo.from_file(host.input_path(file, "clip")),)


class CoreGetVideoComponents:
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "INT", "COMBO")
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"video": ("VIDEO",)}}

    def split(self, video):
        parts = video.get_components()
        rate = float(parts.frame_rate)
        return parts.images, parts.audio, rate, video.get_bit_depth(), video.get_color_space()


class CoreCreateVideo:
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0})},
            "optional": {
                "audio": ("AUDIO",),
                "bit_depth": ("INT", {"default": 8, "min": 8, "max": 10, "step": 2}),
            },
        }

    def create(self, images, fps, audio=None, bit_depth=8):
        return (LazyVideo.from_frames(images, Fraction(fps), audio, bit_depth),)


class CoreSaveVideo:
    """`encoding` and what follows it are inputs of a choice in newer ComfyUIs."""

    RETURN_TYPES = ("VIDEO",)
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": (["auto", "mp4", "mkv", "webm", "mov", "gif"], {"default": "auto"}),
            },
            "optional": {
                "codec": (["auto", "h264", "h265", "vp9", "av1"], {"default": "auto"}),
                "encoding": (["auto", "re-encode"], {"default": "auto"}),
                "crf": ("FLOAT", {"default": 23.0, "min": 0.0, "max": 63.0}),
                "color_space": (["auto", "sRGB", "HDR", "HDR PQ"], {"default": "auto"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
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


class CoreSaveImage:
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, images, filename_prefix, prompt=None, extra_pnginfo=None):
        metadata = {"prompt": prompt, **(extra_pnginfo or {})}
        text = {key: json.dumps(value) for key, value in metadata.items()}
        size = images.shape[2], images.shape[1]
        paths, subfolder = [], ""
        for image in images:
            path, subfolder = host.numbered(filename_prefix, ".png", size)
            paths.append(pictures.write(path, _whole_numbers(image), text))
        return {"ui": _shown(paths, subfolder, "output"), "result": (images,)}


class CorePreviewImage:
    """Writes the pictures into the temp folder."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": {"node": "UNIQUE_ID"}}

    def preview(self, images, node=None):
        stem = f"preview_{str(node).replace(':', '_')}"
        paths = [
            pictures.write(host.folder("temp") / f"{stem}_{number:05}_.png", _whole_numbers(image))
            for number, image in enumerate(images, 1)
        ]
        return {"ui": _shown(paths, "", "temp"), "result": (images,)}


class CoreMaskPreview(CorePreviewImage):
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"mask": ("MASK",)}, "hidden": {"node": "UNIQUE_ID"}}

    def preview(self, mask, node=None):
        shown = super().preview(mask[..., None].expand(-1, -1, -1, 3), node)
        return shown | {"result": (mask,)}


class CorePreviewAny:
    RETURN_TYPES = ("STRING",)
    OUTPUT_NODE = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"source": ("*", {})}}

    def show(self, source):
        text = source if isinstance(source, str) else json.dumps(source, default=str, indent=2)
        sys.stdout.write(text.rstrip("\n") + "\n")
        return {"ui": {"text": (text,)}, "result": (text,)}


class CoreImageScale:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    @classmethod
    def INPUT_TYPES(cls):
        side = ("INT", {"default": 512, "min": 0, "max": 16384})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],),
                "width": side,
                "height": side,
                "crop": (["disabled", "center"],),
            }
        }

    def scale(self, image, upscale_method, width, height, crop):
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
        planes = image.permute(0, 3, 1, 2)
        if upscale_method == "lanczos":
            return (torch.stack([_lanczos(picture, width, height) for picture in image]),)
        out = interpolate(planes, (height, width), mode=upscale_method)
        return (out.clamp(0, 1).permute(0, 2, 3, 1).contiguous(),)


def _lanczos(image: Tensor, width: int, height: int) -> Tensor:
    """One picture [H, W, C] resized in 8 bits by Pillow, as ComfyUI does it."""
    import numpy
    from PIL import Image

    resized = Image.fromarray(_whole_numbers(image).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.asarray(resized, numpy.float32) / 255)


class CoreImageBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1, image2):
        if image1.shape[1:3] != image2.shape[1:3]:
            (image2,) = CoreImageScale().scale(image2, "bilinear", image1.shape[2], image1.shape[1], "center")
        channels = min(image1.shape[3], image2.shape[3])
        return (torch.cat([image1[..., :channels], image2[..., :channels]]),)


class CoreImageFromBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "take"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def take(self, image, batch_index, length):
        start = min(len(image) - 1, batch_index)
        return (image[start : start + length].clone(),)


def _primitive(kind: str, **options: Any) -> type:
    def types(cls) -> dict:
        return {"required": {"value": (kind, options)}}

    members = {
        "RETURN_TYPES": (kind,),
        "FUNCTION": "give",
        "INPUT_TYPES": classmethod(types),
        "give": lambda self, value: (value,),
        "__doc__": f"A {kind} that is typed in.",
    }
    return type(f"Primitive{kind.title()}", (), members)


CORE_NODES: dict[str, tuple[type, str]] = {
    "LoadImage": (CoreLoadImage, "Load Image"),
    "LoadVideo": (CoreLoadVideo, "Load Video"),
    "GetVideoComponents": (CoreGetVideoComponents, "Get Video Components"),
    "CreateVideo": (CoreCreateVideo, "Create Video"),
    "SaveVideo": (CoreSaveVideo, "Save Video"),
    "SaveImage": (CoreSaveImage, "Save Image"),
    "PreviewImage": (CorePreviewImage, "Preview Image"),
    "MaskPreview": (CoreMaskPreview, "Preview Mask"),
    "PreviewAny": (CorePreviewAny, "Preview Any"),
    "ImageScale": (CoreImageScale, "Upscale Image"),
    "ImageBatch": (CoreImageBatch, "Batch Images"),
    "ImageFromBatch": (CoreImageFromBatch, "ImageFromBatch"),
    "PrimitiveInt": (_primitive("INT", control_after_generate=True), "Int"),
    "PrimitiveFloat": (_primitive("FLOAT"), "Float"),
    "PrimitiveString": (_primitive("STRING"), "String"),
    "PrimitiveStringMultiline": (_primitive("STRING", multiline=True), "String (Multiline)"),
    "PrimitiveBoolean": (_primitive("BOOLEAN"), "Boolean"),
}


def _in_input(name: str, what: str) -> bool | str:
    """True, or the error message about a file name; ComfyUI asks for it before anything runs."""
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
