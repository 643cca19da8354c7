"""Writing a clip to a file, to bytes, or to a folder of pictures."""

import errno
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from torch import Tensor

from .folder import PictureSink
from .formats import CONTAINERS, EncoderSettings, choose, encoder_of, losses, pixel_format
from .gif import GifSink
from .media import VideoInfo, tags
from .muxer import FileSink
from .sound import samples_of
from .source import Source

log = logging.getLogger("reelbrush")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE)


class Writer:
    """Writes a clip frame by frame. If the `with` block ends with an error, the output is removed.

    The times given to `write` are kept, counted from the first frame; without them frames are 1/fps apart.
    `audio_from` is a source whose sound is used, from `audio_range` (seconds since its first frame). It is
    copied packet by packet if the container allows its codec and the range begins at 0, else encoded again.
    `audio` is a ComfyUI AUDIO. With `sound_ends` the sound ends with the last frame. GIF files and picture
    folders have no sound.
    """

    def __init__(
        self,
        target: str | os.PathLike | io.BytesIO,
        info: VideoInfo,
        *,
        container: str = "mp4",
        codec: str = "auto",
        quality: int | None = None,
        preset: str | None = None,
        metadata: dict[str, str | dict] | None = None,
        audio_from: Source | None = None,
        audio: dict | None = None,
        audio_range: tuple[Fraction, Fraction | None] | None = None,
        sound_ends: bool = False,
    ):
        self.target, self.info = target, info
        self.frames_written = 0
        self._codec = choose(container, codec, info)
        encoder = encoder_of(self._codec)
        text = tuple(tags(metadata, info.metadata).items())
        sink = {"gif": GifSink, "png": PictureSink}.get(container, FileSink)
        how = EncoderSettings(CONTAINERS[container], self._codec, encoder, quality, preset, text)
        self._sink = sink(target, info, how)
        if lost := losses(pixel_format(how, info), info):
            log.warning("%s in %s does not keep the clip's %s", self._codec, container, " and ".join(lost))
        try:
            if isinstance(self._sink, FileSink):
                if audio is not None:
                    self._sink.add_sound(samples_of(audio), int(audio["sample_rate"]))
                elif audio_from is not None:
                    self._sink.add_sound_of(audio_from, audio_range)
                self._sink.sound_ends = sound_ends
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: Tensor, time: Fraction | None = None) -> None:
        """The next frame: uint8 or uint16 [H, W, 3 or 4]. `time` is in seconds, and increases."""
        height, width, channels = frame.shape
        if (width, height) != (self.info.width, self.info.height) or channels not in (3, 4):
            raise ValueError(
                f"frame {self.frames_written} is {width}x{height} with {channels} channels, the clip is "
                f"{self.info.width}x{self.info.height}: every frame needs the size of the first"
            )
        array = frame.detach().cpu().contiguous().numpy()
        if time is None:
            time = self.frames_written / self.info.fps
        if not self.frames_written:
            self._begin = time
        with self._errors():
            self._sink.write(array, time - self._begin)
        self.frames_written += 1

    def close(self) -> None:
        """Finishes the file."""
        if not self.frames_written:
            self.discard()
            raise ValueError("no frames were written: the clip is empty; check the trim before it")
        try:
            with self._errors():
                self._sink.close()
        except BaseException:
            self.discard()
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert an error of the encoder or the container to an error message."""
        try:
            yield
        except av.FFmpegError as error:
            if error.errno in _DISK_FULL:
                raise OSError(error.errno, "the disk is full: make room, and save again") from error
            if error.errno in _UNWRITABLE:
                raise OSError(f"the file cannot be written ({error.strerror}): check the folder") from error
            raise ValueError(
                f"this clip cannot be written as {self._codec} ({error.strerror}): "
                "choose another format or codec"
            ) from error

    def discard(self) -> None:
        """Stops, and removes what was written."""
        self._sink.abandon()
