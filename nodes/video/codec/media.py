"""Properties of a clip that do not depend on a codec: size, times, colours, pixels, orientation.

**Colours.** Frames are R'G'B' as displayed, full range. Conversions from and to Y'CbCr use the clip's own
matrix and range, and the written file gets the same tags. A clip without tags is read as mpv does: BT.709
from 1280 columns or 577 lines on, else BT.601; limited range, full range for `yuvj` formats. Nothing is
tone-mapped: BT.2020, PQ and HLG values are kept, with their tags. Numbers are from ITU-T H.273, names from
FFmpeg.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MATRICES = {
    "rgb": 0, "bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "ycgco": 8, "bt2020": 9, "bt2020c": 10,
}  # fmt: skip
PRIMARIES = {
    "unknown": 2, "bt709": 1, "bt470m": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "film": 8,
    "bt2020": 9, "smpte428": 10, "smpte431": 11, "smpte432": 12, "ebu3213": 22,
}  # fmt: skip
TRANSFERS = {
    "unknown": 2, "bt709": 1, "gamma22": 4, "gamma28": 5, "smpte170m": 6, "smpte240m": 7, "linear": 8,
    "log100": 9, "log316": 10, "iec61966-2-4": 11, "bt1361e": 12, "srgb": 13, "bt2020-10": 14,
    "bt2020-12": 15, "pq": 16, "smpte428": 17, "hlg": 18,
}  # fmt: skip
RANGES = {"limited": 1, "full": 2}
SWS_MATRICES = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9, "bt2020c": 9}


class ColorTags(NamedTuple):
    """The conversion between R'G'B' and Y'CbCr (range, matrix), and the meaning of R'G'B' (the others)."""

    range: str = "limited"
    matrix: str = "bt709"
    primaries: str = "bt709"
    transfer: str = "bt709"

    @classmethod
    def read(
        cls, range_: int, matrix: int, primaries: int, transfer: int, *, pixels: str, hd: bool
    ) -> "ColorTags":
        """Names for a decoder's numbers. Missing values are guessed as players do."""
        grey = pixels.startswith(("gray", "ya", "mono")) and range_ != 1  # a picture
        if grey or pixels.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "pal", "0", "x2")):
            return cls("full", "rgb", _name(PRIMARIES, primaries), _name(TRANSFERS, transfer))
        full = range_ == 2 or pixels.startswith("yuvj")
        named = _name(MATRICES, 6 if matrix == 5 else matrix)  # 5 and 6 (625 and 525 lines) are one matrix
        if named in ("unknown", "rgb"):
            named = "bt709" if hd else "bt601"
        return cls(
            "full" if full else "limited", named, _name(PRIMARIES, primaries), _name(TRANSFERS, transfer)
        )

    def as_yuv(self) -> "ColorTags":
        """These tags for a Y'CbCr file: R'G'B' sources (pictures, gif) become limited BT.709."""
        return ColorTags() if self.matrix == "rgb" else self


def _name(names: dict[str, int], number: int) -> str:
    return next((name for name, n in names.items() if n == number), "unknown")


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a source, or of a file to write."""

    width: int  # as displayed: the rotation is applied
    height: int
    fps: Fraction
    frame_count: int = 0
    exact: bool = False  # False: the count comes from the header, or from duration and rate
    promised: int = 0  # frames of the track's duration at a constant rate; 0 if unknown
    complete: bool = True  # False: a part of the file is missing or damaged
    bit_depth: int = 8  # above 8, frames are full-range uint16, and files get 10 bits
    color: ColorTags = ColorTags()  # noqa: RUF009  (a tuple)
    alpha: bool = False
    has_audio: bool = False
    variable: bool = False
    pixel_aspect: Fraction = Fraction(1)
    start_time: Fraction = Fraction(0)  # of the first frame, in the source's own times
    metadata: dict[str, str] = field(default_factory=dict)


# -- pixels ----------------------------------------------------------------------------------------


def to_float(frames: Tensor) -> Tensor:
    """uint8 or uint16 to float32 in 0..1, as ComfyUI does."""
    return frames.to(torch.float32).div_(65535 if frames.dtype == torch.uint16 else 255)


def from_float(frames: Tensor, bit_depth: int = 8) -> Tensor:
    """float in 0..1 to uint8, or to uint16 above 8 bits: rounded, clamped; the inverse of `to_float`."""
    top = 255 if bit_depth <= 8 else 65535
    half = torch.tensor(0.5, dtype=torch.float32, device=frames.device)
    scaled = torch.add(half, frames.to(torch.float32), alpha=top).clamp_(0, top)  # the cast truncates
    return scaled.to(torch.uint8) if bit_depth <= 8 else scaled.to(torch.int32).to(torch.uint16)


# -- orientation -----------------------------------------------------------------------------------


class Orientation(NamedTuple):
    """A display matrix as array operations: first transpose, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, matrix: bytes | None) -> "Orientation":
        """From a display matrix (x' = a x + c y, y' = b x + d y). Only multiples of 90 degrees count."""
        if not matrix:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, "<i4")[:5].astype(float) / 65536
        if abs(a) > 0.99 * np.hypot(a, b) and abs(d) > 0.99 * np.hypot(c, d):
            return cls(False, a < 0, d < 0)
        if abs(b) > 0.99 * np.hypot(a, b) and abs(c) > 0.99 * np.hypot(c, d):
            return cls(True, c < 0, b < 0)
        return cls()

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The picture [H, W, C] as it is displayed."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.mirror_x:
            picture = picture[:, ::-1]
        if self.mirror_y:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


# -- sound -----------------------------------------------------------------------------------------


def contiguous(
    pieces: Iterable[tuple[int, np.ndarray]], start: int, stop: int | None, slack: int
) -> Iterator[np.ndarray]:
    """Samples `start`..`stop` of decoded pieces (position, [C, n]). Gaps become silence, overlaps are cut.

    Positions come from rounded timestamps, so a difference of up to `slack` samples is no gap.
    """
    at = None  # the next sample's position
    done = start
    for position, samples in pieces:
        at = position if at is None or abs(position - at) > slack else at
        if at > done:
            yield np.zeros((samples.shape[0], min(at, stop or at) - done), np.float32)
            done = min(at, stop or at)
        cut = samples[:, max(0, done - at) : None if stop is None else max(0, stop - at)]
        at += samples.shape[1]
        if cut.shape[1]:
            yield cut
            done += cut.shape[1]
        if stop is not None and done >= stop:
            return


# -- metadata --------------------------------------------------------------------------------------

_TECHNICAL = {"major_brand", "minor_version", "compatible_brands", "encoder", "rotate", "duration"}


def tags(metadata: dict[str, str | dict] | None, source: dict[str, str] | None = None) -> dict[str, str]:
    """Container tags as core SaveVideo writes them: text unchanged, everything else as JSON.

    The source's tags are kept, except those that describe the old file.
    """
    given = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    replaced = _TECHNICAL | {k.lower() for k in given}
    return {k: v for k, v in (source or {}).items() if k.lower() not in replaced} | given
