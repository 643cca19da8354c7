"""StyA2K nodes: declarations. Files are in checkpoint.py, stylizing in stylize.py, training in train.py."""

from .. import host, sample
from ..common import inputs
from ..common.files import changed
from ..common.inputs import choice, connection, decimal, fixed_seed, integer, names, strength, switch, text
from ..common.perceptual import INSTALLED, perceptual_names
from ..flow.stabilize import stabilize_video
from ..video.lazy_video import LazyVideo
from . import library
from .attention import KINDS, MODES
from .recipe import AUTOMATIC, EQUATIONS
from .style import PRECISIONS, load_model, make_style, mix_styles, style_of
from .stylize import Options, stylize, stylize_video
from .train_in_graph import train

CATEGORY = "ReelBrush/StyA2K"
STYA2K, STYLE = "REELBRUSH_STYA2K", "REELBRUSH_STYLE"
STYLE_INPUT = connection(
    f"{STYLE},IMAGE",
    "From StyA2K Style or Mix StyA2K Styles. A picture is encoded with the model of the pack.",
)
STRENGTH = strength("1 is the method, 0 gives the input back. Values between interpolate features.")
KEEP_COLOR = switch(False, "Keep the colours of the content and stylize only the lightness.")


class LoadStyA2K:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a StyA2K stylizer. The first in the list is part of the pack and also fast on a CPU. Official "
        "checkpoints: put the four files into a folder in models/stya2k, or convert them to one file with "
        "`reelbrush convert-stya2k`."
    )
    SEARCH_ALIASES = ["style transfer", "stya2k", "stylizer", "neural style"]
    RETURN_TYPES = (STYA2K,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The stylizer, for StyA2K Style.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        model = "First the models of the pack, then files and folders in models/stya2k."
        compile = switch(False, "Use torch.compile: the first frame is slow, the others may be faster.")
        return {
            "required": {
                "model": names(library.names(), model),
                "precision": choice(PRECISIONS, "auto: float16 on a GPU, float32 on a CPU.", "auto"),
            },
            "optional": {"compile": compile},
        }

    @classmethod
    def IS_CHANGED(cls, model, precision="auto", compile=False):
        return changed(library.path, model)

    def load(self, model, precision, compile=False):
        return (load_model(library.path(model), precision, compile),)


class StyA2KStyle:
    CATEGORY = CATEGORY
    DESCRIPTION = "Encodes one or several style pictures, once for all frames. Several pictures are averaged."
    SEARCH_ALIASES = ["style image", "reference style", "average styles"]
    RETURN_TYPES = (STYLE,)
    RETURN_NAMES = ("style",)
    OUTPUT_TOOLTIPS = ("The encoded style, for StyA2K Stylize and Mix StyA2K Styles.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls):
        size = (
            "The short side of the style pictures. Larger pictures give larger strokes. The paper uses 512."
        )
        return {
            "required": {
                "model": connection(STYA2K, "The stylizer from Load StyA2K."),
                "style": connection("IMAGE", "The style pictures. A batch is averaged."),
                "weights": text("", "One number per picture, such as 1, 0.5. Empty: equal weights."),
                "size": integer(512, 64, 2048, size, 16),
            }
        }

    def encode(self, model, style, weights, size):
        return (make_style(model, style, weights, size),)


class StyA2KMix:
    CATEGORY = CATEGORY
    DESCRIPTION = "Mixes two styles, everywhere or by a mask. The mask may change from frame to frame."
    SEARCH_ALIASES = ["blend styles", "interpolate styles", "style mask", "regional style"]
    RETURN_TYPES = (STYLE,)
    RETURN_NAMES = ("style",)
    OUTPUT_TOOLTIPS = ("The mixed style. It can be mixed again.",)
    FUNCTION = "mix"

    @classmethod
    def INPUT_TYPES(cls):
        mask = connection("MASK", "White: style b. Black: style a. One frame, or one per frame of the clip.")
        return {
            "required": {
                "a": connection(STYLE, "The first style."),
                "b": connection(STYLE, "The second style, of the same model."),
                "amount": strength("The share of b: 0 is a, 1 is b. With a mask: where it is white.", 0.5),
            },
            "optional": {"mask": mask},
        }

    def mix(self, a, b, amount, mask=None):
        return (mix_styles(a, b, amount, mask),)


class StyA2KApply:
    CATEGORY = CATEGORY
    DESCRIPTION = "Stylizes pictures with StyA2K. The size is kept, and frames do not depend on each other."
    SEARCH_ALIASES = ["style transfer", "stylize image", "stya2k apply", "neural style"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The stylized frames.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        attention = "The method, or only a part of it, to see what the parts do."
        return {
            "required": {
                "style": STYLE_INPUT,
                "images": connection("IMAGE", "The frames to stylize, of any size."),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "attention": choice(MODES, attention, "all-to-key"),
                "chunk": integer(0, 0, 256, "Frames per call. 0: as many as memory allows."),
            }
        }

    def apply(self, style, images, strength, keep_color, attention, chunk):
        mode = None if attention == "all-to-key" else attention
        return (stylize(style_of(style), images, Options(strength, keep_color, mode), chunk),)


class StyA2KApplyVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Stylizes a clip with StyA2K while it is saved. Memory does not grow with its length. "
        "Connect it to Stabilize Video (Flow) or to Save Video."
    )
    SEARCH_ALIASES = ["video style transfer", "stylize video", "stya2k video"]
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The stylized clip. It is computed when it is saved or previewed.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):
        side = "Shrink the clip so that its longer side has at most this many pixels. 0 keeps the size."
        return {
            "required": {
                "style": STYLE_INPUT,
                "video": connection("VIDEO", "The clip to stylize."),
                "strength": STRENGTH,
                "keep_color": KEEP_COLOR,
                "max_side": inputs.max_side(side, 8192),
            }
        }

    def apply(self, style, video, strength, keep_color, max_side):
        clip = LazyVideo.of(video).fit(max_side)
        return (stylize_video(style_of(style), clip, Options(strength, keep_color)),)


class StylizeVideo:
    CATEGORY = "ReelBrush"
    DESCRIPTION = (
        "Paints a clip in the style of a picture, and stabilizes it. Nothing has to be downloaded. "
        "Connect it to Save Video: the frames are computed when the clip is saved."
    )
    SEARCH_ALIASES = [
        "video stylization",
        "style transfer",
        "restyle video",
        "neural style",
        "video style transfer",
        "paint video",
        "stylize",
        "style",
    ]
    ESSENTIALS_CATEGORY = "Video Tools"
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The stylized clip with the sound of the original.",)
    FUNCTION = "stylize"

    @classmethod
    def INPUT_TYPES(cls):
        model = "First the model of the pack, then files and folders in models/stya2k."
        stroke = "The short side that the style picture gets. Larger values give larger strokes."
        steady = "How much of the previous frame is kept along the motion: 0 is off, 1 flickers least."
        side = "Shrink the clip so that its longer side has at most this many pixels. 0 keeps the size."
        return {
            "required": {
                "video": connection("VIDEO", "The clip to stylize, from Load Video."),
                "style": connection("IMAGE", "The style picture. Several pictures are averaged."),
                "model": names(library.names(), model),
                "strength": STRENGTH,
                "stroke_size": integer(512, 64, 2048, stroke, 16),
                "stabilize": strength(steady, 0.8),
                "keep_color": KEEP_COLOR,
                "max_side": inputs.max_side(side, 8192),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model, **_):
        return changed(library.path, model)

    def stylize(self, video, style, model, strength, stroke_size, stabilize, keep_color, max_side):
        clip = LazyVideo.of(video).fit(max_side)
        if strength == 0:
            return (clip,)
        made = make_style(load_model(library.path(model)), style, size=stroke_size)
        painted = stylize_video(made, clip, Options(strength, keep_color))
        return (stabilize_video(painted, clip, stabilize, "dis-medium"),)


class TrainStyA2K:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Trains a StyA2K stylizer on folders of pictures below input/, with previews. If "
        "you cancel it and queue it again, it continues. The model is saved to output/stya2k for Load StyA2K."
    )
    SEARCH_ALIASES = ["train style transfer", "train stylizer", "fit style model"]
    RETURN_TYPES = (STYA2K, "IMAGE", "STRING")
    RETURN_NAMES = ("model", "plot", "log")
    OUTPUT_TOOLTIPS = (
        "The trained stylizer, with averaged weights.",
        "The losses over the whole run.",
        "The file, the time, and the pictures that could not be read.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        folders = list(dict.fromkeys([*host.input_names(folders=True), *sample.FOLDERS]))
        judge = f"The network of the losses: {INSTALLED} (`pip install stlpips-pytorch`), or a file."
        steps = "The number of optimization steps. With the size paper, 20000 stands for the paper's 400000."
        equations = (
            "Form of eqs. 16 and 17. automatic: relative for small, official (the authors' code) for paper."
        )
        moved = "The weight of the temporal loss: less flicker, weaker style."
        clips = names(["", *folders], "Clips for the temporal loss. Empty: pictures with artificial motion.")
        return {
            "required": {
                "content_folder": names(folders, "A folder of photographs below input/."),
                "style_folder": names(folders, "A folder of style pictures below input/."),
                "perceptual": names(perceptual_names(), judge),
                "size": choice(["small", "paper"], "small: for a CPU. paper: VGG-19, for a large GPU."),
                "attention": choice(KINDS, "The method, or one of the paper's comparisons.", "all-to-key"),
                "steps": integer(20000, 1, 10_000_000, steps),
                "batch": integer(8, 1, 256, "Pairs of pictures per step."),
                "load_size": integer(512, 64, 2048, "The short side of the pictures."),
                "crop": integer(256, 64, 1024, "The side of the training crops.", 16),
                "learning_rate": decimal(2e-4, 0.0, 1.0, "The step size of Adam.", 1e-5),
                "style_weight": decimal(10.0, 0.0, 1000.0, "The weight of eq. 16.", 0.05),
                "match_weight": decimal(1.25, 0.0, 1000.0, "The weight of eq. 17.", 0.05),
                "temporal_weight": decimal(0.0, 0.0, 1000.0, moved, 0.05),
                "seed": fixed_seed("For weights, data order and held-out pictures."),
                "save_as": text("my-style", "The name of the run in output/stya2k."),
                "resume": switch(True, "Continue a run of this name. Off: the name must be new."),
            },
            "optional": {
                "clip_folder": clips,
                "equations": choice([AUTOMATIC, *EQUATIONS], equations),
            },
        }

    def train(self, content_folder, style_folder, perceptual, save_as, resume, clip_folder="", **recipe):
        return train(content_folder, style_folder, clip_folder, perceptual, save_as, resume, recipe)


NODES = {
    "ReelBrushStylizeVideo": (StylizeVideo, "Stylize Video"),
    "ReelBrushLoadStyA2K": (LoadStyA2K, "Load StyA2K"),
    "ReelBrushStyA2KStyle": (StyA2KStyle, "StyA2K Style"),
    "ReelBrushStyA2KMix": (StyA2KMix, "Mix StyA2K Styles"),
    "ReelBrushStyA2KApply": (StyA2KApply, "StyA2K Stylize"),
    "ReelBrushStyA2KApplyVideo": (StyA2KApplyVideo, "StyA2K Stylize Video"),
    "ReelBrushTrainStyA2K": (TrainStyA2K, "Train StyA2K"),
}
