"""Texture and VAE nodes of Attention Distillation: declarations only."""

from ..common.plot import loss_plot
from . import run, texture
from .expand import Canvas, Expansion
from .inputs import CATEGORY, NULL, number, seed
from .optimize import Recipe
from .seamless import AXES, seamless_model, seamless_vae
from .vae import tune_decoder


class TextureInit:
    """Random pixels of each label: where label-controlled texture synthesis starts."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Fills each region of a label picture with random pixels of the source region in the same colour, "
        "and gives both label maps as masks. Encode the image as the content of Distill Style (Optimize), "
        "content_weight 0.15."
    )
    SEARCH_ALIASES = ("texture by numbers", "label map", "segmentation texture", "controlled texture")
    RETURN_TYPES = ("IMAGE", "MASK", "MASK")
    RETURN_NAMES = ("image", "source_mask", "target_mask")
    OUTPUT_TOOLTIPS = (
        "The start, at the target labels' size.",
        "The source's labels: label k of n as k/n. For style_mask.",
        "The target's labels, in the same levels. For target_mask.",
    )
    FUNCTION = "fill"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "source": ("IMAGE", {"tooltip": "The texture."}),
                "source_labels": ("IMAGE", {"tooltip": "The texture's regions, one flat colour each."}),
                "target_labels": (
                    "IMAGE",
                    {"tooltip": "The wanted regions in the same colours; any size, it sets the result's."},
                ),
                "seed": seed("Decides which pixels are drawn."),
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
        "Grows a texture to any size by guided sampling in overlapping windows (MultiDiffusion). "
        "Memory is that of a window, not of the canvas. Seamless edges meet their other side."
    )
    SEARCH_ALIASES = ("texture expansion", "multidiffusion", "panorama", "seamless texture", "tileable")
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The canvas; decode it with the VAE (through Seamless Tiling, where it should tile).",)
    FUNCTION = "expand"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "SD1.x, SD2.x or SDXL; the paper's is SD1.5."}),
                "null": NULL,
                "source": ("LATENT", {"tooltip": "The texture through VAE Encode, about a window large."}),
                "width": number("INT", 1536, 64, 16384, "Pixels.", 8),
                "height": number("INT", 512, 64, 16384, "Pixels.", 8),
                "steps": number("INT", 50, 1, 1000, "DDIM steps."),
                "iterations": number("INT", 3, 0, 100, "Adam steps per window and noise level."),
                "learning_rate": number("FLOAT", 0.05, 0.0, 1.0, "Adam's step on the latent.", 0.001),
                "window": number("INT", 512, 64, 2048, "Pixels; the size that the model was trained on.", 8),
                "overlap": number("INT", 448, 0, 2040, "Pixels that neighbouring windows share.", 8),
                "seamless": (list(AXES), {"default": "none", "tooltip": "Edges that meet their other side."}),
                "seed": seed("Decides the noise that the canvas starts from."),
            },
            "optional": {
                "windows_per_call": number(
                    "INT", 0, 0, 256, "Windows that the UNet sees at once; 0 decides from free memory."
                ),
            },
        }

    def expand(
        self,
        model,
        null,
        source,
        width,
        height,
        steps,
        iterations,
        learning_rate,
        window,
        overlap,
        seamless,
        seed,
        windows_per_call=0,
    ):
        canvas = Canvas(height // 8, width // 8, window // 8, overlap // 8, seamless)
        recipe = Recipe(learning_rate, content_weight=0.0)
        how = Expansion(steps, iterations, recipe, windows_per_call)
        return (run.expanded(model, null, source, canvas, how, seed),)


class Seamless:
    """Circular convolutions on clones."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Pictures made with this model and decoded with this VAE tile along the chosen axes: their "
        "convolutions look across the edge. Works with every sampler and with Distill Style; the original "
        "model and VAE stay as they are."
    )
    SEARCH_ALIASES = ("tileable", "circular padding", "seamless texture", "tiling", "asymmetric tiling")
    RETURN_TYPES = ("MODEL", "VAE")
    OUTPUT_TOOLTIPS = ("The model, tiling.", "The VAE, decoding tiles; it encodes as before.")
    FUNCTION = "wrap"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "SD1.x, SD2.x or SDXL."}),
                "vae": ("VAE", {"tooltip": "Its VAE."}),
                "axes": (
                    ["both", "x", "y", "none"],
                    {"default": "both", "tooltip": "The directions that wrap around; none is off."},
                ),
            }
        }

    def wrap(self, model, vae, axes):
        return seamless_model(model, axes), seamless_vae(vae, axes)


class TuneVAE:
    """Eq. 10: the decoder learns one picture's detail."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Tunes a copy of the VAE's decoder to redraw a picture's fine detail (Attention Distillation, "
        "eq. 10), for textures in its manner. Core VAE Decode and VAE Save take the result; the encoder "
        "stays the same."
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
                "vae": ("VAE", {"tooltip": "A Stable Diffusion VAE; it is copied."}),
                "image": ("IMAGE", {"tooltip": "The picture, or several, whose detail to learn."}),
                "steps": number("INT", 75, 0, 10000, "Adam steps. 0 is off."),
                "learning_rate": number("FLOAT", 1e-4, 0.0, 0.01, "Adam's step on the weights.", 1e-6),
            }
        }

    def tune(self, vae, image, steps, learning_rate):
        with run.host.progress(steps, "Tuning the VAE decoder", "steps") as bar:
            tuned, losses = tune_decoder(
                vae, image, steps=steps, learning_rate=learning_rate, report=run.noted(bar)
            )
        return tuned, loss_plot({"reconstruction": losses}, "VAE decoder tuning")


NODES = {
    "ReelBrushTextureInit": (TextureInit, "Texture from Labels"),
    "ReelBrushTextureExpand": (TextureExpand, "Expand Texture"),
    "ReelBrushSeamless": (Seamless, "Seamless Tiling"),
    "ReelBrushTuneVAE": (TuneVAE, "Tune VAE Decoder"),
}
