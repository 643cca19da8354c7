"""Texture and VAE nodes of Attention Distillation."""

from .. import host
from ..common.inputs import choice, connection, decimal, integer, model, seed
from ..common.plot import loss_plot
from . import CATEGORY, NULL, run, texture
from .expand import Expansion, TextureCanvas
from .optimize import DistillRecipe
from .seamless import AXES, seamless_model, seamless_vae
from .vae import tune_decoder


class TextureInit:
    """Random pixels of each label: the start of label-controlled texture synthesis."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Fills each region of a label picture with random pixels of the source region in the same colour, "
        "and returns both label maps as masks. Encode the image as the content of Distill Style (Optimize), "
        "content_weight 0.15."
    )
    SEARCH_ALIASES = ("texture by numbers", "label map", "segmentation texture", "controlled texture")
    RETURN_TYPES = ("IMAGE", "MASK", "MASK")
    RETURN_NAMES = ("image", "source_mask", "target_mask")
    OUTPUT_TOOLTIPS = (
        "The start, with the target labels' size.",
        "The source's labels: label k of n as k/n. For style_mask.",
        "The target's labels, in the same grey levels. For target_mask.",
    )
    FUNCTION = "fill"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "source": connection("IMAGE", "The texture."),
                "source_labels": connection("IMAGE", "The texture's regions, one flat colour each."),
                "target_labels": connection("IMAGE", "The wanted regions in the same colours."),
                "seed": seed("Seed of the choice of pixels."),
            }
        }

    def fill(self, source, source_labels, target_labels, seed):
        of_source, of_target, n = texture.read_labels(source_labels, target_labels)
        image = texture.fill(source, of_source, of_target, seed)
        return image, of_source[None] / n, of_target[None] / n


class TextureExpand:
    """A texture on a canvas of any size, in windows."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Expands a texture to any size by guided sampling in overlapping windows (MultiDiffusion). It needs "
        "the memory of a window, not of the whole canvas. Seamless edges continue at the opposite edge."
    )
    SEARCH_ALIASES = ("texture expansion", "multidiffusion", "panorama", "seamless texture", "tileable")
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The canvas; decode it with the VAE (from Seamless Tiling if it should tile).",)
    FUNCTION = "expand"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("SD1.x, SD2.x or SDXL; the paper's is SD1.5."),
                "null": NULL,
                "source": connection("LATENT", "The texture through VAE Encode, about as large as a window."),
                "width": integer(1536, 64, 16384, "In pixels.", 8),
                "height": integer(512, 64, 16384, "In pixels.", 8),
                "steps": integer(50, 1, 1000, "DDIM steps."),
                "iterations": integer(3, 0, 100, "Adam steps per window and noise level."),
                "learning_rate": decimal(0.05, 0.0, 1.0, "Adam's learning rate.", 0.001),
                "window": integer(512, 64, 2048, "In pixels: the size that the model was trained on.", 8),
                "overlap": integer(448, 0, 2040, "Pixels that neighbouring windows share.", 8),
                "seamless": choice(list(AXES), "Edges that continue at the opposite edge."),
                "seed": seed("Seed of the noise that the canvas starts from."),
            },
            "optional": {
                "windows_per_call": integer(
                    0, 0, 256, "Windows that the UNet evaluates at once; 0: automatic."
                )
            },
        }

    def expand(
        self, model, null, source, width, height, window, overlap, seamless, seed, learning_rate, **steps
    ):
        canvas = TextureCanvas(height // 8, width // 8, window // 8, overlap // 8, seamless)
        expansion = Expansion(recipe=DistillRecipe(learning_rate, content_weight=0.0), **steps)
        return (run.expanded(model, null, source, canvas, expansion, seed),)


class Seamless:
    """Circular convolutions on clones."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Pictures that this model samples and this VAE decodes tile along the chosen axes, because their "
        "convolutions use circular padding. It works with every sampler and with Distill Style. The input "
        "model and VAE are unchanged."
    )
    SEARCH_ALIASES = ("tileable", "circular padding", "seamless texture", "tiling", "asymmetric tiling")
    RETURN_TYPES = ("MODEL", "VAE")
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = ("The model for pictures that tile.", "The VAE for them; encoding is unchanged.")
    FUNCTION = "wrap"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("SD1.x, SD2.x or SDXL."),
                "vae": connection("VAE", "The model's VAE."),
                "axes": choice(["both", "x", "y", "none"], "The directions that tile; none is off."),
            }
        }

    def wrap(self, model, vae, axes):
        return seamless_model(model, axes), seamless_vae(vae, axes)


class TuneVAE:
    """Eq. 10: the decoder learns the details of a picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a copy of the VAE's decoder to reconstruct the fine detail of a picture (Attention "
        "Distillation, eq. 10), for textures in its style. ComfyUI's VAE Decode and VAE Save work with the "
        "result; the encoder is unchanged."
    )
    SEARCH_ALIASES = ("vae fine-tuning", "improved vae decoding", "train vae", "detail")
    RETURN_TYPES = ("VAE", "IMAGE")
    RETURN_NAMES = ("vae", "plot")
    OUTPUT_TOOLTIPS = ("The tuned VAE.", "The reconstruction loss over the steps.")
    FUNCTION = "tune"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vae": connection("VAE", "A Stable Diffusion VAE; it is copied."),
                "image": connection("IMAGE", "One or several pictures whose detail to learn."),
                "steps": integer(75, 0, 10000, "Adam steps. 0 is off."),
                "learning_rate": decimal(1e-4, 0.0, 0.01, "Adam's learning rate.", 1e-6),
            }
        }

    def tune(self, vae, image, steps, learning_rate):
        with host.progress(steps, "Tuning the VAE decoder", "steps") as bar:
            report = lambda step, loss: bar.step()  # noqa: E731
            tuned, losses = tune_decoder(vae, image, steps=steps, learning_rate=learning_rate, report=report)
        return tuned, loss_plot({"reconstruction": losses}, "VAE decoder tuning")


NODES = {
    "ReelBrushTextureInit": (TextureInit, "Texture from Labels"),
    "ReelBrushTextureExpand": (TextureExpand, "Expand Texture"),
    "ReelBrushSeamless": (Seamless, "Seamless Tiling"),
    "ReelBrushTuneVAE": (TuneVAE, "Tune VAE Decoder"),
}
