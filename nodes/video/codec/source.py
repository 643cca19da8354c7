"""Opening a source and reading its properties: containers, streams, packets. No pixel is converted here."""

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from ...common import pictures
from . import whole
from .media import SWS_MATRICES, ColorTags, Orientation, VideoInfo
from .pictures import ENDINGS, exif_orientation, number, pictures_of, read_text

# No playlists and descriptions of streams (HLS, DASH, SDP, concat): they name other files and addresses.
_FORMATS = (
    "mov,matroska,gif,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,mxf,nut,dv,rm,ivf,obu,h264,hevc,mjpeg,"
    "yuv4mpegpipe,apng,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
_SLOWEST = Fraction(1, 10_000)  # frames per second
_DURATION = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,12})?)")
Source = str | os.PathLike | io.BytesIO


def label(source: Source) -> str:
    return "the video in memory" if isinstance(source, io.BytesIO) else repr(Path(source).name)


def is_folder(source: Source) -> bool:
    """True for a folder of pictures."""
    return not isinstance(source, io.BytesIO) and Path(source).is_dir()


@contextmanager
def open_source(source: Source) -> Iterator[Any]:
    """The container of a source. A source that cannot be opened gives an error message."""
    if isinstance(source, io.BytesIO):
        file: Any = io.BytesIO(source.getvalue())  # its own position; the bytes are shared
        head = file.read(4096)
        file.seek(0)
    elif Path(source).is_file():
        file = os.path.abspath(source)  # never mistaken for a protocol
        with open(file, "rb") as opened:
            head = opened.read(4096)
        if Path(source).suffix.lower() in ENDINGS:  # a name like "a%03d.png" would be taken for a pattern
            pictures.check_size(label(source), *pictures.size(Path(source)))
            file = io.BytesIO(Path(source).read_bytes())
    else:
        raise ValueError(f"{label(source)} does not exist: choose another video")
    if not head:
        raise ValueError(f"{label(source)} is empty: copy or download it again")
    try:
        container = av.open(file, metadata_errors="replace", options=_OPTIONS)
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{label(source)} {_why_not(head, error)}") from error
    with container:
        yield container


@contextmanager
def decoding_errors(source: Source) -> Iterator[None]:
    """Convert an error in the middle of a file to an error message."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{label(source)} is cut short or damaged ({error.strerror}): copy or download it again"
        ) from error


def _why_not(head: bytes, error: Exception) -> str:
    known = head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8")
    if not known:
        return "is not a video that can be read: convert it to mp4, mkv, webm, mov or gif"
    if isinstance(error, EOFError):
        return "has no frames, it ends after its header: record or copy it again"
    return "is cut short or damaged (its index cannot be read): copy or download it again"


def video_stream(container: Any, source: Source) -> Any:
    """The first video stream that is not a cover picture."""
    streams = [s for s in container.streams.video if not is_cover(s)]
    if streams and streams[0].codec_context is None:
        raise ValueError(f"{label(source)} has a codec that this PyAV cannot decode: convert it to H.264")
    if streams:
        context = streams[0].codec_context
        pictures.check_size(label(source), context.width, context.height)
        streams[0].thread_type = "AUTO"
        return streams[0]
    what = "only sound" if container.streams.audio else "no video"
    raise ValueError(f"{label(source)} contains {what}: choose a file with a video track")


def is_cover(stream: Any) -> bool:
    return bool(stream.disposition.value & 0x400)  # AV_DISPOSITION_ATTACHED_PIC


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames from the container's current position.

    FFmpeg's own VP8 and VP9 decoders drop the alpha channel, so libvpx is used if there is one.
    """
    context = stream.codec_context
    if context.name in ("vp8", "vp9") and stream.metadata.get("alpha_mode") == "1":
        own = av.CodecContext.create("libvpx-vp9" if context.name == "vp9" else "libvpx", "r")
        own.extradata = context.extradata
        own.thread_type = "AUTO"
        context = own
    for packet in container.demux(stream):
        yield from context.decode(packet if packet.size else None)


def probe(source: Source, *, count: bool = False) -> VideoInfo:
    """The properties of a source. One frame is decoded; with `count`, packets are read for an exact count."""
    if is_folder(source):
        return _probe_pictures(Path(source))
    with open_source(source) as container:
        stream = video_stream(container, source)
        frame = first_frame(container, stream, source)
        info = _info(container, stream, frame, source)
        _reject_truncated(container, stream, source)
    if count or container.format.name == "gif":  # the number of frames of a GIF is known without counting
        with _bytes_of(source) as file:
            info = replace(info, complete=whole.is_whole(file, container.format.name))
    if count:
        table = Packets.read(source)
        info = replace(info, frame_count=table.count, exact=True, variable=table.is_variable(info.fps))
    return info


def first_frame(container: Any, stream: Any, source: Source) -> Any:
    try:
        with closing(decode(container, stream)) as frames:
            frame = next(frames, None)
    except av.FFmpegError as error:
        raise ValueError(
            f"{label(source)} is damaged at its first frame: copy or download it again"
        ) from error
    if frame is None:
        raise ValueError(f"{label(source)} has a video track without frames: choose another file")
    return frame


def _info(container: Any, stream: Any, frame: Any, source: Source) -> VideoInfo:
    context, layout = stream.codec_context, frame.format
    fps = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
    if fps < _SLOWEST:
        raise ValueError(
            f"{label(source)} has {float(fps):.2g} frames per second: its times are damaged, convert it"
        )
    start = (frame.pts or 0) * Fraction(stream.time_base)
    seconds = _seconds(stream, container, start)
    own = round(_seconds(stream, None, start) * fps)
    exact = bool(stream.frames) and abs(seconds * fps - stream.frames) < 1  # an edit list may hide frames
    count = stream.frames if exact else max(1, round(seconds * fps) or stream.frames)
    width, height = frame.width, frame.height
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    if orientation(frame, source).transpose:
        width, height, aspect = height, width, 1 / aspect
    variable = abs(Fraction(stream.base_rate or fps) / fps - 1) > Fraction(1, 50)
    colors = (int(context.color_range or frame.color_range), int(context.colorspace))
    colors += (int(context.color_primaries), int(context.color_trc))
    old = context.name in ("vp8", "webp")  # always BT.601
    matroska = "matroska" in container.format.name  # its tags are in capitals
    hd = not old and (frame.width >= 1280 or frame.height > 576)
    color = ColorTags.read(*colors, pixels=layout.name, hd=hd)
    if color.matrix not in ("rgb", *SWS_MATRICES):
        raise ValueError(
            f"{label(source)} has the colour matrix {color.matrix}, which cannot be read: convert it to bt709"
        )
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        frame_count=count,
        exact=exact,
        promised=0 if variable else own,
        bit_depth=max((c.bits for c in layout.components), default=8),
        color=color,
        alpha=has_alpha(frame, context.name),
        has_audio=bool(container.streams.audio),
        variable=variable,
        pixel_aspect=aspect,
        start_time=start,
        metadata=_tags(container, matroska),
    )


def _tags(container: Any, matroska: bool) -> dict[str, str]:
    """The file's tags. A GIF of ours has them as JSON in its comment."""
    found = dict(container.metadata)
    if container.format.name == "gif":
        with suppress(ValueError, RecursionError):
            ours = json.loads(found.get("comment", ""))
            if isinstance(ours, dict) and all(isinstance(v, str) for v in ours.values()):
                return ours
    return {k.lower() if matroska else k: v for k, v in found.items()}


def _seconds(stream: Any, container: Any, start: Fraction) -> Fraction:
    """The duration of the video track (or of the container) from the header; 0 if there is none."""
    # Matroska: hours:minutes:seconds of this track
    if duration := _DURATION.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = duration.groups()
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds) - start
    if stream.duration:
        return stream.duration * Fraction(stream.time_base)
    return Fraction((container and container.duration) or 0, av.time_base)


def has_alpha(frame: Any, codec: str) -> bool:
    name = frame.format.name
    if not name.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya")):
        return False
    if codec == "gif":  # always decoded with alpha, also opaque ones
        return bool((frame.reformat(format="rgba").to_ndarray()[..., 3] < 255).any())
    return True


def orientation(frame: Any, source: Source) -> Orientation:
    """How a frame is rotated. Call this once per clip: PyAV's side data keeps its frame alive."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know the kind of another entry, such as EXIF data
        return Orientation(*exif_orientation(source))
    return Orientation.of(bytes(matrix) if matrix is not None else None)


def _reject_truncated(container: Any, stream: Any, source: Source) -> None:
    """Reject a file that is shorter than its header says, before a long render starts."""
    entries = getattr(stream, "index_entries", ())  # since PyAV 17
    promised = 0
    if "mp4" in container.format.name and len(entries):
        promised = max(entries[i].pos + entries[i].size for i in (0, len(entries) - 1))
    elif "matroska" in container.format.name:
        promised = whole.matroska_size(_head(source))
    if promised > container.size:
        raise ValueError(
            f"{label(source)} is cut short ({container.size} of at least {promised} bytes): "
            "copy or download it again"
        )


def _bytes_of(source: Source) -> BinaryIO:
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open(source, "rb")


def _head(source: Source) -> bytes:
    with _bytes_of(source) as file:
        return file.read(4096)


def _probe_pictures(folder: Path) -> VideoInfo:
    paths = pictures_of(folder)
    if not paths:
        raise ValueError(
            f"the folder {folder.name!r} contains no pictures: choose one with PNG or JPEG files"
        )
    first, text = probe(paths[0]), read_text(paths[0])
    return replace(
        first,
        fps=number(text, "fps", low=_SLOWEST) or Fraction(24),
        frame_count=len(paths),
        exact=True,
        variable=False,
        start_time=Fraction(0),
        metadata={k: v for k, v in text.items() if k not in ("fps", "time")},
    )


@dataclass(frozen=True)
class Packets:
    """The times of all frames, from their packets, without decoding."""

    times: list[int | None]  # in display order
    keys: list[int]  # times of key frames
    time_base: Fraction

    @classmethod
    def read(cls, source: Source) -> "Packets":
        with open_source(source) as container:
            stream = video_stream(container, source)
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
            times = [pts for pts, _ in packets]
            if None not in times:
                times.sort()
            keys = sorted(pts for pts, key in packets if key and pts is not None)
            return cls(times, keys, Fraction(stream.time_base))

    @property
    def count(self) -> int:
        return len(self.times)

    def is_variable(self, fps: Fraction) -> bool:
        """Whether the times of frames are not evenly spaced."""
        if len(self.times) < 3 or None in self.times:
            return False
        step = Fraction(self.times[-1] - self.times[0], len(self.times) - 1)
        off = max(abs(t - self.times[0] - i * step) for i, t in enumerate(self.times))
        return off > max(step / 4, Fraction(2, 1000) / self.time_base)
