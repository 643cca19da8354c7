"""Small stand-ins for the core nodes of video graphs, so that such graphs run without ComfyUI.

Same ids, inputs and outputs as ComfyUI's; what a graph with one of these saves is what ComfyUI saves. All
other core nodes (checkpoints, samplers, ...) need ComfyUI.
"""

import json
import logging
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import host
from .video.codec.pictures import insert_text
from .video.reel import LazyVideo

log = logging.getLogger("reelbrush")


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image):
        return _in_input(image, "picture")

    def load(self, image):
        return read_picture(host.input_path(image, "picture"))


class LoadVideo:
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


class GetVideoComponents:
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"video": ("VIDEO",)}}

    def split(self, video):
        parts = video.get_components()
        return parts.images, parts.audio, float(parts.frame_rate)


class CreateVideo:
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0})},
            "optional": {"audio": ("AUDIO",)},
        }

    def create(self, images, fps, audio=None):
        return (LazyVideo.from_frames(images, Fraction(fps), audio),)


class SaveVideo:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": (["auto", "mp4", "mkv", "webm", "mov", "gif"], {"default": "auto"}),
                "codec": (["auto", "h264", "h265", "vp9", "av1"], {"default": "auto"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, video, filename_prefix, format, codec, prompt=None, extra_pnginfo=None):
        suffix = "mp4" if format == "auto" else format
        path, subfolder = host.numbered(filename_prefix, f".{suffix}", video.get_dimensions())
        metadata = {**(extra_pnginfo or {}), "prompt": prompt}
        video.save_to(str(path), format=suffix, codec=codec, metadata=metadata)
        return {"ui": _shown([path], subfolder, "output")}


class SaveImage:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, images, filename_prefix, prompt=None, extra_pnginfo=None):
        words = {key: json.dumps(value) for key, value in {"prompt": prompt, **(extra_pnginfo or {})}.items()}
        size = images.shape[2], images.shape[1]
        paths, subfolder = [], ""
        for image in images:
            path, subfolder = host.numbered(filename_prefix, ".png", size)
            path.write_bytes(insert_text(png(image), words))
            paths.append(path)
        return {"ui": _shown(paths, subfolder, "output")}


class PreviewImage:
    """ComfyUI shows these; here they are left in the temp folder."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": {"node": "UNIQUE_ID"}}

    def preview(self, images, node=None):
        folder = host.folder("temp")
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, image in enumerate(images, 1):
            paths.append(folder / f"preview_{str(node).replace(':', '_')}_{number:05}_.png")
            paths[-1].write_bytes(png(image))
        return {"ui": _shown(paths, "", "temp")}


class MaskPreview(PreviewImage):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"mask": ("MASK",)}, "hidden": {"node": "UNIQUE_ID"}}

    def preview(self, mask, node=None):
        return super().preview(mask[..., None].expand(-1, -1, -1, 3), node)


class PreviewAny:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"source": ("*", {})}}

    def show(self, source):
        text = source if isinstance(source, str) else json.dumps(source, default=str, indent=2)
        sys.stdout.write(text.rstrip("\n") + "\n")
        return {"ui": {"text": (text,)}}


class ImageScale:
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
            narrower = (width / height) / (wide / high)  # as ComfyUI divides: ties round the same way
            x = round((wide - wide * narrower) / 2) if narrower < 1 else 0
            y = round((high - high * ((wide / high) / (width / height))) / 2) if narrower > 1 else 0
            image = image[:, y : high - y, x : wide - x]
        planes = image.permute(0, 3, 1, 2)
        if upscale_method in ("bilinear", "bicubic", "lanczos"):  # lanczos needs Pillow, which ComfyUI has
            mode = "bilinear" if upscale_method == "bilinear" else "bicubic"
            smooth = upscale_method == "lanczos"
            out = interpolate(planes, (height, width), mode=mode, antialias=smooth)
        else:
            out = interpolate(planes, (height, width), mode=upscale_method)
        return (out.clamp(0, 1).permute(0, 2, 3, 1).contiguous(),)


class ImageBatch:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1, image2):
        if image1.shape[1:3] != image2.shape[1:3]:
            (image2,) = ImageScale().scale(image2, "bilinear", image1.shape[2], image1.shape[1], "center")
        channels = min(image1.shape[3], image2.shape[3])
        return (torch.cat([image1[..., :channels], image2[..., :channels]]),)


class ImageFromBatch:
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
        "__doc__": f"A {kind} typed by a person.",
    }
    return type(f"Primitive{kind.title()}", (), members)


STANDINS: dict[str, tuple[type, str]] = {
    "LoadImage": (LoadImage, "Load Image"),
    "LoadVideo": (LoadVideo, "Load Video"),
    "GetVideoComponents": (GetVideoComponents, "Get Video Components"),
    "CreateVideo": (CreateVideo, "Create Video"),
    "SaveVideo": (SaveVideo, "Save Video"),
    "SaveImage": (SaveImage, "Save Image"),
    "PreviewImage": (PreviewImage, "Preview Image"),
    "MaskPreview": (MaskPreview, "Preview Mask"),
    "PreviewAny": (PreviewAny, "Preview Any"),
    "ImageScale": (ImageScale, "Upscale Image"),
    "ImageBatch": (ImageBatch, "Batch Images"),
    "ImageFromBatch": (ImageFromBatch, "ImageFromBatch"),
    "PrimitiveInt": (_primitive("INT", control_after_generate=True), "Int"),
    "PrimitiveFloat": (_primitive("FLOAT"), "Float"),
    "PrimitiveString": (_primitive("STRING"), "String"),
    "PrimitiveStringMultiline": (_primitive("STRING", multiline=True), "String (Multiline)"),
    "PrimitiveBoolean": (_primitive("BOOLEAN"), "Boolean"),
}


def _in_input(name: str, what: str) -> bool | str:
    """True, or what is wrong with the file, before anything runs."""
    try:
        host.input_path(name, what)
    except ValueError as error:
        return str(error)
    return True


# -- pictures --------------------------------------------------------------------------------------


def _shown(paths: list[Path], subfolder: str, kind: str) -> dict[str, list]:
    return {"images": [{"filename": p.name, "subfolder": subfolder, "type": kind} for p in paths]}


def read_picture(path: Path) -> tuple[Tensor, Tensor]:
    """A picture file as IMAGE and MASK; the mask is where it is transparent, as ComfyUI has it."""
    import cv2
    import numpy

    data = numpy.frombuffer(path.read_bytes(), numpy.uint8)
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if raw is None:
        raise ValueError(
            f"the picture {path.name!r} cannot be read: choose a PNG, JPEG, WebP, BMP or TIFF file"
        )
    top = 65535 if raw.dtype == numpy.uint16 else 1 if raw.dtype == numpy.float32 else 255
    mask = torch.zeros(1, 64, 64)
    if raw.ndim == 3 and raw.shape[2] == 4:
        mask = 1 - torch.from_numpy(raw[None, ..., 3].astype(numpy.float32) / top)
        raw = raw[..., :3]
    else:  # decoded once more: this way round the camera's orientation is applied
        depth = cv2.IMREAD_ANYDEPTH if top == 65535 else 0
        raw = cv2.imdecode(data, cv2.IMREAD_COLOR | depth)
    return torch.from_numpy(raw[None, ..., ::-1].astype(numpy.float32) / top), mask


def png(image: Tensor) -> bytes:
    """One picture [H, W, 1, 3 or 4] in 0..1 as a PNG file, 8 bits; cut to whole numbers as ComfyUI does."""
    import cv2

    pixels = image.detach().cpu().clamp(0, 1).mul(255).to(torch.uint8).numpy()
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[-1]]
    return cv2.imencode(".png", pixels[..., order], [cv2.IMWRITE_PNG_COMPRESSION, 4])[1].tobytes()
