"""Judge nodes: declarations. The judges are in comfy_judge.py, folder_judge.py, diffusion_judge.py."""

from .. import host
from ..common.files import changed
from ..common.inputs import connection, integer, names, text
from . import folder_judge
from .comfy_judge import ComfyJudge
from .diffusion_judge import DiffusionJudge

CATEGORY = "ReelBrush/AttnStyle"
JUDGE = "REELBRUSH_JUDGE"
_NO_FOLDER = "no folders in models/style_judge"


class StyleJudge:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes a judge from a text encoder and a vision encoder of one CLIP family. It measures how well a "
        "text describes a picture. Text encoders of Stable Diffusion files lack the needed projection."
    )
    SEARCH_ALIASES = ("clip score", "clip judge", "clipstyler", "image text similarity")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style.",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls):
        vision = "From Load CLIP Vision: the vision encoder of the same family."
        return {
            "required": {
                "clip": connection("CLIP", "From Load CLIP: a full CLIP text encoder with its projection."),
                "clip_vision": connection("CLIP_VISION", vision),
            }
        }

    def join(self, clip, clip_vision):
        return (ComfyJudge(clip, clip_vision),)


class LoadStyleJudge:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a CLIP with both encoders from a Hugging Face folder in models/style_judge. "
        "It needs the transformers package. Nothing is downloaded."
    )
    SEARCH_ALIASES = ("hugging face clip", "load clip judge", "open clip")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = "A folder with config.json, model.safetensors and the tokenizer files."
        return {"required": {"folder": names(folder_judge.folders() or [_NO_FOLDER], tooltip)}}

    @classmethod
    def IS_CHANGED(cls, folder):
        return changed(host.model_path, folder_judge.KIND, folder)

    def load(self, folder):
        return (folder_judge.FolderJudge(host.model_path(folder_judge.KIND, folder)),)


class DiffusionStyleJudge:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Uses a diffusion model as the judge: a text fits a picture if the model predicts its noise well "
        "with it. Slow (two UNet evaluations per level and patch), but needs no CLIP vision."
    )
    SEARCH_ALIASES = ("diffusion classifier", "noise prediction", "score distillation")
    RETURN_TYPES = (JUDGE,)
    RETURN_NAMES = ("judge",)
    OUTPUT_TOOLTIPS = ("The judge, for AttnStyle: Text to Style. Use it with few patches.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        timesteps = "The range of noise levels, as shares of the training steps."
        size = "The side of the pictures for the model: 512 for SD1.x, 1024 for SDXL."
        return {
            "required": {
                "model": connection("MODEL", "An SD1.x, SD2 or SDXL model."),
                "vae": connection("VAE", "The model's VAE."),
                "clip": connection("CLIP", "The model's text encoder."),
                "timesteps": text("0.2-0.6", timesteps),
                "samples": integer(2, 1, 16, "Noise levels per picture. More are more reliable."),
            },
            "optional": {"size": integer(512, 64, 2048, size, 64)},
        }

    def make(self, model, vae, clip, timesteps, samples, size=512):
        return (DiffusionJudge(model, vae, clip, timesteps, samples, size),)


NODES = {
    "ReelBrushStyleJudge": (StyleJudge, "Style Judge (CLIP)"),
    "ReelBrushLoadStyleJudge": (LoadStyleJudge, "Load Style Judge"),
    "ReelBrushDiffusionJudge": (DiffusionStyleJudge, "Style Judge (Diffusion)"),
}
