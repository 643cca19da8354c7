"""Flow nodes: declarations. See estimate.py, store.py for files, and stabilize.py."""

from ..common.files import changed
from ..common.inputs import choice, connection, decimal, integer, names, strength, text
from ..video.lazy_video import LazyVideo
from . import batch, nodes_error, store
from .cuts import find_cuts
from .estimate import CONSISTENCY, METHODS, estimate
from .stabilize import stabilize, stabilize_video, stabilize_with_flow

CATEGORY = "ReelBrush/Flow"
METHOD = choice(
    METHODS,
    "How motion is estimated. dis: fast, on the CPU. raft: needs torchvision, and weights in models/flow.",
    "dis-medium",
)
STRENGTH = strength("How much of the previous result is kept along the motion. 0 changes nothing.", 0.8)


class OpticalFlow:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Estimates the motion of every pixel of a clip, forwards and backwards, and where it is valid. "
        "Frame t is compared with frame t - stride, so the first frames have no motion."
    )
    SEARCH_ALIASES = ("optical flow", "motion vectors", "dis", "farneback", "raft", "occlusion mask")
    RETURN_TYPES = ("REELBRUSH_FLOW", "MASK", "IMAGE")
    RETURN_NAMES = ("flow", "valid", "picture")
    OUTPUT_TOOLTIPS = (
        "Forward and backward flow with their validity, for the other flow nodes.",
        "One mask per frame: white where the pixel also exists `stride` frames before.",
        "One picture per frame of its motion: hue is the direction, white is no motion.",
    )
    FUNCTION = "estimate"

    @classmethod
    def INPUT_TYPES(cls):
        absolute, relative = CONSISTENCY
        error = "Largest squared distance to the start after the forward and the backward flow, in pixels."
        return {
            "required": {
                "images": connection("IMAGE", "The frames of the clip. For a stylized clip: its content."),
                "method": METHOD,
                "stride": integer(1, 1, 1024, "The distance between compared frames."),
                "consistency_abs": decimal(absolute, 0.0, 1000.0, error),
                "consistency_rel": decimal(
                    relative, 0.0, 1.0, "The same, as a share of the squared motion.", 0.001
                ),
            }
        }

    def estimate(self, images, method, stride, consistency_abs, consistency_rel):
        consistency = (consistency_abs, consistency_rel)
        flow = estimate(images, method, stride, consistency, cuts=tuple(find_cuts(images)))
        return (flow, *batch.looking_back(flow))


class SaveFlow:
    CATEGORY = CATEGORY
    DESCRIPTION = "Saves a flow to output/flows/, so that it is estimated only once."
    SEARCH_ALIASES = ("export flow", "cache flow")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file that was written.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        name = f"The file is output/flows/NAME{store.SUFFIX}. An existing file is replaced."
        return {
            "required": {
                "flow": connection("REELBRUSH_FLOW", "The flow to save."),
                "name": text("clip", name),
            }
        }

    def save(self, flow, name):
        return (str(store.save(flow, store.target(name))),)


class LoadFlow:
    CATEGORY = CATEGORY
    DESCRIPTION = "Loads a saved flow, or a folder of Middlebury .flo files below input/."
    SEARCH_ALIASES = ("import flow", "flo", "middlebury", "sintel", "ground truth flow")
    RETURN_TYPES = ("REELBRUSH_FLOW",)
    RETURN_NAMES = ("flow",)
    OUTPUT_TOOLTIPS = ("The flow with its validity.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = f"A *{store.SUFFIX} file, or a folder of .flo files."
        return {"required": {"file": names(store.names(), tooltip)}}

    @classmethod
    def IS_CHANGED(cls, file):
        return changed(store.find, file)

    def load(self, file):
        return (store.load(store.find(file)),)


class FlowWarp:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Moves the pixels of each frame's neighbour along the flow, so that it should look like the frame. "
        "Frames without a neighbour are returned unchanged, with a black mask."
    )
    SEARCH_ALIASES = ("remap", "motion compensation", "warp image")
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("images", "valid")
    OUTPUT_TOOLTIPS = ("The warped frames.", "White where the warped pixel is valid.")
    FUNCTION = "warp"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": connection("IMAGE", "As many frames as the flow has, of any size."),
                "flow": connection("REELBRUSH_FLOW", "The flow of a clip with the same motion."),
                "direction": choice(batch.DIRECTIONS, "Which neighbour is warped onto which frame."),
            }
        }

    def warp(self, images, flow, direction):
        return batch.warp_clip(images, flow, direction)


class Stabilize:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reduces the flicker of a clip that was stylized frame by frame: each result is warped along the "
        "content's motion and blended into the next frame. Connect the content, its flow, or both."
    )
    SEARCH_ALIASES = ("deflicker", "temporal consistency", "temporal smoothing", "flicker")
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The stabilized frames.",)
    FUNCTION = "stabilize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stylized": connection("IMAGE", "The frames that flicker."),
                "strength": STRENGTH,
                "method": METHOD,
            },
            "optional": {
                "content": connection("IMAGE", "The frames before they were stylized, of any size."),
                "flow": connection("REELBRUSH_FLOW", "The content's flow of stride 1. It replaces `method`."),
            },
        }

    def stabilize(self, stylized, strength, method, content=None, flow=None):
        if flow is not None:
            return (stabilize_with_flow(stylized, flow, content, strength),)
        if content is None:
            raise ValueError("Stabilize needs the content or its flow: connect one of the two")
        return (stabilize(stylized, content, strength, method),)


class StabilizeVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Reduces the flicker of a stylized clip while it is saved. Memory does not grow with its length."
    )
    SEARCH_ALIASES = ("deflicker video", "temporal consistency", "flicker")
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The stabilized clip. It is computed when it is saved.",)
    FUNCTION = "stabilize"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stylized": connection("VIDEO", "The clip that flickers."),
                "content": connection("VIDEO", "The clip before it was stylized, of any size."),
                "strength": STRENGTH,
                "method": METHOD,
            }
        }

    def stabilize(self, stylized, content, strength, method):
        return (stabilize_video(LazyVideo.of(stylized), LazyVideo.of(content), strength, method),)


NODES = {
    "ReelBrushOpticalFlow": (OpticalFlow, "Optical Flow"),
    "ReelBrushSaveFlow": (SaveFlow, "Save Flow"),
    "ReelBrushLoadFlow": (LoadFlow, "Load Flow"),
    "ReelBrushFlowWarp": (FlowWarp, "Warp by Flow"),
    **nodes_error.NODES,
    "ReelBrushStabilize": (Stabilize, "Stabilize (Flow)"),
    "ReelBrushStabilizeVideo": (StabilizeVideo, "Stabilize Video (Flow)"),
}
