"""Trajectory nodes: inverting a clip, keeping and checking what that gave, and null-text optimisation."""

from .. import host
from . import inversion, nulltext
from . import trajectory as trajectories
from .layers import family

CATEGORY = "ReelBrush/Diffusion"
FRAMES_PER_CALL = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 4096,
        "tooltip": "How many frames the UNet sees at once; 0 gives it all that a sampler would.",
    },
)


class Invert:
    """DDIM inversion of a clip's latents."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds the noise that a clip's latents come from, by walking the sampler's path backwards (DDIM "
        "inversion), and keeps every latent on the way. The trajectory feeds Z*, Reference Attention and "
        "Inject Features; the noise starts a sampler whose result keeps the clip's layout."
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
        "The same levels downwards, for SamplerCustom.",
    )
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "SD1.x, SD2.x or SDXL; sample with the same one."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The text while inverting; the papers use the empty one. Guidance is off."},
                ),
                "latent": ("LATENT", {"tooltip": "The clip's frames through VAE Encode."}),
                "steps": (
                    "INT",
                    {
                        "default": 50,
                        "min": 2,
                        "max": 1000,
                        "tooltip": "Evenly spaced timesteps from 0 on, as the official loops (Z*: 30); "
                        "not used when sigmas are given.",
                    },
                ),
                "convention": (
                    list(inversion.CONVENTIONS),
                    {
                        "tooltip": "The noise level that the model is told at each step: the next one (the "
                        "official loops) or the latent's own."
                    },
                ),
                "refine": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 10,
                        "tooltip": "Fixed-point iterations at each step: each costs one more model call and "
                        "brings sampling back closer to the clip. 0 is the papers' inversion, 3 is good.",
                    },
                ),
                "save_steps": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1000,
                        "tooltip": "How many levels the trajectory and the sigmas keep (invert in 1000 "
                        "steps, sample in 50); 0 keeps all.",
                    },
                ),
                "frames_per_call": FRAMES_PER_CALL,
            },
            "optional": {
                "sigmas": (
                    "SIGMAS",
                    {"tooltip": "Any scheduler's levels, walked upwards; use them to sample, too."},
                ),
            },
        }

    def invert(
        self, model, positive, latent, steps, convention, refine, save_steps, frames_per_call, sigmas=None
    ):
        noise, found = inversion.invert(
            model,
            positive,
            latent["samples"],
            inversion.levels(model, steps, sigmas),
            convention=convention,
            refine=refine,
            save_steps=save_steps,
            frames_per_call=frames_per_call,
        )
        return ({**latent, "samples": noise}, found, found.sigmas.flip(0))


class SaveTrajectory:
    """A trajectory to a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Writes a trajectory to output/trajectories/, so that a clip or a style is inverted once."
    SEARCH_ALIASES = ("export inversion", "cache inversion")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "trajectory": ("REELBRUSH_TRAJECTORY", {"tooltip": "The trajectory to keep."}),
                "name": (
                    "STRING",
                    {
                        "default": "clip",
                        "tooltip": "Becomes output/trajectories/NAME.safetensors; such a file is replaced.",
                    },
                ),
            },
            "optional": {
                "half": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Half precision: half the size, a relative error of 5e-4.",
                    },
                ),
            },
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
    NOTHING = "nothing saved yet"

    @classmethod
    def INPUT_TYPES(cls):
        names = host.model_names(trajectories.KIND) or [cls.NOTHING]
        return {"required": {"file": (names, {"tooltip": "A file that Save Trajectory wrote."})}}

    @classmethod
    def IS_CHANGED(cls, file):
        if file == cls.NOTHING:
            return file
        about = host.model_path(trajectories.KIND, file).stat()
        return f"{about.st_mtime_ns}:{about.st_size}"

    def load(self, file):
        if file == self.NOTHING:
            raise ValueError("no trajectory has been saved yet: Save Trajectory writes one")
        return (trajectories.load(host.model_path(trajectories.KIND, file)),)


class Reconstruct:
    """Whether an inversion leads back."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples back down a trajectory from its noise, decodes, and measures how close that comes to the "
        "images. A low value means that anything built on this inversion starts from a distorted clip: raise "
        "the steps or refine. The VAE's own loss is part of the value."
    )
    SEARCH_ALIASES = ("inversion check", "reconstruction", "psnr", "round trip")
    RETURN_TYPES = ("IMAGE", "FLOAT")
    RETURN_NAMES = ("reconstruction", "psnr")
    OUTPUT_TOOLTIPS = (
        "The frames that come back.",
        "Peak signal-to-noise ratio over all frames in decibels: above 30 is hard to see, 100 is equal.",
    )
    FUNCTION = "check"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "trajectory": ("REELBRUSH_TRAJECTORY", {"tooltip": "The inversion to check."}),
                "model": ("MODEL", {"tooltip": "The model that it was made with."}),
                "vae": ("VAE", {"tooltip": "The VAE that encoded the images."}),
                "images": ("IMAGE", {"tooltip": "The frames that were inverted."}),
            },
            "optional": {"frames_per_call": FRAMES_PER_CALL},
        }

    def check(self, trajectory, model, vae, images, frames_per_call=0):
        if len(images) != trajectory.frames:
            raise ValueError(
                f"the trajectory has {trajectory.frames} frames, the images {len(images)}: give the images "
                "that were inverted"
            )
        latents = inversion.reconstruct(model, trajectory, frames_per_call)
        back = vae.decode(latents).float().cpu()[..., :3]
        same = inversion.centred(images[..., :3], back.shape[1], back.shape[2])
        return (back, inversion.psnr(back, same))


class NullText:
    """Empty texts that keep guided sampling on an inversion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "With guidance on, sampling leaves the inverted path. This finds an empty text for every step that "
        "leads it back (null-text optimization): connect the result to a sampler's negative input, with the "
        "inversion's noise and sigmas and the same cfg."
    )
    SEARCH_ALIASES = ("null text inversion", "prompt to prompt", "edit real images")
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("negative",)
    OUTPUT_TOOLTIPS = ("One text per step; each is in force between its neighbours.",)
    FUNCTION = "optimize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that made the trajectory. It is not changed."}),
                "positive": ("CONDITIONING", {"tooltip": "The text that you will sample with."}),
                "trajectory": ("REELBRUSH_TRAJECTORY", {"tooltip": "The inversion to stay on."}),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 7.5,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "The guidance that you will sample with. At 1 there is nothing to find.",
                    },
                ),
                "inner_steps": (
                    "INT",
                    {"default": 10, "min": 1, "max": 100, "tooltip": "Most iterations at one step."},
                ),
                "learning_rate": (
                    "FLOAT",
                    {
                        "default": 0.01,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "tooltip": "Adam's step at the noisiest level; it falls by a hundredth per step.",
                    },
                ),
            },
            "optional": {
                "null": (
                    "CONDITIONING",
                    {
                        "tooltip": "The text to start from: CLIP Text Encode of nothing. Without it, the "
                        "trajectory's own text, which the papers leave empty."
                    },
                ),
                "frames_per_call": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Frames optimised side by side; each needs memory for its gradients.",
                    },
                ),
            },
        }

    def optimize(
        self,
        model,
        positive,
        trajectory,
        cfg,
        inner_steps,
        learning_rate,
        null=None,
        frames_per_call=4,
    ):
        trajectory.require(family(model))
        null = trajectory.conditioning if null is None else null
        if cfg == 1:
            return (null,)
        found = nulltext.optimize(
            model,
            positive,
            null,
            trajectory,
            cfg=cfg,
            inner_steps=inner_steps,
            learning_rate=learning_rate,
            frames_per_call=frames_per_call,
        )
        return (found,)


NODES = {
    "ReelBrushInvert": (Invert, "DDIM Inversion"),
    "ReelBrushSaveTrajectory": (SaveTrajectory, "Save Trajectory"),
    "ReelBrushLoadTrajectory": (LoadTrajectory, "Load Trajectory"),
    "ReelBrushReconstruct": (Reconstruct, "Inversion Check"),
    "ReelBrushNullText": (NullText, "Null-Text Optimization"),
}
