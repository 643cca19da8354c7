"""Bit-exact chunks of frames: FFV1 in Matroska, with a checksum of the pixels.

FFV1 conceals damaged slices, so the file also contains the shape and a CRC-32 of all pixels, which reading
compares.
"""

import os
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .formats import CONTAINERS, EncoderSettings
from .media import VideoInfo
from .muxer import FileSink
from .reader import Reader

_TAG = "pixels"


def write_lossless(path: str | os.PathLike, frames: Tensor) -> None:
    """Write frames [n, H, W, 3 or 4], uint8 or uint16, to one file. After an error nothing is left."""
    n, height, width, channels = frames.shape
    info = VideoInfo(
        width, height, Fraction(25), n, True, bit_depth=8 * frames.dtype.itemsize, alpha=channels == 4
    )
    pixels = frames.cpu().contiguous().numpy()
    recipe = EncoderSettings(CONTAINERS["mkv"], "ffv1", "ffv1", metadata=((_TAG, _checksum(pixels)),))
    sink = FileSink(path, info, recipe)
    try:
        for number, frame in enumerate(pixels):
            sink.write(frame, number / info.fps)
        sink.close()
    except BaseException:
        sink.abandon()
        raise


def read_lossless(path: str | os.PathLike) -> Tensor:
    """The frames of a file that `write_lossless` wrote. A damaged file is an error."""
    damaged = f"{Path(path).name!r} is damaged: delete it, it will be computed again"
    try:
        with Reader(path) as reader:
            checksum = reader.info.metadata.get(_TAG)
            frames = [frame for frame, _ in reader]
    except ValueError as error:
        raise ValueError(damaged) from error
    if not frames:
        raise ValueError(damaged)
    pixels = torch.stack(frames)
    if _checksum(pixels.numpy()) != checksum:
        raise ValueError(damaged)
    return pixels


def _checksum(pixels: np.ndarray) -> str:
    return f"{'x'.join(map(str, pixels.shape))} {pixels.dtype} {zlib.crc32(pixels):08x}"
