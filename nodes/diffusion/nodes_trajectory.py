"""Trajectory nodes: invert a clip, save and check the result, optimize the null text."""

from .. import host
from ..common.files import changed
from ..common.inputs import connection, decimal, integer, model, names, switch, text, trajectory
from . import CATEGORY
from .inversion import inversion, nulltext
from .inversion import trajectory as trajectories
from .patching.layers import family

_FRAMES_PER_CALL = integer(0, 0, 4096, "How many frames the UNet evaluates at once; 0: all, as a sampler.")
_NO_FILE = "nothing saved yet"


class Invert:
    """DDIM inversion of a clip's latents."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds the noise from which a sampler would make a clip's latents (DDIM inversion), and keeps the "
        "latents at every noise level, the trajectory. The trajectory is for Z*, Reference Attention and "
        "Inject Features; a sampler that starts from the noise keeps the clip's layout."
    )
    SEARCH_ALIASES = (
        "ddim inversion",
        "unsampler",
        "invert noise",
        "z*",
        "reverse diffusion",
        "plug and play",
    )
    RETURN_TYPES = ("LATENT", "REELBRUSH_TRAJECTORY", "SIGMAS")
    RETURN_NAMES = ("noise", "trajectory", "sigmas")
    OUTPUT_TOOLTIPS = (
        "The latents at the noisiest level: sample from them with added noise off.",
        "The latents at every level, with the text and the kind of model they were made with.",
        "The same levels in descending order, for SamplerCustom.",
    )
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("SD1.x, SD2.x or SDXL; sample with the same model."),
                "positive": connection("CONDITIONING", "The text, empty in the papers. Guidance is off."),
                "latent": connection("LATENT", "The clip's frames through VAE Encode."),
                "steps": integer(
                    50, 2, 1000, "Evenly spaced timesteps (Z*: 30), if no sigmas are connected."
                ),
                "convention": names(
                    inversion.NOISE_TIMESTEPS,
                    "The noise level that the model gets: of the step's end (official), or of the latent.",
                ),
                "refine": integer(0, 0, 10, "Iterations per step, each one more evaluation; 3 is good."),
                "save_steps": integer(0, 0, 1000, "How many of the levels are kept; 0: all."),
                "frames_per_call": _FRAMES_PER_CALL,
            },
            "optional": {
                "sigmas": connection("SIGMAS", "The levels of any scheduler; use them for sampling too.")
            },
        }

    def invert(
        self, model, positive, latent, steps, convention, refine, save_steps, frames_per_call, sigmas=None
    ):
        noise, made = inversion.invert(
            model,
            positive,
            latent["samples"],
            inversion.levels(model, steps, sigmas),
            convention=convention,
            refine=refine,
            save_steps=save_steps,
            frames_per_call=frames_per_call,
        )
        return ({**latent, "samples": noise}, made, made.sigmas.flip(0))


class SaveTrajectory:
    """A trajectory to a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Writes a trajectory to output/trajectories/, so that a clip or a style is inverted only once."
    )
    SEARCH_ALIASES = ("export inversion", "cache inversion")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        name = text("clip", "The file is output/trajectories/NAME.safetensors; it is replaced if it exists.")
        return {
            "required": {"trajectory": trajectory("The trajectory to save."), "name": name},
            "optional": {"half": switch(False, "Half precision: half the size, a relative error of 5e-4.")},
        }

    def save(self, trajectory, name, half=False):
        path = trajectories.target(name)
        trajectories.save(trajectory, path, half=half)
        return (str(path),)


class LoadTrajectory:
    """A trajectory from a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reads a trajectory that Save Trajectory wrote, from output/trajectories or models/trajectories."
    )
    SEARCH_ALIASES = ("import inversion",)
    RETURN_TYPES = ("REELBRUSH_TRAJECTORY",)
    RETURN_NAMES = ("trajectory",)
    OUTPUT_TOOLTIPS = ("The trajectory, with the text it was made with.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        files = host.model_names(trajectories.KIND) or [_NO_FILE]
        return {"required": {"file": names(files, "A file that Save Trajectory wrote.")}}

    @classmethod
    def IS_CHANGED(cls, file):
        return changed(host.model_path, trajectories.KIND, file)

    def load(self, file):
        if file == _NO_FILE:
            raise ValueError("no trajectory has been saved yet: save one with Save Trajectory")
        return (trajectories.load(host.model_path(trajectories.KIND, file)),)


class Reconstruct:
    """The accuracy of an inversion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples from a trajectory's noise, decodes, and measures how close the result is to the images. "
        "A low value means that everything that uses this inversion starts from a distorted clip: raise "
        "steps or refine. The loss of the VAE is part of the value."
    )
    SEARCH_ALIASES = ("inversion check", "reconstruction", "psnr", "round trip")
    RETURN_TYPES = ("IMAGE", "FLOAT")
    RETURN_NAMES = ("reconstruction", "psnr")
    OUTPUT_TOOLTIPS = (
        "The reconstructed frames.",
        "Peak signal-to-noise ratio over all frames in decibels: above 30, differences are hard to see; "
        "100 is equal.",
    )
    FUNCTION = "check"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "trajectory": trajectory("The inversion to check."),
                "model": model("The model that it was made with."),
                "vae": connection("VAE", "The VAE that encoded the images."),
                "images": connection("IMAGE", "The frames that were inverted."),
            },
            "optional": {"frames_per_call": _FRAMES_PER_CALL},
        }

    def check(self, trajectory, model, vae, images, frames_per_call=0):
        if len(images) != trajectory.frames:
            raise ValueError(
                f"the trajectory has {trajectory.frames} frames, the images {len(images)}: connect the "
                "images that were inverted"
            )
        latents = inversion.reconstruct(model, trajectory, frames_per_call)
        decoded = vae.decode(latents).float().cpu()[..., :3]
        original = inversion.centred(images[..., :3], decoded.shape[1], decoded.shape[2])
        return (decoded, inversion.psnr(decoded, original))


class NullText:
    """Embeddings that keep guided sampling on an inversion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Sampling with guidance leaves the inverted trajectory. This node optimizes an empty-text embedding "
        "for every step that leads back to it (null-text optimization). Connect the result to a sampler's "
        "negative input, with the inversion's noise and sigmas and the same cfg."
    )
    SEARCH_ALIASES = ("null text inversion", "prompt to prompt", "edit real images")
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("negative",)
    OUTPUT_TOOLTIPS = ("One embedding per step; each is used until halfway to the next level.",)
    FUNCTION = "optimize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("The model that made the trajectory. It is not changed."),
                "positive": connection("CONDITIONING", "The text that you will sample with."),
                "trajectory": trajectory("The inversion that the sampling should follow."),
                "cfg": decimal(7.5, 1.0, 30.0, "The cfg that you will sample with; 1: nothing to do.", 0.1),
                "inner_steps": integer(10, 1, 100, "Maximum number of iterations per step."),
                "learning_rate": decimal(
                    0.01, 0.0, 1.0, "Adam's learning rate at the first step; it falls linearly.", 0.001
                ),
            },
            "optional": {
                "null": connection(
                    "CONDITIONING", "The text to start from, instead of the trajectory's text."
                ),
                "frames_per_call": integer(4, 1, 4096, "Frames that are optimized together."),
            },
        }

    def optimize(
        self, model, positive, trajectory, cfg, inner_steps, learning_rate, null=None, frames_per_call=4
    ):
        trajectory.require(family(model))
        null = trajectory.conditioning if null is None else null
        if cfg == 1:
            return (null,)
        settings = {"cfg": cfg, "inner_steps": inner_steps, "learning_rate": learning_rate}
        return (
            nulltext.optimize(model, positive, null, trajectory, frames_per_call=frames_per_call, **settings),
        )


NODES = {
    "ReelBrushInvert": (Invert, "DDIM Inversion"),
    "ReelBrushSaveTrajectory": (SaveTrajectory, "Save Trajectory"),
    "ReelBrushLoadTrajectory": (LoadTrajectory, "Load Trajectory"),
    "ReelBrushReconstruct": (Reconstruct, "Inversion Check"),
    "ReelBrushNullText": (NullText, "Null-Text Optimization"),
}
