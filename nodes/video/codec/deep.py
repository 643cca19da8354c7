"""Y'CbCr to R'G'B' and back above 8 bits, as ITU-R BT.601, 709 and 2020 write it; no PyAV.

swscale's own conversions between 10-bit Y'CbCr and 16-bit R'G'B' are off by up to four 10-bit codes, and dark
by half an 8-bit level on average: less than the depth promises. Here is the equation, in float32:

    Y' = Kr R' + (1 - Kr - Kb) G' + Kb B',   Cb = (B' - Y') / 2(1 - Kb),   Cr = (R' - Y') / 2(1 - Kr)
"""

import numpy as np
import torch
from torch import Tensor

from .media import ColorTags

WEIGHTS = {  # Kr, Kb
    "bt709": (0.2126, 0.0722),
    "bt601": (0.299, 0.114),
    "bt2020": (0.2627, 0.0593),
    "bt2020c": (0.2627, 0.0593),  # constant luminance, read as players read it
    "smpte240m": (0.212, 0.087),
    "fcc": (0.3, 0.11),
}


def _codes(color: ColorTags, bits: int) -> tuple[float, float, float, float]:
    """Black, the height of Y', the middle and the width of Cb and Cr, as codes of `bits` bits."""
    middle = float(1 << (bits - 1))
    if color.range == "full":
        return 0.0, 2.0**bits - 1, middle, 2.0**bits - 1
    step = float(1 << (bits - 8))
    return 16 * step, 219 * step, middle, 224 * step


def to_rgb(planes: Tensor, color: ColorTags, bits: int) -> Tensor:
    """Codes [3, H, W] of Y', Cb, Cr to R'G'B' [H, W, 3], float32, white 1."""
    kr, kb = WEIGHTS[color.matrix]
    black, height, middle, width = _codes(color, bits)
    y = (planes[0].float() - black) / height
    cb, cr = (planes[1:].float() - middle) / width
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return torch.stack([r, g, b], dim=-1)


def from_rgb(rgb: Tensor, color: ColorTags, bits: int) -> Tensor:
    """R'G'B' [H, W, 3], white 1, to codes [3, H, W] of Y', Cb, Cr, rounded; int32."""
    kr, kb = WEIGHTS[color.matrix]
    black, height, middle, width = _codes(color, bits)
    r, g, b = rgb.unbind(-1)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    codes = torch.stack([black + height * y, middle + width * cb, middle + width * cr])
    return codes.round_().clamp_(0, 2**bits - 1).to(torch.int32)


def widen(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits over the whole range (alpha) to 16 bits."""
    return np.rint(codes.astype(np.float32) * (65535 / (2**bits - 1))).astype(np.uint16)


def narrow(codes: np.ndarray, bits: int) -> np.ndarray:
    """16 bits over the whole range (alpha) to codes of `bits` bits."""
    return np.rint(codes.astype(np.float32) * ((2**bits - 1) / 65535)).astype(np.uint16)
