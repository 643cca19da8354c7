"""The judges' nodes: declarations. The judges are in comfy_judge.py, folder_judge.py, diffusion_judge.py."""

from .. import host
from ..common import inputs
from ..common.files import changed
from . import folder_judge
from .comfy_judge import ComfyJudge
from .diffusion_judge import DiffusionJudge

CATEGORY = "ReelBrush/AttnStyle"
JUDGE = "REELBRUSH_JUDGE"
_NO_FOLDER = "no folders in models/style_judge"


class StyleJudge:
    """ComfyUI's two CLIP halves as one judge."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Joins a text encoder and a vision encoder of one CLIP family into a judge that says how well a text "
        "describes a picture. The text file must have its projection: Stable Diffusion's encoders do not."
    )
    SEARCH_ALIASES = ("clip score", "clip judge", "clipstyler", "image text similarity")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style.",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "clip": inputs.connection(
                    "CLIP", "From Load CLIP: a full CLIP text encoder, with projection."
                ),
                "clip_vision": inputs.connection(
                    "CLIP_VISION", "From Load CLIP Vision: the vision encoder of the same family."
                ),
            }
        }

    def join(self, clip, clip_vision):
        return (ComfyJudge(clip, clip_vision),)


class LoadStyleJudge:
    """A CLIP from a Hugging Face folder."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a whole CLIP (both towers) from a Hugging Face folder in models/style_judge. "
        "Needs the transformers package; nothing is downloaded."
    )
    SEARCH_ALIASES = ("hugging face clip", "load clip judge", "open clip")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        names = folder_judge.folders() or [_NO_FOLDER]
        return {
            "required": {
                "folder": inputs.names(
                    names, "A folder with config.json, model.safetensors and the tokenizer's files."
                )
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder):
        return changed(host.model_path, folder_judge.KIND, folder)

    def load(self, folder):
        return (folder_judge.FolderJudge(host.model_path(folder_judge.KIND, folder)),)


class DiffusionStyleJudge:
    """A diffusion model as the judge."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lets a diffusion model judge: a text describes a picture when the model predicts the picture's "
        "noise well under it. Slow (two passes per level and patch), and in no need of CLIP vision."
    )
    SEARCH_ALIASES = ("diffusion classifier", "noise prediction", "score distillation")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style. Use it with few patches.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.connection("MODEL", "An SD1.x, SD2 or SDXL model."),
                "vae": inputs.connection("VAE", "The model's VAE."),
                "clip": inputs.connection("CLIP", "The model's text encoder."),
                "timesteps": inputs.text(
                    "0.2-0.6", "The noise levels that it judges at, as shares of the training steps."
                ),
                "samples": inputs.integer(2, 1, 16, "Levels per verdict: more is steadier."),
            },
            "optional": {
                "size": inputs.integer(
                    512, 64, 2048, "Pixels a side that the model looks at: 512 for SD1.x, 1024 for SDXL.", 64
                )
            },
        }

    def make(self, model, vae, clip, timesteps, samples, size=512):
        return (DiffusionJudge(model, vae, clip, timesteps, samples, size),)


NODES = {
    "ReelBrushStyleJudge": (StyleJudge, "Style Judge (CLIP)"),
    "ReelBrushLoadStyleJudge": (LoadStyleJudge, "Load Style Judge"),
    "ReelBrushDiffusionJudge": (DiffusionStyleJudge, "Style Judge (Diffusion)"),
}
