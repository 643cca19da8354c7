"""StyA2K nodes: declarations. Files are in checkpoint.py, stylizing in stylize.py, training in train.py."""

from .. import host
from ..common import inputs
from ..common.files import changed
from ..video.lazy_video import LazyVideo
from . import library
from .attention import KINDS, MODES
from .style import PRECISIONS, load_model, make_style, mix_styles
from .stylize import Look, stylize, stylize_video
from .train_in_graph import train

CATEGORY = "ReelBrush/StyA2K"
STRENGTH = inputs.strength("1 is the method, 0 gives the input back; between them features are interpolated.")
KEEP_COLOR = inputs.switch(False, "Keep the content's colours: only lightness takes the style.")


class LoadStyA2K:
    """A stylizer from the pack or from models/stya2k."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a StyA2K stylizer. The first in the list comes with the pack and is made for a CPU. Official "
        "checkpoints: put the four files into a folder below models/stya2k, or make one file of them with "
        "`reelbrush convert-stya2k`."
    )
    SEARCH_ALIASES = ["style transfer", "stya2k", "stylizer", "neural style"]
    RETURN_TYPES = ("REELBRUSH_STYA2K",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The stylizer, for StyA2K Style.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.names(
                    library.names(), "Those of the pack first, then files and folders in models/stya2k."
                ),
                "precision": inputs.choice(PRECISIONS, "auto: float16 on a GPU, float32 on a CPU.", "auto"),
            },
            "optional": {
                "compile": inputs.switch(
                    False, "torch.compile: a slow first frame, faster ones after; for long clips."
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model, precision="auto", compile=False):
        return changed(library.path, model)

    def load(self, model, precision, compile=False):
        return (load_model(library.path(model), precision, compile),)


class StyA2KStyle:
    """Style pictures, encoded once for every frame that follows."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Encodes one or several style pictures. Several are averaged, with `weights` where given."
    SEARCH_ALIASES = ["style image", "reference style", "average styles"]
    RETURN_TYPES = ("REELBRUSH_STYLE",)
    RETURN_NAMES = ("style",)
    OUTPUT_TOOLTIPS = ("The encoded style, for StyA2K Stylize and Mix StyA2K Styles.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": inputs.connection("REELBRUSH_STYA2K", "The stylizer from Load StyA2K."),
                "style": inputs.connection("IMAGE", "The style pictures; a batch of n is averaged."),
                "weights": inputs.text("", "One number per picture, like 1, 0.5. Empty: all alike."),
                "size": inputs.integer(
                    512,
                    64,
                    2048,
                    "The short side that the pictures get. Larger pictures show larger "
                    "strokes. The paper uses 512.",
                    16,
                ),
            }
        }

    def encode(self, model, style, weights, size):
        return (make_style(model, style, weights, size),)


class StyA2KMix:
    """Two styles in one."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Blends two styles, everywhere alike or where a mask says; the mask may move with the clip."
    SEARCH_ALIASES = ["blend styles", "interpolate styles", "style mask", "regional style"]
    RETURN_TYPES = ("REELBRUSH_STYLE",)
    RETURN_NAMES = ("style",)
    OUTPUT_TOOLTIPS = ("The mixed style; it can be mixed again.",)
    FUNCTION = "mix"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "a": inputs.connection("REELBRUSH_STYLE", "The first style."),
                "b": inputs.connection("REELBRUSH_STYLE", "The second style, of the same model."),
                "amount": inputs.strength(
                    "How much of b: 0 is a, 1 is b. With a mask: where it is white.", 0.5
                ),
            },
            "optional": {
                "mask": inputs.connection(
                    "MASK", "b where white. One frame, or one for each frame of the clip."
                ),
            },
        }

    def mix(self, a, b, amount, mask=None):
        return (mix_styles(a, b, amount, mask),)


class StyA2KApply:
    """Frames in a style."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Stylizes pictures with StyA2K. The output has the input's size; frames do not depend on each other."
    )
    SEARCH_ALIASES = ["style transfer", "stylize image", "stya2k apply", "neural style"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The stylized frames.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "style": inputs.connection("REELBRUSH_STYLE", "From StyA2K Style or Mix StyA2K Styles."),
                "images": inputs.connection("IMAGE", "The frames to stylize, of any size."),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "attention": inputs.choice(
                    MODES,
                    "The method, or a part of it alone. For looking at what the parts do.",
                    "all-to-key",
                ),
                "chunk": inputs.integer(0, 0, 256, "Frames at once. 0: what memory allows."),
            }
        }

    def apply(self, style, images, strength, keep_color, attention, chunk):
        mode = None if attention == "all-to-key" else attention
        return (stylize(style, images, Look(strength, keep_color, mode), chunk),)


class StyA2KApplyVideo:
    """A clip in a style."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Stylizes a clip with StyA2K when it is saved, frame by frame; memory does not grow with its length. "
        "Connect it to Stabilize Video (Flow) or straight to Save Video."
    )
    SEARCH_ALIASES = ["video style transfer", "stylize video", "stya2k video"]
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The stylized clip; computed when it is saved or looked at.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "style": inputs.connection("REELBRUSH_STYLE", "From StyA2K Style or Mix StyA2K Styles."),
                "video": inputs.connection("VIDEO", "The clip to stylize, from Load Video."),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "max_side": inputs.max_side(
                    "Shrink the clip so that its longer side is at most this. 0: as it is.", 8192
                ),
            }
        }

    def apply(self, style, video, strength, keep_color, max_side):
        clip = LazyVideo.of(video).fit(max_side)
        return (stylize_video(style, clip, Look(strength, keep_color)),)


class TrainStyA2K:
    """A StyA2K of one's own."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a StyA2K stylizer on folders of pictures below input/. It shows samples while it runs, can "
        "be cancelled and goes on from there, and saves to output/stya2k, where Load StyA2K finds it."
    )
    SEARCH_ALIASES = ["train style transfer", "train stylizer", "fit style model"]
    RETURN_TYPES = ("REELBRUSH_STYA2K", "IMAGE", "STRING")
    RETURN_NAMES = ("model", "plot", "log")
    OUTPUT_TOOLTIPS = (
        "The trained stylizer, with averaged weights.",
        "The loss curves over the whole run.",
        "Where the model is, how long it took, which pictures could not be read.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        judges = host.model_names("perceptual", (".safetensors", ".pth"))
        folders = host.input_names(folders=True) or ["contents", "styles"]  # told to make them
        return {
            "required": {
                "content_folder": inputs.names(folders, "A folder of photographs below input/."),
                "style_folder": inputs.names(folders, "A folder of style pictures below input/."),
                "perceptual": inputs.names(
                    judges or ["(none in models/perceptual)"],
                    "The network that judges, from models/perceptual: SqueezeNet or VGG-19.",
                ),
                "size": inputs.choice(
                    ["small", "paper"], "small: for a CPU. paper: VGG-19, for a large GPU."
                ),
                "attention": inputs.choice(
                    KINDS, "The method, or one of the paper's comparisons.", "all-to-key"
                ),
                "steps": inputs.integer(20000, 1, 10_000_000, "Optimisation steps in all."),
                "batch": inputs.integer(8, 1, 256, "Pairs per step."),
                "load_size": inputs.integer(512, 64, 2048, "The short side that pictures get."),
                "crop": inputs.integer(256, 64, 1024, "Side of the training crops.", 16),
                "learning_rate": inputs.decimal(2e-4, 0.0, 1.0, "Adam's step size.", 1e-5),
                "style_weight": inputs.decimal(10.0, 0.0, 1000.0, "Weight of eq. 16.", 0.05),
                "match_weight": inputs.decimal(1.25, 0.0, 1000.0, "Weight of eq. 17.", 0.05),
                "temporal_weight": inputs.decimal(
                    0.0, 0.0, 1000.0, "Weight of the difference between moved frames.", 0.05
                ),
                "seed": inputs.fixed_seed("Weights, data order, held-out pictures."),
                "save_as": inputs.text("my-style", "The run's name in output/stya2k."),
                "resume": inputs.switch(True, "Go on from a run of this name. Off: it must be new."),
            },
            "optional": {
                "clip_folder": inputs.names(
                    ["", *folders], "Clips for the temporal loss. Empty: pictures that are moved."
                ),
            },
        }

    def train(
        self,
        content_folder,
        style_folder,
        perceptual,
        size,
        attention,
        steps,
        batch,
        load_size,
        crop,
        learning_rate,
        style_weight,
        match_weight,
        temporal_weight,
        seed,
        save_as,
        resume,
        clip_folder="",
    ):
        recipe = {
            "size": size,
            "attention": attention,
            "steps": steps,
            "batch": batch,
            "load_size": load_size,
            "crop": crop,
            "learning_rate": learning_rate,
            "style_weight": style_weight,
            "match_weight": match_weight,
            "temporal_weight": temporal_weight,
            "seed": seed,
        }
        return train(content_folder, style_folder, clip_folder, perceptual, save_as, resume, recipe)


NODES = {
    "ReelBrushLoadStyA2K": (LoadStyA2K, "Load StyA2K"),
    "ReelBrushStyA2KStyle": (StyA2KStyle, "StyA2K Style"),
    "ReelBrushStyA2KMix": (StyA2KMix, "Mix StyA2K Styles"),
    "ReelBrushStyA2KApply": (StyA2KApply, "StyA2K Stylize"),
    "ReelBrushStyA2KApplyVideo": (StyA2KApplyVideo, "StyA2K Stylize Video"),
    "ReelBrushTrainStyA2K": (TrainStyA2K, "Train StyA2K"),
}
