"""Y'CbCr to R'G'B' and back above 8 bits, as in ITU-R BT.601, 709 and 2020 (no PyAV).

swscale's conversions between 10-bit Y'CbCr and 16-bit R'G'B' are wrong by up to four 10-bit codes, and too
dark by half an 8-bit level on average. This module computes the equation in float32:

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
    "bt2020c": (0.2627, 0.0593),  # constant luminance, decoded as players do
    "smpte240m": (0.212, 0.087),
    "fcc": (0.3, 0.11),
}


def _codes(color: ColorTags, bits: int) -> tuple[float, float, float, float]:
    """Black and range of Y', centre and range of Cb and Cr, as codes of `bits` bits."""
    middle = float(1 << (bits - 1))
    if color.range == "full":
        return 0.0, 2.0**bits - 1, middle, 2.0**bits - 1
    step = float(1 << (bits - 8))
    return 16 * step, 219 * step, middle, 224 * step


def to_rgb(planes: Tensor, color: ColorTags, bits: int) -> Tensor:
    """Codes of Y', Cb, Cr to R'G'B', both [3, H, W]; float32, white 1."""
    kr, kb = WEIGHTS[color.matrix]
    black, height, middle, width = _codes(color, bits)
    y, cb, cr = planes.to(torch.float32)
    y, cb, cr = y.sub_(black).div_(height), cb.sub_(middle).div_(width), cr.sub_(middle).div_(width)
    r, b = torch.add(y, cr, alpha=2 * (1 - kr)), torch.add(y, cb, alpha=2 * (1 - kb))
    g = y.sub_(r, alpha=kr).sub_(b, alpha=kb).div_(1 - kr - kb)
    return torch.stack([r, g, b])


def from_rgb(rgb: Tensor, color: ColorTags, bits: int) -> Tensor:
    """R'G'B', white 1, to codes of Y', Cb, Cr, both [3, H, W]; rounded, int32."""
    kr, kb = WEIGHTS[color.matrix]
    black, height, middle, width = _codes(color, bits)
    r, g, b = rgb
    y = (g * (1 - kr - kb)).add_(r, alpha=kr).add_(b, alpha=kb)
    cb = (b - y).mul_(width / (2 * (1 - kb))).add_(middle)
    cr = (r - y).mul_(width / (2 * (1 - kr))).add_(middle)
    codes = torch.stack([y.mul_(height).add_(black), cb, cr])
    return codes.round_().clamp_(0, 2**bits - 1).to(torch.int32)


def widen(codes: np.ndarray, bits: int) -> np.ndarray:
    """Full-range codes of `bits` bits (alpha) to 16 bits."""
    return np.rint(codes.astype(np.float32) * (65535 / (2**bits - 1))).astype(np.uint16)


def narrow(codes: np.ndarray, bits: int) -> np.ndarray:
    """Full-range 16-bit codes (alpha) to `bits` bits."""
    return np.rint(codes.astype(np.float32) * ((2**bits - 1) / 65535)).astype(np.uint16)
