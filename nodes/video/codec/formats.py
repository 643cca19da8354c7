"""What this PyAV can write: containers, codecs, pixel formats, encoder settings.

Odd sizes: H.264, H.265 and AV1 allow no odd sizes with 4:2:0, so a clip of odd size is written as 4:4:4 if
the encoder can. That keeps every pixel and plays in ffmpeg, VLC, mpv and Chrome, but not in Safari or on
hardware decoders. VP9 allows odd sizes.
"""

from dataclasses import dataclass
from functools import cache

import av

from .media import VideoInfo

_ENCODERS = {  # codec: its encoders, the best first
    "h264": ("libx264", "libopenh264"),
    "h265": ("libx265", "libkvazaar"),
    "vp9": ("libvpx-vp9",),
    "av1": ("libsvtav1", "libaom-av1", "librav1e"),
    "prores": ("prores_ks",),
    "ffv1": ("ffv1",),
    "gif": ("gif",),
    "png": ("png",),
}
_QUALITY = {"h264": 18, "h265": 20, "vp9": 28, "av1": 26, "prores": 3}  # crf; ProRes: the profile (HQ)
_PRORES_4444 = "4"
_SMALLEST = {"libsvtav1": 64}  # pixels of a side; SVT-AV1 hangs on smaller frames, or overwrites memory
_SMALLEST_CUTREE = 64  # pixels of a side; below, CU-tree of libx265 overwrites memory


@dataclass(frozen=True)
class Container:
    """A container: FFmpeg's name of it, and the codecs that it allows."""

    muxer: str
    codecs: tuple[str, ...]
    sounds: tuple[str, ...] = ()  # sound codecs that are copied; others are encoded to the first
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EncoderSettings:
    """How a clip is written."""

    container: Container
    codec: str
    encoder: str
    quality: int | None = None
    preset: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()


# use_metadata_tags keeps the keys `prompt` and `workflow`. faststart puts them into the first bytes, where
# ComfyUI's front end looks for them.
_MOV = (("movflags", "use_metadata_tags+faststart"),)
_SOUNDS = ("aac", "mp3", "ac3", "eac3", "alac")
_PCM = ("pcm_s16le", "pcm_s24le")
CONTAINERS = {
    "mp4": Container("mp4", ("h264", "h265", "av1", "vp9"), (*_SOUNDS, "opus"), _MOV),
    "mkv": Container(
        "matroska",
        ("h264", "h265", "vp9", "av1", "prores", "ffv1"),
        (*_SOUNDS, "opus", "vorbis", "flac", "dts", *_PCM),
    ),
    "webm": Container("webm", ("vp9", "av1"), ("opus", "vorbis")),
    "mov": Container("mov", ("h264", "h265", "prores"), (*_SOUNDS, *_PCM, "pcm_s16be"), _MOV),
    "gif": Container("gif", ("gif",)),
    "png": Container("", ("png",)),
}


@cache
def encoder_of(codec: str) -> str | None:
    """The name of an encoder in this build; None if it has none."""
    return next((name for name in _ENCODERS[codec] if _can_write(name)), None)


def _can_write(name: str) -> bool:
    try:
        return av.Codec(name, "w").type == "video"
    except ValueError:  # not in this build, or a decoder only
        return False


def containers() -> list[str]:
    """The containers that this PyAV can write; "png" is a folder of pictures."""
    muxers = {"", *av.formats_available}
    return [name for name, c in CONTAINERS.items() if c.muxer in muxers and codecs(name)]


def codecs(container: str) -> list[str]:
    """The codecs that this PyAV can write into a container."""
    if container not in CONTAINERS:
        raise ValueError(f"{container!r} is not a video container: choose one of {', '.join(CONTAINERS)}")
    return [codec for codec in CONTAINERS[container].codecs if encoder_of(codec)]


def choose(container: str, codec: str, info: VideoInfo) -> str:
    """The codec for a clip. "auto" is one that keeps alpha and bit depth if there is one, else the first."""
    possible = codecs(container)
    if not possible:
        raise ValueError(f"this PyAV cannot write {container}: choose one of {', '.join(containers())}")
    smallest = {name: _SMALLEST.get(encoder_of(name), 1) for name in possible}
    fitting = [name for name in possible if min(info.width, info.height) >= smallest[name]]
    if codec != "auto":
        if codec not in possible:
            raise ValueError(
                f"{codec!r} cannot be written into {container}: choose one of {', '.join(possible)}, or auto"
            )
        if codec not in fitting:
            raise ValueError(
                f"{codec} needs frames of at least {smallest[codec]}x{smallest[codec]}, and this clip has "
                f"{info.width}x{info.height}: choose another codec, or make it larger"
            )
        return codec
    wishes = []
    if info.alpha:
        wishes += {"mov": ["prores"], "mkv": ["vp9"], "webm": ["vp9"]}.get(container, [])
    if info.bit_depth > 8:
        wishes += ["av1"] if container == "webm" else ["h265"]
    return next((c for c in wishes if c in fitting), fitting[0])


@cache
def _formats(encoder: str) -> frozenset[str]:
    return frozenset(f.name for f in av.Codec(encoder, "w").video_formats or ())


def pixel_format(recipe: EncoderSettings, info: VideoInfo) -> str:
    """The encoder's pixel format that keeps most: first alpha, then bit depth, then the exact size."""
    deep, alpha, codec = info.bit_depth > 8, info.alpha, recipe.codec
    odd = info.width % 2 or info.height % 2
    planes = "444p" if odd and codec in ("h264", "h265", "av1") else "420p"
    depths = ("10le", "") if deep else ("",)
    beside = codec == "vp9" and recipe.container.muxer in ("webm", "matroska")  # a second stream holds alpha
    wishes = [f"yuva{planes}{depth}" for depth in depths] if alpha and beside else []
    wishes += [f"yuv{planes}{depth}" for depth in depths] + [f"yuv420p{depth}" for depth in depths]
    if codec == "prores":
        wishes = ["yuva444p10le"] if alpha else ["yuv422p10le"]
    elif codec == "ffv1" and deep:
        wishes = ["gbrap16le"] if alpha else ["gbrp16le"]
    elif codec == "ffv1":
        wishes = ["bgra"] if alpha else ["bgr0"]
    elif codec == "png":
        wishes = [("rgba64be" if alpha else "rgb48be") if deep else ("rgba" if alpha else "rgb24")]
    elif codec == "gif":
        wishes = ["pal8"]
    best = next((w for w in wishes if w in _formats(recipe.encoder)), None)
    if best is None:
        raise ValueError(
            f"the encoder {recipe.encoder} writes none of {', '.join(wishes)}: choose another codec"
        )
    return best


def losses(pixels: str, info: VideoInfo) -> list[str]:
    """What a pixel format does not keep of a clip."""
    lost = []
    if info.alpha and not pixels.startswith(("yuva", "rgba", "bgra", "gbrap", "pal8")):
        lost.append("transparency")
    if info.bit_depth > 8 and not pixels.endswith(("10le", "16le", "48be", "64be")):
        lost.append("depth above 8 bits")
    return lost


def encoder_options(recipe: EncoderSettings, pixels: str, info: VideoInfo) -> dict[str, str]:
    """The encoder's options: constant quality, and the preset."""
    codec, preset = recipe.codec, recipe.preset
    level = str(_QUALITY.get(codec, 0) if recipe.quality is None else recipe.quality)
    alpha = pixels.startswith("yuva")
    small = min(info.width, info.height) < _SMALLEST_CUTREE
    options = {
        "libx264": {"crf": level},
        "libx265": {"crf": level, "x265-params": f"log-level=error{':no-cutree=1' if small else ''}"},
        "libvpx-vp9": {"crf": level, "b": "0", "deadline": "good", "row-mt": "1", "cpu-used": preset or "4"},
        "libsvtav1": {"crf": level, "preset": preset or "8"},
        "libaom-av1": {"crf": level, "b": "0", "row-mt": "1", "cpu-used": preset or "6"},
        "librav1e": {"qp": str(4 * int(level)), "speed": preset or "8"},
        "prores_ks": {"profile": _PRORES_4444 if alpha else str(min(int(level), 3)), "vendor": "apl0"},
        "ffv1": {"level": "3", "slicecrc": "1", "slices": "4", "g": "1"},
        "png": {"compression_level": "4"},
    }.get(recipe.encoder, {})
    if preset and codec in ("h264", "h265"):
        options["preset"] = preset
    if alpha and codec == "vp9":
        options["auto-alt-ref"] = "0"  # libvpx cannot code alpha with alternate references
    return options
