"""StyA2K nodes: declarations. Files are in checkpoint.py, stylizing in stylize.py, training in train.py."""

from .. import host
from ..video.lazy_video import LazyVideo
from . import library
from .attention import KINDS, MODES
from .style import PRECISIONS, load_model, make_style, mix_styles
from .stylize import Look, stylize, stylize_video
from .train_node import train

CATEGORY = "ReelBrush/StyA2K"
STRENGTH = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 1.0,
        "step": 0.05,
        "tooltip": "1 is the method, 0 gives the input back; between them features are interpolated.",
    },
)
KEEP_COLOR = (
    "BOOLEAN",
    {"default": False, "tooltip": "Keep the content's colours: only lightness takes the style."},
)


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
                "model": (
                    library.names(),
                    {"tooltip": "Those of the pack first, then files and folders in models/stya2k."},
                ),
                "precision": (
                    list(PRECISIONS),
                    {"default": "auto", "tooltip": "auto: float16 on a GPU, float32 on a CPU."},
                ),
            },
            "optional": {
                "compile": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "torch.compile: a slow first frame, faster ones after; for long clips.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model, precision="auto", compile=False):
        return library.mark(model)

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
                "model": ("REELBRUSH_STYA2K", {"tooltip": "The stylizer from Load StyA2K."}),
                "style": ("IMAGE", {"tooltip": "The style pictures; a batch of n is averaged."}),
                "weights": (
                    "STRING",
                    {"default": "", "tooltip": "One number per picture, like 1, 0.5. Empty: all alike."},
                ),
                "size": (
                    "INT",
                    {
                        "default": 512,
                        "min": 64,
                        "max": 2048,
                        "step": 16,
                        "tooltip": "The short side that the pictures get. Larger pictures show larger "
                        "strokes. The paper uses 512.",
                    },
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
                "a": ("REELBRUSH_STYLE", {"tooltip": "The first style."}),
                "b": ("REELBRUSH_STYLE", {"tooltip": "The second style, of the same model."}),
                "amount": (
                    "FLOAT",
                    {
                        "default": 0.5,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "How much of b: 0 is a, 1 is b. With a mask: where it is white.",
                    },
                ),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "b where white. One frame, or one for each frame of the clip."}),
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
                "style": ("REELBRUSH_STYLE", {"tooltip": "From StyA2K Style or Mix StyA2K Styles."}),
                "images": ("IMAGE", {"tooltip": "The frames to stylize, of any size."}),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "attention": (
                    list(MODES),
                    {
                        "default": "all-to-key",
                        "tooltip": "The method, or a part of it alone. For looking at what the parts do.",
                    },
                ),
                "chunk": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 256,
                        "tooltip": "Frames at once. 0: what memory allows.",
                    },
                ),
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
                "style": ("REELBRUSH_STYLE", {"tooltip": "From StyA2K Style or Mix StyA2K Styles."}),
                "video": ("VIDEO", {"tooltip": "The clip to stylize, from Load Video."}),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "max_side": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "tooltip": "Shrink the clip so that its longer side is at most this. 0: as it is.",
                    },
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
        number = {"min": 0.0, "max": 1000.0, "step": 0.05}
        return {
            "required": {
                "content_folder": (folders, {"tooltip": "A folder of photographs below input/."}),
                "style_folder": (folders, {"tooltip": "A folder of style pictures below input/."}),
                "perceptual": (
                    judges or ["(none in models/perceptual)"],
                    {"tooltip": "The network that judges, from models/perceptual: SqueezeNet or VGG-19."},
                ),
                "size": (
                    ["small", "paper"],
                    {"default": "small", "tooltip": "small: for a CPU. paper: VGG-19, for a large GPU."},
                ),
                "attention": (
                    list(KINDS),
                    {"default": "all-to-key", "tooltip": "The method, or one of the paper's comparisons."},
                ),
                "steps": (
                    "INT",
                    {"default": 20000, "min": 1, "max": 10_000_000, "tooltip": "Optimisation steps in all."},
                ),
                "batch": (
                    "INT",
                    {"default": 8, "min": 1, "max": 256, "tooltip": "Pairs per step."},
                ),
                "load_size": (
                    "INT",
                    {
                        "default": 512,
                        "min": 64,
                        "max": 2048,
                        "tooltip": "The short side that pictures get.",
                    },
                ),
                "crop": (
                    "INT",
                    {
                        "default": 256,
                        "min": 64,
                        "max": 1024,
                        "step": 16,
                        "tooltip": "Side of the training crops.",
                    },
                ),
                "learning_rate": (
                    "FLOAT",
                    {"default": 2e-4, "min": 0.0, "max": 1.0, "step": 1e-5, "tooltip": "Adam's step size."},
                ),
                "style_weight": (
                    "FLOAT",
                    {"default": 10.0, **number, "tooltip": "Weight of eq. 16."},
                ),
                "match_weight": (
                    "FLOAT",
                    {"default": 1.25, **number, "tooltip": "Weight of eq. 17."},
                ),
                "temporal_weight": (
                    "FLOAT",
                    {"default": 0.0, **number, "tooltip": "Weight of the difference between moved frames."},
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**63 - 1,
                        "control_after_generate": False,  # a seed of its own at every run could not resume
                        "tooltip": "Weights, data order, held-out pictures.",
                    },
                ),
                "save_as": (
                    "STRING",
                    {"default": "my-style", "tooltip": "The run's name in output/stya2k."},
                ),
                "resume": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "Go on from a run of this name. Off: it must be new.",
                    },
                ),
            },
            "optional": {
                "clip_folder": (
                    ["", *folders],
                    {"tooltip": "Clips for the temporal loss. Empty: pictures that are moved."},
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
