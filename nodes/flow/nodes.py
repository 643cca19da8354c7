"""Flow nodes: declarations. Estimation is in estimate.py, files in store.py, stabilising in stabilize.py."""

from ..common import inputs
from ..common.files import changed
from ..video.lazy_video import LazyVideo
from . import batch, nodes_error, store
from .cuts import find_cuts
from .estimate import CONSISTENCY, METHODS, estimate, estimator, method_files
from .stabilize import StabilizeFrames, stabilize, stabilize_with_flow

CATEGORY = "ReelBrush/Flow"
METHOD = inputs.choice(
    METHODS,
    "How motion is estimated. dis: fast, on the CPU. "
    "raft: needs torchvision, and its weights in models/flow.",
    "dis-medium",
)
STRENGTH = inputs.strength(
    "How much of the previous result is kept where it is the same place. 0 changes nothing.", 0.8
)


class OpticalFlow:
    """Motion between the frames of a clip."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Estimates where every pixel of a clip moves, forwards and backwards, and which can be trusted. "
        "Frame t is compared with frame t - stride; the first frames have nothing to look back to."
    )
    SEARCH_ALIASES = ("optical flow", "motion vectors", "dis", "farneback", "raft", "occlusion mask")
    RETURN_TYPES = ("REELBRUSH_FLOW", "MASK", "IMAGE")
    RETURN_NAMES = ("flow", "valid", "picture")
    OUTPUT_TOOLTIPS = (
        "Forward and backward flow with their validity, for the other flow nodes.",
        "One mask per frame: white where the pixel is found in the frame before.",
        "One picture per frame of the motion that led to it: hue is direction, white is rest.",
    )
    FUNCTION = "estimate"

    @classmethod
    def INPUT_TYPES(cls):
        absolute, relative = CONSISTENCY
        return {
            "required": {
                "images": inputs.connection(
                    "IMAGE", "The frames of the clip; for a stylized clip its content."
                ),
                "method": METHOD,
                "stride": inputs.integer(1, 1, 1024, "Compare frames that are so far apart."),
                "consistency_abs": inputs.decimal(
                    absolute, 0.0, 1000.0, "Squared pixels that going there and back may miss the start by."
                ),
                "consistency_rel": inputs.decimal(
                    relative, 0.0, 1.0, "The same, as a share of the squared motion.", 0.001
                ),
            }
        }

    def estimate(self, images, method, stride, consistency_abs, consistency_rel):
        consistency = (consistency_abs, consistency_rel)
        flow = estimate(images, method, stride, consistency, cuts=tuple(find_cuts(images)))
        return (flow, *batch.looking_back(flow))


class SaveFlow:
    """Flow to a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Writes a flow to output/flows/, so that it is estimated once and used often."
    SEARCH_ALIASES = ("export flow", "cache flow")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "flow": inputs.connection("REELBRUSH_FLOW", "The flow to keep."),
                "name": inputs.text(
                    "clip", f"Becomes output/flows/NAME{store.SUFFIX}; such a file is replaced."
                ),
            }
        }

    def save(self, flow, name):
        return (str(store.save(flow, store.target(name))),)


class LoadFlow:
    """Flow from a file, or from a folder of .flo files."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reads a saved flow, the sample's exact flow, or a folder of Middlebury .flo files below input/."
    )
    SEARCH_ALIASES = ("import flow", "flo", "middlebury", "sintel", "ground truth flow")
    RETURN_TYPES = ("REELBRUSH_FLOW",)
    RETURN_NAMES = ("flow",)
    OUTPUT_TOOLTIPS = ("The flow with its validity.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "file": inputs.names(store.names(), f"A *{store.SUFFIX} file, or a folder of .flo files."),
            }
        }

    @classmethod
    def IS_CHANGED(cls, file):
        return changed(store.find, file)

    def load(self, file):
        return (store.load(store.find(file)),)


class FlowWarp:
    """Frames moved along a flow."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws each frame from its neighbour, moved along the flow: what it would look like if nothing but "
        "motion had happened. Frames without a neighbour come back as they are, with a black mask."
    )
    SEARCH_ALIASES = ("remap", "motion compensation", "warp image")
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("images", "valid")
    OUTPUT_TOOLTIPS = ("The warped frames.", "White where the warped pixel can be trusted.")
    FUNCTION = "warp"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": inputs.connection("IMAGE", "As many frames as the flow was made of, of any size."),
                "flow": inputs.connection("REELBRUSH_FLOW", "Of the clip whose motion the frames share."),
                "direction": inputs.choice(batch.DIRECTIONS, "Which neighbour is moved onto which frame."),
            }
        }

    def warp(self, images, flow, direction):
        return batch.warp_clip(images, flow, direction)


class Stabilize:
    """Flicker taken out of a stylized batch."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Calms the flicker of a clip that was stylized frame by frame: each result is moved along the motion "
        "of the content and blended into the next frame, where it is the same place. "
        "Give the content, its flow, or both."
    )
    SEARCH_ALIASES = ("deflicker", "temporal consistency", "temporal smoothing", "flicker")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The calmer frames.",)
    FUNCTION = "stabilize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stylized": inputs.connection("IMAGE", "The frames that flicker."),
                "strength": STRENGTH,
                "method": METHOD,
            },
            "optional": {
                "content": inputs.connection("IMAGE", "The frames before they were stylized, of any size."),
                "flow": inputs.connection(
                    "REELBRUSH_FLOW", "The content's flow with stride 1; then `method` is not used."
                ),
            },
        }

    def stabilize(self, stylized, strength, method, content=None, flow=None):
        if flow is not None:
            return (stabilize_with_flow(stylized, flow, content, strength),)
        if content is None:
            raise ValueError("Stabilize needs the content or its flow: connect one of the two")
        return (stabilize(stylized, content, strength, method),)


class StabilizeVideo:
    """The same for a lazy clip."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Calms the flicker of a stylized clip while it is saved; memory does not grow with its length."
    )
    SEARCH_ALIASES = ("deflicker video", "temporal consistency", "flicker")
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The calmer clip; computed when it is saved.",)
    FUNCTION = "stabilize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stylized": inputs.connection("VIDEO", "The clip that flickers."),
                "content": inputs.connection(
                    "VIDEO", "The clip before it was stylized; its size may differ."
                ),
                "strength": STRENGTH,
                "method": METHOD,
            }
        }

    def stabilize(self, stylized, content, strength, method):
        video, shown = LazyVideo.of(stylized), LazyVideo.of(content)
        if strength == 0:
            return (video,)
        estimator(method)  # what is missing is said now, not when the clip is saved
        files = method_files(method)
        return (
            video.then(
                StabilizeFrames, shown.operation, float(strength), method, files, node="Stabilize Video"
            ),
        )


NODES = {
    "ReelBrushOpticalFlow": (OpticalFlow, "Optical Flow"),
    "ReelBrushSaveFlow": (SaveFlow, "Save Flow"),
    "ReelBrushLoadFlow": (LoadFlow, "Load Flow"),
    "ReelBrushFlowWarp": (FlowWarp, "Warp by Flow"),
    **nodes_error.NODES,
    "ReelBrushStabilize": (Stabilize, "Stabilize (Flow)"),
    "ReelBrushStabilizeVideo": (StabilizeVideo, "Stabilize Video (Flow)"),
}
