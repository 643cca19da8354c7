"""Optical flow and stabilization on the sample clip, whose exact motion is known."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from reelbrush.lab.sample.scene import flickering, scene
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.estimate import Flow, estimate
from reelbrush.nodes.flow.measure import batch
from reelbrush.nodes.flow.stabilize import Stabilizer, stabilize

METHODS = ("dis-medium", "dis-fast", "dis-ultrafast", "farneback")  # those without weights


def accuracy(frames: int = 12) -> dict[str, Callable]:
    """Flow methods: end-point error on visible pixels, and overlap with the exact (in)valid pixels."""
    return {method: partial(_estimation, frames, method) for method in METHODS}


@torch.inference_mode()
def _estimation(frames: int, method: str) -> Callable[[], dict]:
    clip = scene(frames)
    truth, visible = clip.forward.permute(0, 3, 1, 2), ~clip.occluded_forward

    def run() -> dict:
        flow = estimate(clip.frames, method)
        error, valid = (flow.forward - truth).norm(dim=1)[visible].mean(), flow.forward_valid
        pairs = {"IoU valid": (valid, visible), "IoU invalid": (~valid, ~visible)}
        overlap = {name: float((a & b).sum() / (a | b).sum()) for name, (a, b) in pairs.items()}
        return {"frames": flow.pairs, "end-point error": float(error), **overlap}

    return run


def stability(frames: int = 12, flicker: float = 0.05) -> dict[str, Callable]:
    """Stabilization of artificial flicker: the flow error (mse, 0-255) along the exact flow.

    "no flicker" is the same clip without flicker, stabilized at 0.8: its change in 0-255, where an object has
    uncovered the background and elsewhere.
    """
    variants = {f"strength {s}": partial(_stabilization, frames, s, flicker) for s in (0.5, 0.8, 0.9)}
    return variants | {"no flicker": partial(_stabilization, frames, 0.8, 0.0)}


@torch.inference_mode()
def _stabilization(frames: int, strength: float, flicker: float) -> Callable[[], dict]:
    clip = scene(frames)
    ways = (way.permute(0, 3, 1, 2).contiguous() for way in (clip.forward, clip.backward))
    exact = Flow(*ways, ~clip.occluded_forward, ~clip.occluded_backward, 1, "exact")
    given, uncovered = flickering(clip.frames, flicker), clip.occluded_backward

    def error(x: Tensor) -> float:
        return batch(x, None, exact, convention(), "").error

    def run() -> dict:
        out = stabilize(given, clip.frames, strength, METHODS[0])
        change = (out - given).abs().mean(-1)[1:] * 255
        values = {"error before": error(given), "error": error(out), "frames": len(out)}
        values["change where uncovered"] = float(change[uncovered].mean())
        return values | {"change elsewhere": float(change[~uncovered].mean())}

    return run


def drift(frames: int = 300) -> dict[str, Callable]:
    """How much a static background has changed (0-255) at the end of a stabilized clip."""
    return {METHODS[0]: partial(_stabilized_to_the_end, frames)}


@torch.inference_mode()
def _stabilized_to_the_end(frames: int) -> Callable[[], dict]:
    content = scene(frames, variant="still", flow=False).frames
    flat = flickering(content, 0.0)
    still = (content - content[:1]).abs().amax(dim=(0, 3)) < 1e-4

    def run() -> dict:
        worker = Stabilizer(0.8, METHODS[0])
        for stylized, shown in zip(flat, content, strict=True):
            out = worker.push(stylized, shown)
        change = float((out - flat[0]).abs().mean(-1)[still].mean()) * 255
        return {"frames": frames, "static share": float(still.float().mean()), "change": change}

    return run
