"""Nodes that measure: declarations. The conventions are in conventions.py, the measuring in report.py."""

from ..common import inputs
from ..video.lazy_video import LazyVideo
from . import measure
from .charts import comparison, error_heatmap, error_plot
from .conventions import CHOICES, PRESETS, convention
from .estimate import METHODS

CATEGORY = "ReelBrush/Flow"
TYPES = ("FLOAT", "IMAGE", "IMAGE", "STRING")
NAMES = ("error", "plot", "heatmap", "table")
TOOLTIPS = (
    "The mean error over the pairs; pairs across a cut are left out.",
    "The error of every pair, with mean, worst pair, cuts and the convention.",
    "Where in the frame the error is.",
    "CSV: the convention in comment lines, then pair, stride, error and valid share.",
)
ABOUT = (
    "How much a stylized clip flickers: each frame is compared with its neighbour, moved along the motion of "
    "the content. Published numbers differ by their conventions; here each is an input, and printed."
)
ALIASES = ("warping error", "temporal consistency", "flicker metric", "ewarp", "stability")


def settings() -> dict:
    """The inputs that say what the error means."""
    words = {
        "direction": "Which frame is moved onto which before they are compared.",
        "norm": "mse: mean of squares; rmse: its root, per pair; l1: mean of absolute differences.",
        "range": "The range of the colours; it scales the error.",
        "mask": "Compare only pixels that are seen in both frames, or all.",
        "normaliser": "Divide by the pixels that were compared, or by all pixels of the frame.",
    }
    choices = {name: inputs.choice(allowed, words[name]) for name, allowed in CHOICES.items()}
    return {
        "preset": inputs.choice(
            PRESETS,
            "Compute it as that public code does; then direction, norm, range, mask and "
            "normaliser below are not used.",
            "custom",
        ),
        "method": inputs.choice(
            METHODS, "How the content's motion is estimated (without a flow).", "dis-medium"
        ),
        "strides": inputs.text(
            "1", "How far apart compared frames are: 1 for flicker, 1,8 for slow changes, too."
        ),
        **choices,
    }


class FlowError:
    """The error of a batch."""

    CATEGORY = CATEGORY
    DESCRIPTION = ABOUT
    SEARCH_ALIASES = ALIASES
    RETURN_TYPES = TYPES
    RETURN_NAMES = NAMES
    OUTPUT_TOOLTIPS = TOOLTIPS
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"stylized": inputs.connection("IMAGE", "The frames to judge."), **settings()},
            "optional": {
                "content": inputs.connection(
                    "IMAGE", "The frames before they were stylized: their motion counts."
                ),
                "flow": inputs.connection("REELBRUSH_FLOW", "The content's flow; then `method` is not used."),
            },
        }

    def measure(
        self,
        stylized,
        preset,
        method,
        strides,
        direction,
        norm,
        range,
        mask,
        normaliser,
        content=None,
        flow=None,
    ):
        rule = convention(preset, strides, direction, norm, range, mask, normaliser)
        report = measure.batch(stylized, content, flow, rule, method)
        heatmap = error_heatmap(report, *stylized.shape[1:3])
        return report.error, error_plot(report), heatmap, report.table()


class FlowErrorVideo:
    """The error of a lazy clip."""

    CATEGORY = CATEGORY
    DESCRIPTION = ABOUT + " For clips of any length: frames stream through."
    SEARCH_ALIASES = ALIASES
    RETURN_TYPES = TYPES
    RETURN_NAMES = NAMES
    OUTPUT_TOOLTIPS = TOOLTIPS
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stylized": inputs.connection("VIDEO", "The clip to judge."),
                "content": inputs.connection("VIDEO", "The clip before it was stylized: its motion counts."),
                **settings(),
            }
        }

    def measure(self, stylized, content, preset, method, strides, direction, norm, range, mask, normaliser):
        rule = convention(preset, strides, direction, norm, range, mask, normaliser)
        clips = LazyVideo.of(stylized), LazyVideo.of(content)
        report = measure.stream(*clips, rule, method)
        heatmap = error_heatmap(report, clips[0].height, clips[0].width)
        return report.error, error_plot(report), heatmap, report.table()


class StabilityReport:
    """Several clips side by side."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Compares the flicker of up to four versions of one clip, by one convention and one motion."
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
        clip = lambda i: inputs.connection("IMAGE", f"Version {i} of the clip.")  # noqa: E731
        return {
            "required": {
                "content": inputs.connection("IMAGE", "The frames before they were stylized."),
                "a": clip("A"),
                "names": inputs.text("A,B,C,D", "The clips' names, with commas between."),
                **settings(),
            },
            "optional": {name: clip(name.upper()) for name in "bcd"},
        }

    def compare(
        self,
        content,
        a,
        names,
        preset,
        method,
        strides,
        direction,
        norm,
        range,
        mask,
        normaliser,
        b=None,
        c=None,
        d=None,
    ):
        rule = convention(preset, strides, direction, norm, range, mask, normaliser)
        reports = measure.versions(measure.named([a, b, c, d], names), content, rule, method)
        return comparison(reports), measure.summary(reports), measure.best(reports)


NODES = {
    "ReelBrushFlowError": (FlowError, "Optical Flow Error"),
    "ReelBrushFlowErrorVideo": (FlowErrorVideo, "Optical Flow Error (Video)"),
    "ReelBrushStabilityReport": (StabilityReport, "Stability Report"),
}
