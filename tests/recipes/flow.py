"""How to run the flow nodes in the every-node test."""

import torch
from every_node import Recipe, clip, picture

from reelbrush.nodes.flow import store
from reelbrush.nodes.flow.estimate import Flow, estimate

RULE = dict(
    preset="custom",
    method="dis-ultrafast",
    strides="1",
    direction="previous to next",
    norm="mse",
    range="0-255",
    mask="valid only",
    normaliser="counted pixels",
)


def flow(frames, size):
    return estimate(picture(frames, size), "dis-ultrafast")


def other(frames, stride=1):
    """A flow of so many frames."""
    pairs = frames - stride
    motion, mask = torch.zeros(pairs, 2, 16, 16), torch.ones(pairs, 16, 16, dtype=torch.bool)
    return Flow(motion, motion, mask, mask, stride)


def saved(frames, size):
    """The name of a flow on disk."""
    store.save(flow(frames, size), store.target("saved"))
    return f"saved{store.SUFFIX} [output]"


RECIPES = {
    "ReelBrushCompareVideo": Recipe(
        lambda n, size: dict(a=clip(n, size, 1), b=clip(n, size, 2), mode="wipe", content=clip(n, size)),
        wrong=[
            (dict(a=clip(2, (33, 21))), "two clips of one length"),
            (dict(content="no"), "VIDEO is needed"),
        ],
    ),
    "ReelBrushOpticalFlow": Recipe(
        lambda n, size: dict(
            images=picture(n, size), method="dis-medium", stride=1, consistency_abs=0.5, consistency_rel=0.01
        ),
        frames=2,
        same_size=True,
        sizes=((33, 21), (5, 7), (40, 11), (64, 48)),
        wrong=[
            (dict(method="raft-small"), "raft"),
            (dict(method="guess"), "none of"),
            (dict(stride=0), "a number from 1"),
        ],
    ),
    "ReelBrushSaveFlow": Recipe(
        lambda n, size: dict(flow=flow(n, size), name="clip"),
        wrong=[(dict(name="../../clip"), "leaves the output folder"), (dict(name=" "), "no name")],
    ),
    "ReelBrushLoadFlow": Recipe(
        lambda n, size: dict(file=saved(n, size)),
        wrong=[
            (dict(file="none.flow.safetensors"), "not in the input folder"),
            (dict(file="../x.flow.safetensors"), "leaves the input folder"),
            (dict(file="gone.flow.safetensors [output]"), "save it again"),
        ],
    ),
    "ReelBrushFlowWarp": Recipe(
        lambda n, size: dict(images=picture(n, size), flow=flow(n, size), direction="previous to next"),
        frames=0,
        same_size=True,
        wrong=[(dict(flow=other(9)), "the flow belongs to 9 frames")],
    ),
    "ReelBrushFlowError": Recipe(
        lambda n, size: dict(stylized=picture(n, size, 1), content=picture(n, size), **RULE),
        wrong=[
            (dict(content=None), "connect one of the two"),
            (dict(content=picture(2, (33, 21))), "clips of one length"),
            (dict(content=None, flow=other(9)), "the flow belongs to 9 frames"),
            (dict(flow=other(3, 2)), "set strides"),
            (dict(strides="often"), "cannot be read"),
            (dict(preset="best"), "preset"),
            (dict(norm="l7"), "norm"),
        ],
    ),
    "ReelBrushFlowErrorVideo": Recipe(
        lambda n, size: dict(stylized=clip(n, size, 1), content=clip(n, size), **RULE),
        wrong=[(dict(content=clip(2, (33, 21))), "length"), (dict(stylized=3), "VIDEO is needed")],
    ),
    "ReelBrushStabilityReport": Recipe(
        lambda n, size: dict(
            content=picture(n, size), a=picture(n, size, 1), b=picture(n, size, 2), names="one,two", **RULE
        ),
        wrong=[(dict(b=picture(2, (33, 21))), "two has 2 frames"), (dict(names="x,x"), "repeat")],
    ),
    "ReelBrushStabilize": Recipe(
        lambda n, size: dict(
            stylized=picture(n, size, 1), content=picture(n, size), strength=0.8, method="dis-ultrafast"
        ),
        frames=0,
        same_size=True,
        off=(dict(strength=0.0), "stylized", 0),
        wrong=[
            (dict(content=None), "connect one of the two"),
            (dict(content=picture(2, (33, 21))), "clips of one length"),
            (dict(flow=other(3, 2)), "the flow"),
        ],
    ),
    "ReelBrushStabilizeVideo": Recipe(
        lambda n, size: dict(
            stylized=clip(n, size, 1), content=clip(n, size), strength=0.8, method="dis-ultrafast"
        ),
        frames=0,
        same_size=True,
        off=(dict(strength=0.0), "stylized", 0),
        wrong=[(dict(content=clip(2, (33, 21))), "one length"), (dict(method="raft-large"), "raft")],
    ),
}
