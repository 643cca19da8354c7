"""Conversion between a codec's frames and arrays of R'G'B', with the clip's own matrix and range.

swscale's fast path truncates instead of rounding: a decoded clip is 1.0 to 1.5 levels too dark, and every
further pass darkens it again. Its nearest-neighbour chroma makes red edges jagged. So the conversions use
accurate rounding and interpolated chroma: mean error 0.00 instead of -1, for 1 ms per 640x360 frame.
"""

from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from . import deep, media
from .media import (
    MATRICES,
    PRIMARIES,
    RANGES,
    SWS_MATRICES,
    TRANSFERS,
    ColorTags,
    Orientation,
    VideoInfo,
)
from .source import Source, label, orientation

_BILINEAR, _FULL_CHROMA, _ACCURATE = 0x2, 0x2000, 0x40000  # SWS_*: older PyAV has no names for them
_FLAGS = _BILINEAR | _FULL_CHROMA | _ACCURATE
_DEEP_FLAGS = 0x4 | _FULL_CHROMA | _ACCURATE  # bicubic: bilinear 4:2:0 is broken above 8 bits
_FULL = RANGES["full"]


class ToRGB:
    """Converts decoded frames to upright arrays [H, W, 3 or 4]. One swscale context serves the whole clip."""

    def __init__(self, info: VideoInfo):
        self._info = info
        self._deep = info.bit_depth > 8
        self._scale = VideoReformatter()
        self._read: tuple[int, Source] | None = None  # the angle and the source at which `_up` was read
        self._up = Orientation()

    def __call__(self, frame: Any, number: int, source: Source) -> np.ndarray:
        if (frame.rotation, source) != self._read:
            self._read, self._up = (frame.rotation, source), orientation(frame, source)
        info, up = self._info, self._up
        size = (frame.height, frame.width) if up.transpose else (frame.width, frame.height)
        if size != (info.width, info.height):
            raise ValueError(
                f"{label(source)} changes its size from {info.width}x{info.height} to "
                f"{size[0]}x{size[1]} at frame {number}: cut it there, or convert it to one size"
            )
        if self._deep and info.color.matrix != "rgb":
            return up.apply(self._deep_rgb(frame))
        rgb = self._scale.reformat(
            frame,
            format=_packed(self._deep, info.alpha),
            interpolation=_FLAGS,
            src_color_range=RANGES[info.color.range],
            dst_color_range=_FULL,
            **_matrices(info.color.matrix),
        )
        array = _view(rgb.planes[0], np.uint16 if self._deep else np.uint8, 4 if info.alpha else 3)
        array = up.apply(array)
        # The array uses the memory of `rgb`. Copy it if that is the decoder's own frame.
        return array.copy() if rgb is frame else array

    def _deep_rgb(self, frame: Any) -> np.ndarray:
        """Above 8 bits swscale only resizes the planes; deep.py does the arithmetic."""
        color, bits = self._info.color, frame.format.components[0].bits
        alpha = "a" if self._info.alpha else ""
        full_size = self._scale.reformat(frame, format=f"yuv{alpha}444p{bits}le", interpolation=_DEEP_FLAGS)
        planes = [_view(plane, np.uint16, 1)[..., 0] for plane in full_size.planes]
        codes = torch.from_numpy(np.stack(planes[:3]).astype(np.int32))
        rgb = media.from_float(deep.to_rgb(codes, color, bits), 16).numpy().transpose(1, 2, 0)
        return np.dstack([rgb, deep.widen(planes[3], bits)]) if alpha else rgb


class FromRGB:
    """Converts arrays [H, W, 3 or 4] to frames in the encoder's format and colours."""

    def __init__(self, pixels: str, color: ColorTags):
        self._color, self._pixels, self._yuv = color, pixels, pixels.startswith("yuv")
        self._matrix = color.matrix if self._yuv else "rgb"
        self._range = RANGES[color.range] if self._yuv else _FULL
        self._scale = VideoReformatter()

    def __call__(self, array: np.ndarray) -> Any:
        if array.dtype == np.uint16 and self._yuv:
            if self._pixels.endswith("10le"):
                return self._tagged(self._deep_yuv(array))
            array = deep.narrow(array, 8).astype(np.uint8)
        frame = _frame_over(array, _packed(array.dtype == np.uint16, array.shape[2] == 4))
        out = self._scale.reformat(
            frame,
            format=self._pixels,
            interpolation=_FLAGS,
            src_color_range=_FULL,
            dst_color_range=self._range,
            **_matrices(self._matrix, writing=True),
        )
        if out is frame:  # nothing was converted: the encoder must not keep the caller's memory
            out = av.VideoFrame.from_ndarray(array, format=self._pixels)
        return self._tagged(out) if self._yuv else out

    def _deep_yuv(self, array: np.ndarray) -> Any:
        """The inverse of `_deep_rgb`, at 10 bits."""
        height, width, channels = array.shape
        alpha = "yuva" in self._pixels
        frame = av.VideoFrame(width, height, f"yuv{'a' if alpha else ''}444p10le")
        rgb = media.to_float(torch.from_numpy(np.ascontiguousarray(array[..., :3].transpose(2, 0, 1))))
        planes = list(deep.from_rgb(rgb, self._color, 10).numpy())
        if alpha:
            planes.append(deep.narrow(array[..., 3], 10) if channels == 4 else np.uint16(1023))
        for plane, codes in zip(frame.planes, planes, strict=True):
            _view(plane, np.uint16, 1)[..., 0] = codes
        return self._scale.reformat(frame, format=self._pixels, interpolation=_DEEP_FLAGS)

    def _tagged(self, out: Any) -> Any:
        out.colorspace, out.color_range = MATRICES[self._matrix], self._range
        if hasattr(out, "color_trc"):  # since PyAV 17; ProRes writes the frame's tags
            out.color_primaries = PRIMARIES[self._color.primaries]
            out.color_trc = TRANSFERS[self._color.transfer]
        return out


def _view(plane: Any, dtype: Any, channels: int) -> np.ndarray:
    """A plane's memory as [H, W, channels]; rows may be padded."""
    rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
    return rows[:, : plane.width * channels].reshape(plane.height, plane.width, channels)


def _packed(deep: bool, alpha: bool) -> str:
    return ("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")


def _frame_over(array: np.ndarray, pixels: str) -> Any:
    """A frame that uses the array's memory, or a copy if PyAV cannot do that."""
    try:
        return av.VideoFrame.from_numpy_buffer(array, format=pixels)
    except ValueError:
        return av.VideoFrame.from_ndarray(array, format=pixels)


def _matrices(matrix: str, *, writing: bool = False) -> dict[str, int]:
    """swscale's numbers for both sides of a conversion.

    The number of the R'G'B' side is not used, but it must differ from the other side's: old PyAV ignores
    the matrix and the ranges if both sides are equal.
    """
    if matrix == "rgb":
        return {}
    number = SWS_MATRICES[matrix]
    other = 5 if number == 1 else 1
    source, target = (other, number) if writing else (number, other)
    return {"src_colorspace": source, "dst_colorspace": target}
