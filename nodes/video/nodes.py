"""Video nodes: declarations. Clips are in lazy_video.py, saving in save.py, files in codec/."""

from .. import host
from ..common import inputs
from ..common.contact_sheet import contact_sheet, spread
from . import codec
from . import vae as vae_room
from .lazy_video import LazyVideo
from .save import Format, save

CATEGORY = "ReelBrush/Video"
_MAX = 1 << 30


class SaveVideo:
    """A lazy clip to a file, frame by frame."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Computes a clip and writes it while it is computed, so that memory does not grow with its length. "
        "Cancel it and queue it again: it goes on where it stopped."
    )
    SEARCH_ALIASES = ("save mp4", "export video", "webm", "gif", "prores", "image sequence", "video combine")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written (a folder for PNG frames).",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": inputs.connection("VIDEO", "The clip; its sound comes along."),
                "filename_prefix": inputs.text(
                    "video/ReelBrush",
                    "Name inside the output folder; %date parts%, %width% and %height% work.",
                ),
                "format": inputs.choice(
                    _containers(), "The file type. 'png frames' makes a folder of pictures.", "mp4"
                ),
                "codec": inputs.choice(
                    ["auto", *_codecs()], "How frames are compressed; auto takes the format's usual one."
                ),
                "quality": inputs.integer(
                    20,
                    0,
                    63,
                    "The codec's constant rate factor: smaller is better and larger. "
                    "18-23 for h264, about 30 for vp9 and av1. PNG and GIF have none.",
                ),
                "resume": inputs.switch(
                    True, "Keep finished frames on disk, and go on from there when queued again."
                ),
            },
            "optional": {
                "audio_from": inputs.connection(
                    "VIDEO", "Take the sound of this clip instead, from its beginning."
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        video,
        filename_prefix,
        format,
        codec,
        quality,
        resume,
        audio_from=None,
        prompt=None,
        extra_pnginfo=None,
    ):
        clip = LazyVideo.of(video)
        container = _containers()[format]
        suffix = "" if container == "png" else f".{container}"
        target, subfolder = host.numbered(filename_prefix, suffix, (clip.width, clip.height))
        metadata = {**(extra_pnginfo or {}), **({"prompt": prompt} if prompt else {})}
        save(
            clip.operation,
            target,
            Format(container, codec, quality),
            metadata=metadata if host.keeps_metadata() else {},
            audio_from=None if audio_from is None else LazyVideo.of(audio_from).operation,
            resume=resume,
            label="Saving video",
        )
        shown = {"filename": target.name, "subfolder": subfolder, "type": "output"}
        preview = {"images": [shown], "animated": (True,)} if suffix else {}
        return {"ui": preview, "result": (str(target),)}


def _containers() -> dict[str, str]:
    """What a person chooses, and the codec room's name for it."""
    return {"png frames" if name == "png" else name: name for name in codec.containers()}


def _codecs() -> list[str]:
    found = (name for container in codec.containers() for name in codec.codecs(container))
    return [name for name in dict.fromkeys(found) if name not in ("gif", "png", "auto")]


class TrimVideo:
    """Part of a clip, fewer frames, or smaller ones."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Takes part of a clip, every nth frame, or a smaller picture. Nothing is decoded until it is saved."
    )
    SEARCH_ALIASES = ("cut video", "skip frames", "select every nth", "frame load cap", "resize video")
    RETURN_TYPES = ("VIDEO",)
    OUTPUT_TOOLTIPS = ("The shorter or smaller clip, with the sound that belongs to it.",)
    FUNCTION = "trim"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": inputs.connection("VIDEO", "The clip to trim."),
                "start": inputs.integer(0, 0, _MAX, "The first frame, from 0."),
                "frames": inputs.integer(0, 0, _MAX, "How many frames at most; 0 takes all."),
                "every_nth": inputs.integer(
                    1, 1, 1000, "2 takes every second frame at half the frame rate: the duration stays."
                ),
                "max_side": inputs.max_side(
                    "Shrink so that the longer side has this many pixels; 0 keeps the size."
                ),
            }
        }

    def trim(self, video, start, frames, every_nth, max_side):
        return (LazyVideo.of(video).trim(start, frames, every_nth).fit(max_side),)


class PreviewVideo:
    """A few frames of a clip, before a long save."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Shows frames spread over a clip as one picture, so that a long render can be judged early."
    SEARCH_ALIASES = ("contact sheet", "video thumbnails", "storyboard")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("The frames side by side.",)
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": inputs.connection(
                    "VIDEO", "The clip; frames up to the last one shown are computed."
                ),
                "frames": inputs.integer(6, 1, 64, "How many frames, spread over the clip."),
            }
        }

    def preview(self, video, frames):
        clip = LazyVideo.of(video)
        return (contact_sheet(clip.frames_at(spread(clip.frame_count, frames))),)


class EncodeVideo:
    """Frames to latents, in a stream."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Encodes the frames of a clip into latents, a few at a time: only the latents stay in memory."
    )
    SEARCH_ALIASES = ("vae encode video", "video to latent")
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("One latent per frame.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": inputs.connection("VIDEO", "The clip to encode."),
                "vae": inputs.connection("VAE", "The VAE of the model that will use the latents."),
                "max_side": inputs.max_side(
                    "Shrink first: the longer side gets this many pixels; 0 keeps the size."
                ),
            }
        }

    def encode(self, video, vae, max_side):
        return ({"samples": vae_room.encode(LazyVideo.of(video).fit(max_side), vae)},)


class DecodeVideo:
    """Latents to a lazy clip."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Makes a clip of latents; each frame is decoded when it is saved, so memory stays small."
    SEARCH_ALIASES = ("vae decode video", "latent to video")
    RETURN_TYPES = ("VIDEO",)
    OUTPUT_TOOLTIPS = ("The clip; decoded as it is saved or previewed.",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": inputs.connection("LATENT", "One latent per frame."),
                "vae": inputs.connection("VAE", "The VAE of the model that made the latents."),
            },
            "optional": {
                "fps": inputs.decimal(24.0, 0.01, 1000.0, "Frames per second; `like` overrides it."),
                "like": inputs.connection("VIDEO", "Take frame rate and sound from this clip."),
            },
        }

    def decode(self, latent, vae, fps=24.0, like=None):
        return (vae_room.decode(latent["samples"], vae, fps, None if like is None else LazyVideo.of(like)),)


NODES = {
    "ReelBrushSaveVideo": (SaveVideo, "Save Video (Streaming)"),
    "ReelBrushTrimVideo": (TrimVideo, "Trim Video"),
    "ReelBrushPreviewVideo": (PreviewVideo, "Preview Frames"),
    "ReelBrushEncodeVideo": (EncodeVideo, "Encode Video (VAE)"),
    "ReelBrushDecodeVideo": (DecodeVideo, "Decode Video (VAE)"),
}
