"""Reading and writing picture files with Pillow; OpenCV reads 16-bit and float pictures at their depth."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import host
from .files import replacing

MAX_MEGAPIXELS = 100  # of one frame or picture; a file of a few kilobytes can claim any size
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # others start programs: EPS Ghostscript
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def check_size(name: str, width: int, height: int) -> None:
    """An error for a picture that would take too much memory (REELBRUSH_MAX_MEGAPIXELS)."""
    if width * height > host.limit_from("REELBRUSH_MAX_MEGAPIXELS", MAX_MEGAPIXELS) * 1e6:
        raise ValueError(
            f"{name} has {width}x{height} pixels: make it smaller, or set the environment variable "
            f"REELBRUSH_MAX_MEGAPIXELS to more than {width * height / 1e6:.0f}"
        )


def size(path: Path) -> tuple[int, int]:
    """Width and height as the file's header says; 0, 0 where it is no picture."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            return opened.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture {path.name!r} is too large: make it smaller") from error
    except (OSError, SyntaxError, ValueError):
        pass
    try:
        with path.open("rb") as file:  # float TIFF
            directory = ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
        return int(directory[256]), int(directory[257])
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 0, 0


def read(path: Path) -> tuple[Tensor, Tensor | None]:
    """A picture [H, W, 3] in 0..1 and its opacity [H, W] in 0..1, None where the file has none."""
    import numpy
    from PIL import Image, ImageOps

    check_size(path.name, *size(path))
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if _is_deep(opened):
                return _read_deep(path)
            picture = ImageOps.exif_transpose(opened)
            transparent = picture.has_transparency_data
            pixels = numpy.asarray(picture.convert("RGBA" if transparent else "RGB"))
    except (OSError, SyntaxError, ValueError):  # Pillow does not know float TIFF
        return _read_deep(path)
    values = torch.from_numpy(pixels.astype(numpy.float32) / 255)
    return values[..., :3], values[..., 3] if transparent else None


def _is_deep(opened: Any) -> bool:
    """True for a picture that Pillow would reduce to 8 bits per channel."""
    return opened.mode in ("I", "F") or any(";16" in str(tile) for tile in opened.tile)


def _read_deep(path: Path) -> tuple[Tensor, Tensor | None]:
    import cv2
    import numpy

    data = numpy.frombuffer(path.read_bytes(), numpy.uint8)
    known = size(path) != (0, 0)
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if known else None
    if raw is None:
        raise ValueError(
            f"the picture {path.name!r} cannot be read: choose a PNG, JPEG, WebP, BMP or TIFF file"
        )
    top = 65535 if raw.dtype == numpy.uint16 else 1 if raw.dtype == numpy.float32 else 255
    opacity = None
    if raw.ndim == 3 and raw.shape[2] == 4:
        opacity = torch.from_numpy(raw[..., 3].astype(numpy.float32) / top)
        raw = raw[..., :3]
    else:  # IMREAD_UNCHANGED ignores the camera's orientation, IMREAD_COLOR applies it
        depth = cv2.IMREAD_ANYDEPTH if top != 255 else 0
        raw = cv2.imdecode(data, cv2.IMREAD_COLOR | depth)
    return torch.from_numpy(raw[..., ::-1].astype(numpy.float32) / top), opacity


def write(path: Path, picture: Tensor, text: Mapping[str, str] | None = None) -> Path:
    """Write a picture [H, W, 1, 3 or 4]; float values in 0..1 are rounded to 8 bits.

    The suffix chooses the format, PNG where there is none. `text` is metadata of a PNG file.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if picture.is_floating_point():
        picture = picture.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    pixels = picture.numpy()
    options: dict[str, Any] = {"format": Image.registered_extensions().get(path.suffix.lower(), "PNG")}
    if options["format"] == "PNG":
        info = PngInfo()
        for key, value in (text or {}).items():
            info.add_text(key, value)
        options |= {"compress_level": 4, "pnginfo": info}
    elif options["format"] == "JPEG":
        options |= {"quality": 95}
    with replacing(path) as temporary:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary, **options)
    return path
