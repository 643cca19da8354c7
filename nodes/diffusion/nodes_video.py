"""Sampling whole clips."""

from .. import host
from ..common.inputs import choice, connection, decimal, integer, max_side, model, seed
from ..video.lazy_video import LazyVideo
from ..video.operation import digest
from ..video.vae import fitted
from . import CATEGORY
from .inversion.trajectory import WindowTrajectory
from .sample_video import COLORS, STARTS, SampleFrames, invert_levels

_CONNECTED = ("model", "positive", "negative", "vae", "sampler", "sigmas", "control_net", "invert_model")


class SampleVideo:
    """A clip of any length through ComfyUI's samplers."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Redraws a clip of any length with a diffusion model, a few frames at a time, while it is saved. "
        "Memory does not grow with the clip, and a cancelled save continues where it stopped. The model may "
        "have any patches: Z*, reference attention, LoRAs, injection."
    )
    SEARCH_ALIASES = (
        "ksampler video",
        "vid2vid",
        "long video",
        "context windows",
        "video to video",
        "restyle video",
        "img2img video",
    )
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The clip; it is computed when it is saved.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": connection("VIDEO", "The clip. Its windows never cross a cut."),
                "model": model("The model that samples, with its patches."),
                "positive": connection("CONDITIONING", "The text."),
                "negative": connection("CONDITIONING", "The negative text; not used with CFG 1."),
                "vae": connection("VAE", "Encodes and decodes the frames."),
                "sampler": connection("SAMPLER", "From KSamplerSelect."),
                "sigmas": connection("SIGMAS", "The noise levels. A denoise below 1 keeps more of the clip."),
                "cfg": decimal(1.0, 0.0, 100.0, "Guidance. Z* and inversion: 1.", 0.1),
                "start": choice(
                    STARTS,
                    "inversion: each frame's own DDIM inversion. noise: the same noise for all frames. "
                    "both: an equal mix.",
                ),
                "invert_steps": integer(30, 0, 1000, "Steps of the inversion; 0: the levels of `sigmas`."),
                "refine": integer(0, 0, 10, "Iterations per inversion step, each one more evaluation."),
                "window": integer(16, 1, 1024, "Frames that are sampled together."),
                "overlap": integer(
                    4, 0, 512, "Frames in which two windows are cross-faded; at most half a window."
                ),
                "match_color": choice(
                    COLORS,
                    "source: the colours of the clip. previous: a window takes the colours of the one "
                    "before it. off: colours may drift.",
                ),
                "max_side": max_side("Shrink the longer side to this many pixels first; 0 keeps the size."),
                "seed": seed("Seed of the noise."),
            },
            "optional": {
                "control_video": connection("VIDEO", "Hints for control_net, one frame per frame."),
                "control_net": connection("CONTROL_NET", "Gets the frames of control_video."),
                "control_strength": decimal(1.0, 0.0, 10.0, "Strength of control_net.", 0.05),
                "invert_model": model("The model before Z* or Reference Attention; it inverts the frames."),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    def sample(
        self,
        video,
        model,
        sigmas,
        vae,
        start,
        max_side,
        prompt=None,
        unique_id=None,
        control_video=None,
        control_net=None,
        control_strength=1.0,
        invert_model=None,
        **settings,
    ):
        window, overlap = settings["window"], settings["overlap"]
        if settings["match_color"] == "previous" and not overlap:
            raise ValueError("match_color previous compares frames of two windows: set overlap to 1 or more")
        if overlap > window // 2:
            raise ValueError(
                f"overlap is {overlap} and the window {window} frames: a frame would be in three windows. "
                f"Give at most {window // 2}"
            )
        if (control_video is None) != (control_net is None):
            missing = "control_net" if control_net is None else "control_video"
            raise ValueError(f"per-frame hints need control_video and control_net: connect {missing}")
        if len(sigmas) < 2:
            raise ValueError("sigmas has no step: connect the SIGMAS of a scheduler")
        invert_model = model if invert_model is None else invert_model
        if start == "noise" and WindowTrajectory.of(model):
            raise ValueError(
                "Inject Features without `content` uses the inversion of the frames: set start to inversion"
            )
        if start != "noise":
            invert_levels(invert_model, settings["invert_steps"], sigmas)  # an error now, not in the save
        texts = [text for side in ("positive", "negative") for text, _ in settings[side]]
        clip = fitted(LazyVideo.of(video).fit(max_side), vae)
        hints = None if control_video is None else LazyVideo.of(control_video).operation
        return (
            clip.then(
                SampleFrames,
                hints,
                digest(host.graph_key(prompt, unique_id, _CONNECTED, model), sigmas, *texts),
                start_from=start,
                control_strength=control_strength,
                model=model,
                invert_model=invert_model,
                vae=vae,
                sigmas=sigmas,
                control_net=control_net,
                **settings,
                node="Sample Video",
            ),
        )


NODES = {"ReelBrushSampleVideo": (SampleVideo, "Sample Video")}
