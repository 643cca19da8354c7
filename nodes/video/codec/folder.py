"""Writing a folder of PNG pictures. Each contains the workflow in text chunks, as ComfyUI's PNG files do."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .formats import EncoderSettings, encoder_options, pixel_format
from .media import ColorTags, VideoInfo
from .pictures import insert_text
from .pixels import FromRGB


class PictureSink:
    """Writes `frame_00001.png` and so on, with `fps` and `time` as text chunks for reading."""

    def __init__(self, target: str | os.PathLike, info: VideoInfo, recipe: EncoderSettings):
        self._folder, self._info, self._recipe = Path(target), info, recipe
        self._ours = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        pixels = pixel_format(recipe, info)
        self._convert = FromRGB(pixels, ColorTags())
        self._encoder = av.CodecContext.create(recipe.encoder, "w")
        self._encoder.width, self._encoder.height, self._encoder.pix_fmt = info.width, info.height, pixels
        self._encoder.time_base = Fraction(1, 1000)
        self._encoder.thread_type = "FRAME"  # pictures in parallel; they come out in order
        self._encoder.thread_count = 0
        self._encoder.options = encoder_options(recipe, pixels, info)
        self._times: list[Fraction] = []
        self._written: list[Path] = []

    def write(self, array: np.ndarray, time: Fraction) -> None:
        """The next picture."""
        frame = self._convert(array)
        frame.pts, frame.time_base = len(self._times), Fraction(1, 1000)
        self._times.append(time)
        self._save(self._encoder.encode(frame))

    def _save(self, packets: list) -> None:
        for packet in packets:
            number = len(self._written)
            path = self._folder / f"frame_{number + 1:05}.png"
            self._written.append(path)
            text = dict(self._recipe.metadata) | {
                "fps": str(self._info.fps),
                "time": str(self._times[number]),
            }
            path.write_bytes(insert_text(bytes(packet), text))

    def close(self) -> None:
        """Writes the pictures that are still in the encoder."""
        self._save(self._encoder.encode(None))

    def abandon(self) -> None:
        """Removes what was written."""
        for path in self._written:
            path.unlink(missing_ok=True)
        if self._ours and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()
