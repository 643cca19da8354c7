"""AttnStyle nodes: declarations. Training is in fit.py and train.py, what was trained in style.py."""

from .. import host
from ..common import inputs
from ..common.files import changed
from ..video.lazy_video import LazyVideo
from . import keyframes, nodes_judge, perceptual, style
from .curriculum import Weights
from .fit import fit
from .nodes_judge import CATEGORY, JUDGE
from .train import Settings

ATTNSTYLE = "REELBRUSH_ATTNSTYLE"
STRENGTH = inputs.strength("How much of the style; 0 gives the input back.")
_NO_FILE = "no files in models/attnstyle"


def _weight(default: float, tooltip: str) -> tuple:
    return inputs.decimal(default, 0.0, 1e6, f"{tooltip} 0 switches it off.", 0.001, round=False)


class KeyFrames:
    """Frames to train on."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Picks frames spread over a clip, at least one from every shot: what AttnStyle trains on."
    SEARCH_ALIASES = ("key frames", "scene detection", "sample frames", "video to images")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "numbers")
    OUTPUT_TOOLTIPS = ("The key frames.", "Their frame numbers, counted from 0.")
    FUNCTION = "pick"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "video": inputs.connection("VIDEO", "The clip."),
                "count": inputs.integer(
                    4, 1, 64, "How many frames; more when the clip has more shots than that."
                ),
            }
        }

    def pick(self, video, count):
        images, numbers = keyframes.pick(LazyVideo.of(video), count)
        return (images, ", ".join(map(str, numbers)))


class AttnStyle:
    """Training on the pictures themselves."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a small network so that your pictures look like what a text says, and keep their structure "
        "(AttnStyle). One picture, or key frames of a clip: the trained model then styles every frame."
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
        "The pictures in their new style.",
        "The trained model, for Apply AttnStyle, Apply AttnStyle to Video and Save AttnStyle.",
        "The losses and the curriculum's weights over the epochs.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "judge": inputs.connection(JUDGE, "Who says how well a text describes a picture."),
                "images": inputs.connection(
                    "IMAGE", "One picture, or key frames of a clip (Key Frames picks them)."
                ),
                "style_text": inputs.text(
                    "a watercolor painting", "What the pictures should look like.", multiline=True
                ),
                "source_text": inputs.text("a photo", "What they look like now: style is the way from here."),
                "epochs": inputs.integer(150, 1, 2000, "Training steps; the paper: 100 to 200."),
                "learning_rate": inputs.decimal(
                    5e-4, 1e-6, 0.1, "Adam's step size; it is halved every 100 epochs.", 1e-5, round=False
                ),
                "global_weight": _weight(500.0, "The whole picture moves the style text's way."),
                "patch_weight": _weight(
                    9000.0, "The judge's verdict on augmented patches: the brush strokes."
                ),
                "patch_scales": inputs.text(
                    "global 1, intermediate 1, local 1",
                    "Weight of each patch size: the whole short side, half, a quarter of it.",
                ),
                "attention_weight": _weight(1.0, "Alignment of stylized and content features by attention."),
                "content_weight": _weight(150.0, "Perceptual features stay those of the content."),
                "layout_weight": _weight(1.0, "Where the texts fit more or less stays the same."),
                "tv_weight": _weight(2e-3, "Total variation: smooths noise."),
                "temporal_weight": _weight(
                    0.0,
                    "For clips: what moves keeps its style, and nothing flickers. Try 5 to 10; with too much "
                    "the style does not arrive.",
                ),
                "patches": inputs.integer(
                    64, 1, 512, "Patches per epoch, shared out over the scales; fewer is faster."
                ),
                "threshold": inputs.decimal(
                    0.7, 0.0, 2.0, "Patches whose loss is below have style enough and ask for no more."
                ),
                "curriculum": inputs.switch(
                    True, "Structure first: the judge's weights rise over 40% of the run."
                ),
                "perceptual": inputs.choice(
                    perceptual.names(),
                    "The network that the content loss looks through: the embedded StyA2K "
                    "encoder, or a file in models/perceptual.",
                    perceptual.EMBEDDED,
                ),
                "seed": inputs.seed("Of the network's first weights and of all draws."),
            },
            "optional": {
                "early_stop": inputs.switch(
                    True, "Stop when 30 epochs have brought less than half a percent."
                ),
                "confidence_weight": _weight(
                    20000.0, "How sure the judge is of the style text on the whole picture."
                ),
                "other_texts": inputs.text(
                    "",
                    "What else the result might be taken for, one text a line: the judge "
                    "must prefer the style text to all of these, and to the source text.",
                    multiline=True,
                ),
            },
        }

    def run(
        self,
        judge,
        images,
        style_text,
        source_text,
        epochs,
        learning_rate,
        global_weight,
        patch_weight,
        patch_scales,
        attention_weight,
        content_weight,
        layout_weight,
        tv_weight,
        temporal_weight,
        patches,
        threshold,
        curriculum,
        perceptual,
        seed,
        early_stop=True,
        confidence_weight=0.0,  # what a graph computes that was saved before this input existed
        other_texts="",
    ):
        named = (global_weight, patch_weight, attention_weight, content_weight, layout_weight, tv_weight)
        settings = Settings(
            epochs=epochs,
            learning_rate=learning_rate,
            weights=Weights(*named, temporal_weight, confidence_weight),
            patch_scales=patch_scales,
            patches=patches,
            threshold=threshold,
            curriculum=curriculum,
            early_stop=early_stop,
            seed=seed,
            others=tuple(line.strip() for line in other_texts.splitlines() if line.strip()),
        )
        trained, losses = fit(judge, images, style_text, source_text, settings, perceptual)
        return (style.apply(trained, images), trained, losses)


class AttnStyleApply:
    """A trained style on pictures."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Draws pictures in a style that AttnStyle has learned; one pass per picture, any size."
    SEARCH_ALIASES = ("apply text style", "attnstyle inference")
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures in the style.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.connection(ATTNSTYLE, "From AttnStyle: Text to Style or Load AttnStyle."),
                "images": inputs.connection("IMAGE", "Pictures; best of the size that was trained on."),
                "strength": STRENGTH,
            }
        }

    def run(self, model, images, strength):
        return (style.apply(style.checked(model), images, strength),)


class AttnStyleApplyVideo:
    """A trained style on a clip."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Draws a clip in a style that AttnStyle has learned, frame by frame while it is saved."
    SEARCH_ALIASES = ("apply text style to video", "video style")
    RETURN_TYPES = ("VIDEO",)
    OUTPUT_TOOLTIPS = ("The clip in the style; computed when it is saved or previewed.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.connection(ATTNSTYLE, "From AttnStyle: Text to Style or Load AttnStyle."),
                "video": inputs.connection("VIDEO", "The clip; its sound comes along."),
                "strength": STRENGTH,
            }
        }

    def run(self, model, video, strength):
        trained, clip = style.checked(model), LazyVideo.of(video)
        if strength == 0:
            return (clip,)
        name = "Apply AttnStyle to Video"
        return (clip.then(style.ApplyTextStyle, trained.tensors, trained.about, float(strength), node=name),)


class SaveAttnStyle:
    """A trained style to a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Saves a trained text style to output/attnstyle, where Load AttnStyle finds it."
    SEARCH_ALIASES = ("save text style", "export attnstyle")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.connection(ATTNSTYLE, "From AttnStyle: Text to Style."),
                "name": inputs.text("my_style", "A new number is added to the name."),
            }
        }

    def save(self, model, name):
        path, _ = host.numbered(f"{style.KIND}/{name}", style.SUFFIX)
        return (str(style.save(style.checked(model), path)),)


class LoadAttnStyle:
    """A trained style from a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a text style that Save AttnStyle wrote (from output/attnstyle or models/attnstyle)."
    SEARCH_ALIASES = ("load text style", "import attnstyle")
    RETURN_TYPES = (ATTNSTYLE,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The style, for Apply AttnStyle and Apply AttnStyle to Video.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        names = host.model_names(style.KIND) or [_NO_FILE]
        return {"required": {"file": inputs.names(names, "A file that Save AttnStyle wrote.")}}

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
