"""Bit-exact chunks of frames and their times: FFV1 in Matroska, with a checksum.

FFV1 conceals damaged slices, so the file also contains a CRC-32 of all pixels and times, which reading
compares.
"""

import os
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .formats import CONTAINERS, EncoderSettings
from .media import VideoInfo
from .muxer import FileSink
from .reader import Reader

_CHECKSUM, _TIMES = "checksum", "times"  # tags
Times = Sequence[Fraction]


def write_lossless(path: str | os.PathLike, frames: Tensor, times: Times, mark: str = "") -> None:
    """Write frames [n, H, W, 3 or 4], uint8 or uint16, to one file. After an error nothing is left.

    `mark` says which frames they are; reading with another mark is an error.
    """
    n, height, width, channels = frames.shape
    info = VideoInfo(
        width, height, Fraction(25), n, True, bit_depth=8 * frames.dtype.itemsize, alpha=channels == 4
    )
    pixels, text = frames.cpu().contiguous().numpy(), " ".join(map(str, times))
    tags = ((_CHECKSUM, _checksum(pixels, text, mark)), (_TIMES, text))
    sink = FileSink(path, info, EncoderSettings(CONTAINERS["mkv"], "ffv1", "ffv1", metadata=tags))
    try:
        for number, frame in enumerate(pixels):
            sink.write(frame, number / info.fps)
        sink.close()
    except BaseException:
        sink.abandon()
        raise


def read_lossless(path: str | os.PathLike, mark: str = "") -> tuple[Tensor, Times]:
    """The frames and times of a file that `write_lossless` wrote. A damaged file is an error."""
    damaged = f"{Path(path).name!r} is damaged: delete it, it will be computed again"
    try:
        with Reader(path) as reader:
            tags = reader.info.metadata
            pixels = torch.stack([frame for frame, _ in reader])
        if _checksum(pixels.numpy(), tags.get(_TIMES, ""), mark) != tags.get(_CHECKSUM):
            raise ValueError("the checksum differs")
        return pixels, tuple(map(Fraction, tags[_TIMES].split()))
    except (ValueError, RuntimeError) as error:  # RuntimeError: no frames to stack
        raise ValueError(damaged) from error


def _checksum(pixels: np.ndarray, times: str, mark: str) -> str:
    crc = zlib.crc32(f"{mark} {times}".encode(), zlib.crc32(pixels))
    return f"{'x'.join(map(str, pixels.shape))} {pixels.dtype} {crc:08x}"
