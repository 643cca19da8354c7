"""Style LoRA nodes: train one, load one."""

from .. import host
from ..common.files import changed
from ..common.inputs import connection, decimal, fixed_seed, integer, model, names, text
from . import CATEGORY
from .lora import file as lora_file
from .lora.train import LoRARecipe, train

_NO_FILE = "no LoRA found"


class TrainStyleLoRA:
    """A style LoRA from one picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Learns the style of one picture, or of a few, as a LoRA: 200 short steps on this model's own noise "
        "prediction, in attention only, so that it learns less of the picture's content (DiffStyler). It "
        "shows a preview, continues after a cancel, and saves to output/loras, where every LoRA loader finds "
        "it."
    )
    SEARCH_ALIASES = (
        "train lora",
        "diffstyler",
        "dreambooth",
        "style training",
        "fine-tune",
        "one-shot style",
    )
    RETURN_TYPES = ("REELBRUSH_LORA", "IMAGE")
    RETURN_NAMES = ("lora", "plot")
    OUTPUT_TOOLTIPS = (
        "For Apply Style LoRA.",
        "The loss of every step, which depends on its noise level, and the running mean.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": model("SD1.x, SD2.x or SDXL. It is not changed."),
                "style": connection("LATENT", "One style picture, or a batch, through VAE Encode."),
                "positive": connection(
                    "CONDITIONING",
                    "A name for the picture; sample with the same words. One entry, or one per picture.",
                ),
                "rank": integer(16, 1, 256, "How much the LoRA can learn; the paper: 16."),
                "steps": integer(200, 1, 100_000, "The paper: 200. Raise it to continue a named training."),
                "learning_rate": decimal(2e-4, 1e-7, 1.0, "AdamW's learning rate.", 1e-6, round=1e-7),
                "projections": text(
                    "q,k,v", "Attention projections to train: q,k,v (paper), q,k,v,out (code)."
                ),
                "seed": fixed_seed("The start, and every step's noise. The same seed gives the same LoRA."),
                "save_as": text("", "The file is output/loras/NAME.safetensors; empty: not saved."),
            }
        }

    def train(self, model, style, positive, rank, steps, learning_rate, projections, seed, save_as):
        recipe = LoRARecipe(rank, steps, learning_rate, projections, seed)
        return train(model, style["samples"], positive, recipe, save_as)


class LoadStyleLoRA:
    """A style LoRA from a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reads a LoRA for Apply Style LoRA: saved by Train Style LoRA, by kohya's and most other "
        "trainers, by diffusers or by PEFT. To use a LoRA on a whole model, ComfyUI's Load LoRA is enough."
    )
    SEARCH_ALIASES = ("import lora", "lora loader", "diffstyler", "regional lora")
    RETURN_TYPES = ("REELBRUSH_LORA",)
    RETURN_NAMES = ("lora",)
    OUTPUT_TOOLTIPS = ("For Apply Style LoRA, which checks that it fits the model.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        files = host.model_names(lora_file.KIND, lora_file.ENDINGS) or [_NO_FILE]
        return {"required": {"file": names(files, "A file in models/loras or output/loras.")}}

    @classmethod
    def IS_CHANGED(cls, file):
        return changed(host.model_path, lora_file.KIND, file)

    def load(self, file):
        if file == _NO_FILE:
            raise ValueError("there is no LoRA yet: put one into models/loras, or train a style")
        return (lora_file.load(host.model_path(lora_file.KIND, file)),)


NODES = {
    "ReelBrushTrainStyleLoRA": (TrainStyleLoRA, "Train Style LoRA"),
    "ReelBrushLoadStyleLoRA": (LoadStyleLoRA, "Load Style LoRA"),
}
