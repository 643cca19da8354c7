"""Style LoRA nodes: training one, loading one."""

from .. import host
from . import lora, lora_train
from .declare import CATEGORY, given


class TrainStyleLoRA:
    """A style LoRA from one picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Learns the style of one picture, or of a few, as a LoRA: 200 short steps on this model's own noise "
        "prediction, in attention only, so that less of the picture's content sticks (DiffStyler). It shows "
        "what the model sees, can be cancelled and goes on from there, and saves to output/loras, where "
        "every LoRA loader finds it."
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
        "The loss of every step, thin, and its running mean. It depends on the step's noise level: look at "
        "the mean.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": given("MODEL", "SD1.x, SD2.x or SDXL. It is not changed."),
                "style": given("LATENT", "One style picture, or a batch, through VAE Encode."),
                "positive": given(
                    "CONDITIONING",
                    "What the picture is to be called: CLIP Text Encode of a few words. Sample with the "
                    "same. With one entry per picture (Conditioning Combine) each picture has its own.",
                ),
                "rank": (
                    "INT",
                    {
                        "default": 16,
                        "min": 1,
                        "max": 256,
                        "tooltip": "How much the LoRA can hold; the paper: 16.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 200,
                        "min": 1,
                        "max": 100_000,
                        "tooltip": "The paper: 200. Raise it, and a named training goes on from where it is.",
                    },
                ),
                "learning_rate": (
                    "FLOAT",
                    {
                        "default": 2e-4,
                        "min": 1e-7,
                        "max": 1.0,
                        "step": 1e-6,
                        "round": 1e-7,
                        "tooltip": "Of AdamW.",
                    },
                ),
                "projections": (
                    "STRING",
                    {
                        "default": "q,k,v",
                        "tooltip": "Which attention projections learn, in self- and cross-attention: q,k,v "
                        "(the paper) or q,k,v,out (its code).",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**63 - 1,
                        "control_after_generate": False,  # a seed of its own at every run could not resume
                        "tooltip": "The start, and every step's noise. The same seed gives the same LoRA.",
                    },
                ),
                "save_as": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Becomes output/loras/NAME.safetensors; such a file is replaced. "
                        "Empty: not saved.",
                    },
                ),
            }
        }

    def train(self, model, style, positive, rank, steps, learning_rate, projections, seed, save_as):
        recipe = lora_train.Recipe(rank, steps, learning_rate, projections, seed)
        return lora_train.train(model, style["samples"], positive, recipe, save_as)


class LoadStyleLoRA:
    """A style LoRA from a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reads a LoRA for Apply Style LoRA: what Train Style LoRA saved, and files of kohya's and most other "
        "trainers, diffusers and PEFT. To put a LoRA on a whole model, core's Load LoRA is enough."
    )
    SEARCH_ALIASES = ("import lora", "lora loader", "diffstyler", "regional lora")
    RETURN_TYPES = ("REELBRUSH_LORA",)
    RETURN_NAMES = ("lora",)
    OUTPUT_TOOLTIPS = ("For Apply Style LoRA, which checks that it fits the model.",)
    FUNCTION = "load"
    NOTHING = "no LoRA found"

    @classmethod
    def INPUT_TYPES(cls):
        names = host.model_names(lora.KIND, lora.ENDINGS) or [cls.NOTHING]
        return {"required": {"file": (names, {"tooltip": "A file in models/loras or output/loras."})}}

    @classmethod
    def IS_CHANGED(cls, file):
        if file == cls.NOTHING:
            return file
        about = host.model_path(lora.KIND, file).stat()
        return f"{about.st_mtime_ns}:{about.st_size}"

    def load(self, file):
        if file == self.NOTHING:
            raise ValueError("there is no LoRA yet: put one into models/loras, or train a style")
        return (lora.load(host.model_path(lora.KIND, file)),)


NODES = {
    "ReelBrushTrainStyleLoRA": (TrainStyleLoRA, "Train Style LoRA"),
    "ReelBrushLoadStyleLoRA": (LoadStyleLoRA, "Load Style LoRA"),
}
