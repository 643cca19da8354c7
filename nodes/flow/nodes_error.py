"""Nodes that measure flicker: declarations. Conventions are in conventions.py, measuring in report.py."""

from ..common.inputs import choice, connection, text
from ..video.lazy_video import LazyVideo
from . import measure
from .charts import comparison, error_heatmap, error_plot
from .compare import comparison_player
from .conventions import CHOICES, PRESETS, convention
from .estimate import METHODS

CATEGORY = "ReelBrush/Flow"


def _convention_inputs() -> dict:
    tooltips = {
        "direction": "Which frame is warped onto which before they are compared.",
        "norm": "mse: mean of squares. rmse: its root, per pair. l1: mean of absolute differences. lpips: "
        "perceptual distance; needs `pip install stlpips-pytorch`.",
        "range": "The range of the colours, which scales the error.",
        "mask": "Compare only pixels that exist in both frames, or all pixels.",
        "normaliser": "Divide the sum of errors by the number of compared pixels, or of all pixels.",
    }
    preset = (
        "Use the settings of a published code. They replace direction, norm, range, mask and normaliser; "
        "CAP-VSTNet's also strides and method (RAFT)."
    )
    method = "How the motion of the content is estimated."
    strides = "The distances between compared frames: 1 for flicker, 1,8 also for slow changes."
    return {
        "preset": choice(PRESETS, preset, "custom"),
        "method": choice(METHODS, method, "dis-medium"),
        "strides": text("1", strides),
        **{name: choice(allowed, tooltips[name]) for name, allowed in CHOICES.items()},
    }


class FlowError:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Measures the flicker of a stylized clip: each frame is compared with its neighbour, warped by the "
        "content's motion. Published numbers use different conventions: here each of them is an input."
    )
    SEARCH_ALIASES = ("warping error", "temporal consistency", "flicker metric", "ewarp", "stability")
    RETURN_TYPES = ("FLOAT", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("error", "plot", "heatmap", "table")
    OUTPUT_TOOLTIPS = (
        "The mean error of all pairs, without those across a cut.",
        "The error of every pair, with mean, worst pair, cuts and the convention.",
        "The mean error of each pixel.",
        "CSV: the convention in comment lines, then pair, stride, error and valid share.",
    )
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"stylized": connection("IMAGE", "The frames to measure."), **_convention_inputs()},
            "optional": {
                "content": connection("IMAGE", "The frames before they were stylized, for their motion."),
                "flow": connection("REELBRUSH_FLOW", "The content's flow. It replaces `method`."),
            },
        }

    def measure(self, stylized, method, content=None, flow=None, **rule):
        report = measure.batch(stylized, content, flow, convention(**rule), method)
        heatmap = error_heatmap(report, *stylized.shape[1:3])
        return report.error, error_plot(report), heatmap, report.table()


class FlowErrorVideo:
    CATEGORY = CATEGORY
    DESCRIPTION = FlowError.DESCRIPTION + " For clips of any length."
    SEARCH_ALIASES = FlowError.SEARCH_ALIASES
    RETURN_TYPES = FlowError.RETURN_TYPES
    RETURN_NAMES = FlowError.RETURN_NAMES
    OUTPUT_TOOLTIPS = FlowError.OUTPUT_TOOLTIPS
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls):
        other = "Another version, such as the clip before it was stabilized. The plot shows both on one axis."
        return {
            "required": {
                "stylized": connection("VIDEO", "The clip to measure."),
                "content": connection("VIDEO", "The clip before it was stylized, for its motion."),
                **_convention_inputs(),
            },
            "optional": {"other": connection("VIDEO", other)},
        }

    def measure(self, stylized, content, method, other=None, **rule):
        named = {"stylized": stylized} if other is None else {"stylized": stylized, "other": other}
        clips = {name: LazyVideo.of(video) for name, video in named.items()}
        reports = measure.streams(clips, content, convention(**rule), method)
        plot = error_plot(reports[0]) if other is None else comparison(reports)
        heatmap = error_heatmap(reports[0], clips["stylized"].height, clips["stylized"].width)
        return reports[0].error, plot, heatmap, "\n".join(report.table() for report in reports)


class StabilityReport:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Compares the flicker of up to four versions of one clip, with the same settings and the same motion."
    )
    SEARCH_ALIASES = ("compare videos", "benchmark", "temporal consistency", "warping error")
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("report", "table", "best")
    OUTPUT_TOOLTIPS = (
        "Error curves of all clips, and bars of their means.",
        "CSV: one row per clip with its mean error, worst pair and valid share.",
        "The name of the clip with the smallest error.",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls):
        clips = {name: connection("IMAGE", f"Version {name.upper()} of the clip.") for name in "abcd"}
        return {
            "required": {
                "content": connection("IMAGE", "The frames before they were stylized."),
                "a": clips.pop("a"),
                "names": text("A,B,C,D", "The names of the clips, separated by commas."),
                **_convention_inputs(),
            },
            "optional": clips,
        }

    def compare(self, content, a, names, method, b=None, c=None, d=None, **rule):
        clips = measure.named([a, b, c, d], names)
        reports = measure.versions(clips, content, convention(**rule), method)
        return comparison(reports), measure.summary(reports), measure.best(reports)


class CompareVideo:
    CATEGORY = "ReelBrush/Video"
    DESCRIPTION = (
        "Plays two clips at the same time: one over the other with a divider that you drag, side by side, or "
        "their difference. With the original clip connected, the flicker of both is drawn below them."
    )
    SEARCH_ALIASES = ("compare videos", "before after", "side by side", "video slider", "difference")
    RETURN_TYPES = ()
    OUTPUT_TOOLTIPS = ()
    FUNCTION = "compare"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        mode = "wipe: a left of the divider, b right of it. difference: black where both are equal."
        content = "The clip before it was stylized. With it, the optical-flow error of a and b is drawn."
        return {
            "required": {
                "a": connection("VIDEO", "The first clip."),
                "b": connection("VIDEO", "The second clip, of the same number of frames."),
                "mode": choice(("wipe", "side by side", "difference"), mode),
            },
            "optional": {"content": connection("VIDEO", content)},
        }

    def compare(self, a, b, mode, content=None):
        shown = comparison_player(LazyVideo.of(a), LazyVideo.of(b), content, mode)
        return {"ui": {"reelbrush_compare": [shown]}, "result": ()}


NODES = {
    "ReelBrushFlowError": (FlowError, "Optical Flow Error"),
    "ReelBrushFlowErrorVideo": (FlowErrorVideo, "Optical Flow Error (Video)"),
    "ReelBrushStabilityReport": (StabilityReport, "Stability Report"),
    "ReelBrushCompareVideo": (CompareVideo, "Compare Videos"),
}
