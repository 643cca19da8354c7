"""AttnStyle nodes: declarations. Training is in fit.py and train.py, trained styles in style.py."""

from .. import host
from ..common.files import changed
from ..common.inputs import (
    choice,
    connection,
    decimal,
    integer,
    max_side,
    names,
    seed,
    strength,
    switch,
    text,
)
from ..video.lazy_video import LazyVideo
from . import keyframes, nodes_judge, perceptual, prompts, style
from .curriculum import Weights
from .fit import fit
from .losses import CONTENT_LAYERS
from .nodes_judge import CATEGORY, JUDGE
from .train import Settings

ATTNSTYLE = "REELBRUSH_ATTNSTYLE"
STRENGTH = strength("The strength of the style. 0 gives the input back.")
MODEL = connection(ATTNSTYLE, "From AttnStyle: Text to Style or Load AttnStyle.")
_NO_FILE = "no files in models/attnstyle"


def _weight(default: float, tooltip: str) -> tuple:
    return decimal(default, 0.0, 1e6, f"{tooltip} 0 turns it off.", 0.001, round=False)


class KeyFrames:
    CATEGORY = CATEGORY
    DESCRIPTION = "Picks frames from a clip, spread over it, at least one per shot. AttnStyle trains on them."
    SEARCH_ALIASES = ("key frames", "scene detection", "sample frames", "video to images")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "numbers")
    OUTPUT_TOOLTIPS = ("The key frames.", "Their frame numbers, counted from 0.")
    FUNCTION = "pick"

    @classmethod
    def INPUT_TYPES(cls):
        count = integer(4, 1, 64, "The number of frames. A clip with more shots gets one per shot.")
        side = "Shrink the frames so that their longer side has at most this many pixels. 0 keeps the size."
        return {
            "required": {"video": connection("VIDEO", "The clip."), "count": count},
            "optional": {"max_side": max_side(side)},
        }

    def pick(self, video, count, max_side=0):
        images, numbers = keyframes.pick(LazyVideo.of(video).fit(max_side), count)
        return (images, ", ".join(map(str, numbers)))


class AttnStyle:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a small network on your pictures, so that they look as a text describes and keep their "
        "structure (AttnStyle). Train on one picture, or on key frames and apply it to the clip."
    )
    SEARCH_ALIASES = (
        "text style transfer",
        "clipstyler",
        "prompt to style",
        "zero-shot style",
        "text guided",
    )
    RETURN_TYPES = ("IMAGE", ATTNSTYLE, "IMAGE")
    RETURN_NAMES = ("images", "model", "plot")
    OUTPUT_TOOLTIPS = (
        "The stylized pictures.",
        "The trained model, for Apply AttnStyle, Apply AttnStyle to Video and Save AttnStyle.",
        "Above: the losses. Below: the part of the gradient that each loss has.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        scales = "The weight of each patch size: the whole short side, a half, a quarter of it."
        temporal = "For clips: reduces flicker. Try 5 to 10; too much prevents the style."
        threshold = "Patches with a smaller loss have enough style and do not count."
        network = "The network of the content loss: the embedded StyA2K encoder, or one of models/perceptual."
        others = (
            "Other descriptions that might fit the result, one per line. The judge must prefer the style "
            "text to all of them, and to the source text."
        )
        templates = "The sentences that the texts are put into before they are embedded and averaged."
        layers = "The layers of the content loss. CLIPstyler's need a VGG as perceptual network."
        return {
            "required": {
                "judge": connection(JUDGE, "Measures how well a text describes a picture."),
                "images": connection("IMAGE", "One picture, or key frames of a clip (from Key Frames)."),
                "style_text": text("a watercolor painting", "How the pictures should look.", multiline=True),
                "source_text": text("a photo", "How they look now. The style is learned as the difference."),
                "epochs": integer(150, 1, 2000, "Training steps. The paper uses 100 to 200."),
                "learning_rate": decimal(
                    5e-4, 1e-6, 0.1, "The step size of Adam, halved every 100 epochs.", 1e-5, round=False
                ),
                "global_weight": _weight(500.0, "The whole picture changes towards the style text."),
                "patch_weight": _weight(9000.0, "Augmented patches change towards the style text: texture."),
                "patch_scales": text("global 1, intermediate 1, local 1", scales),
                "attention_weight": _weight(1.0, "Alignment of stylized and content features by attention."),
                "content_weight": _weight(150.0, "Perceptual features stay those of the content."),
                "layout_weight": _weight(1.0, "Regions that match a text best still match it best."),
                "tv_weight": _weight(2e-3, "Total variation: smooths noise."),
                "temporal_weight": _weight(0.0, temporal),
                "patches": integer(64, 1, 512, "Patches per epoch, over all scales. Fewer are faster."),
                "threshold": decimal(0.7, 0.0, 2.0, threshold),
                "curriculum": switch(
                    True, "Structure first: the judge's weights rise between 30% and 50% of the run."
                ),
                "perceptual": choice(perceptual.names(), network, perceptual.EMBEDDED),
                "seed": seed("For the first weights and all random patches."),
            },
            "optional": {
                "early_stop": switch(True, "Stop when the loss falls by less than 0.5% in 30 epochs."),
                "confidence_weight": _weight(20000.0, "The judge's confidence in the style text."),
                "other_texts": text("", others, multiline=True),
                "templates": choice(list(prompts.SETS), templates),
                "content_layers": choice(list(CONTENT_LAYERS), layers),
            },
        }

    def run(
        self,
        judge,
        images,
        style_text,
        source_text,
        global_weight,
        patch_weight,
        attention_weight,
        content_weight,
        layout_weight,
        tv_weight,
        temporal_weight,
        perceptual,
        confidence_weight=0.0,  # graphs that were saved without this input do not use the term
        other_texts="",
        **settings,
    ):
        named = (global_weight, patch_weight, attention_weight, content_weight, layout_weight, tv_weight)
        weights = Weights(*named, temporal_weight, confidence_weight)
        others = tuple(line.strip() for line in other_texts.splitlines() if line.strip())
        settings = Settings(weights=weights, others=others, **settings)
        trained, losses = fit(judge, images, style_text, source_text, settings, perceptual)
        return (style.apply(trained, images), trained, losses)


class AttnStyleApply:
    CATEGORY = CATEGORY
    DESCRIPTION = "Applies a trained text style to pictures of any size, with one network pass per picture."
    SEARCH_ALIASES = ("apply text style", "attnstyle inference")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The stylized pictures.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        images = connection("IMAGE", "The pictures. The size of the training works best.")
        return {"required": {"model": MODEL, "images": images, "strength": STRENGTH}}

    def run(self, model, images, strength):
        return (style.apply(style.checked(model), images, strength),)


class AttnStyleApplyVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = "Applies a trained text style to a clip, frame by frame while it is saved."
    SEARCH_ALIASES = ("apply text style to video", "video style")
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The stylized clip. It is computed when it is saved or previewed.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        video = connection("VIDEO", "The clip. Its sound is kept.")
        return {"required": {"model": MODEL, "video": video, "strength": STRENGTH}}

    def run(self, model, video, strength):
        trained, clip = style.checked(model), LazyVideo.of(video)
        if strength == 0:
            return (clip,)
        fields = (trained.tensors, trained.about, float(strength))
        return (clip.then(style.ApplyTextStyle, *fields, node="Apply AttnStyle to Video"),)


class SaveAttnStyle:
    CATEGORY = CATEGORY
    DESCRIPTION = "Saves a trained text style to output/attnstyle, for Load AttnStyle."
    SEARCH_ALIASES = ("save text style", "export attnstyle")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        name = text("my_style", "The file's name. A new number is added to it.")
        return {"required": {"model": connection(ATTNSTYLE, "From AttnStyle: Text to Style."), "name": name}}

    def save(self, model, name):
        path, _ = host.numbered(f"{style.KIND}/{name}", style.SUFFIX)
        return (str(style.save(style.checked(model), path)),)


class LoadAttnStyle:
    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a text style that Save AttnStyle wrote, from output/attnstyle or models/attnstyle."
    SEARCH_ALIASES = ("load text style", "import attnstyle")
    RETURN_TYPES = (ATTNSTYLE,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The style, for Apply AttnStyle and Apply AttnStyle to Video.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        files = host.model_names(style.KIND) or [_NO_FILE]
        return {"required": {"file": names(files, "A file that Save AttnStyle wrote.")}}

    @classmethod
    def IS_CHANGED(cls, file):
        return changed(host.model_path, style.KIND, file)

    def load(self, file):
        return (style.load(host.model_path(style.KIND, file)),)


NODES = {
    **nodes_judge.NODES,
    "ReelBrushKeyFrames": (KeyFrames, "Key Frames"),
    "ReelBrushAttnStyle": (AttnStyle, "AttnStyle: Text to Style"),
    "ReelBrushAttnStyleApply": (AttnStyleApply, "Apply AttnStyle"),
    "ReelBrushAttnStyleApplyVideo": (AttnStyleApplyVideo, "Apply AttnStyle to Video"),
    "ReelBrushSaveAttnStyle": (SaveAttnStyle, "Save AttnStyle"),
    "ReelBrushLoadAttnStyle": (LoadAttnStyle, "Load AttnStyle"),
}
