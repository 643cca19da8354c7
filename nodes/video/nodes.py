"""Video nodes: declarations. Clips are in lazy_video.py, saving in save.py, files in codec/."""

from .. import host
from ..common.contact_sheet import contact_sheet, spread
from ..common.inputs import choice, connection, decimal, integer, max_side, switch, text
from . import codec
from .lazy_video import LazyVideo
from .save import save
from .vae import decode, encode

CATEGORY = "ReelBrush/Video"
_MAX = 1 << 30


def _containers() -> dict[str, str]:
    """The choices of `format`, and the names that codec/ has for them."""
    return {"png frames" if name == "png" else name: name for name in codec.containers()}


def _codecs() -> list[str]:
    names = (name for container in codec.containers() for name in codec.codecs(container))
    return ["auto", *(name for name in dict.fromkeys(names) if name not in ("gif", "png"))]


class SaveVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Computes a clip and writes it frame by frame, so memory does not grow with its length. "
        "If you cancel it and queue it again, it continues where it stopped."
    )
    SEARCH_ALIASES = ("save mp4", "export video", "webm", "gif", "prores", "image sequence", "video combine")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written (a folder for PNG frames).",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        prefix = "Name inside the output folder. %width%, %height% and parts of the date are replaced."
        quality = (
            "The codec's constant rate factor: smaller is better and larger. 18-23 for h264, about 30 for "
            "vp9 and av1. PNG and GIF have none."
        )
        return {
            "required": {
                "video": connection("VIDEO", "The clip. Its sound is saved too."),
                "filename_prefix": text("video/ReelBrush", prefix),
                "format": choice(_containers(), "'png frames' is a folder of pictures.", "mp4"),
                "codec": choice(_codecs(), "How frames are compressed. auto: the usual codec of the format."),
                "quality": integer(20, 0, 63, quality),
                "resume": switch(True, "Keep finished frames on disk, to continue a cancelled save."),
            },
            "optional": {
                "audio_from": connection("VIDEO", "Use the sound of this clip instead, from its beginning."),
                "damaged_clip": choice(
                    ("warn", "stop"), "What happens when a file of the clip cannot be read to its end."
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, video, filename_prefix, format, codec, quality, resume, audio_from=None, **options):
        clip = LazyVideo.of(video)
        audio = None if audio_from is None else LazyVideo.of(audio_from).operation
        container = _containers().get(format, format)
        suffix = "" if container == "png" else f".{container}"
        target, subfolder = host.numbered(filename_prefix, suffix, (clip.width, clip.height))
        with host.strict(options.pop("damaged_clip", "warn") == "stop"):
            save(
                clip.operation,
                target,
                container,
                codec=codec,
                quality=quality,
                metadata=host.workflow_metadata(**options),
                audio_from=audio,
                resume=resume,
            )
        shown = {"filename": target.name, "subfolder": subfolder, "type": "output"}
        preview = {"images": [shown], "animated": (True,)} if suffix else {}
        return {"ui": preview, "result": (str(target),)}


class TrimVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Takes a part of a clip, every nth frame, or a smaller size. Nothing is decoded until it is saved."
    )
    SEARCH_ALIASES = ("cut video", "skip frames", "select every nth", "frame load cap", "resize video")
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The shorter or smaller clip, with its part of the sound.",)
    FUNCTION = "trim"

    @classmethod
    def INPUT_TYPES(cls):
        every = "2 takes every second frame at half the frame rate, so the duration stays the same."
        return {
            "required": {
                "video": connection("VIDEO", "The clip to trim."),
                "start": integer(0, 0, _MAX, "The first frame, counted from 0."),
                "frames": integer(0, 0, _MAX, "The largest number of frames; 0 takes all."),
                "every_nth": integer(1, 1, 1000, every),
                "max_side": max_side("Shrink the longer side to this many pixels; 0 keeps the size."),
            }
        }

    def trim(self, video, start, frames, every_nth, max_side):
        return (LazyVideo.of(video).trim(start, frames, every_nth).fit(max_side),)


class PreviewVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = "Shows some frames of a clip as one picture, before a long render."
    SEARCH_ALIASES = ("contact sheet", "video thumbnails", "storyboard")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("The frames side by side.",)
    FUNCTION = "preview"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": connection("VIDEO", "The clip. Frames up to the last one shown are computed."),
                "frames": integer(6, 1, 64, "The number of frames, spread over the clip."),
            }
        }

    def preview(self, video, frames):
        clip = LazyVideo.of(video)
        return (contact_sheet(clip.frames_at(spread(clip.frame_count, frames))),)


class EncodeVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = "Encodes the frames of a clip to latents, a few at a time. Only the latents stay in memory."
    SEARCH_ALIASES = ("vae encode video", "video to latent")
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("One latent per frame.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": connection("VIDEO", "The clip to encode."),
                "vae": connection("VAE", "The VAE of the model that will use the latents."),
                "max_side": max_side("First shrink the longer side to this many pixels; 0 keeps it."),
            }
        }

    def encode(self, video, vae, max_side):
        return ({"samples": encode(LazyVideo.of(video).fit(max_side), vae)},)


class DecodeVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = "Makes a clip from latents. Each frame is decoded when it is saved, so memory stays small."
    SEARCH_ALIASES = ("vae decode video", "latent to video")
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The clip. It is decoded while it is saved or previewed.",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "latent": connection("LATENT", "One latent per frame."),
                "vae": connection("VAE", "The VAE of the model that made the latents."),
            },
            "optional": {
                "fps": decimal(24.0, 0.01, 1000.0, "Frames per second. Not used if `like` is connected."),
                "like": connection("VIDEO", "Use the frame rate and the sound of this clip."),
            },
        }

    def decode(self, latent, vae, fps=24.0, like=None):
        return (decode(latent["samples"], vae, fps, None if like is None else LazyVideo.of(like)),)


NODES = {
    "ReelBrushSaveVideo": (SaveVideo, "Save Video (Streaming)"),
    "ReelBrushTrimVideo": (TrimVideo, "Trim Video (Streaming)"),
    "ReelBrushPreviewVideo": (PreviewVideo, "Preview Frames"),
    "ReelBrushEncodeVideo": (EncodeVideo, "Encode Video (VAE)"),
    "ReelBrushDecodeVideo": (DecodeVideo, "Decode Video (VAE)"),
}
