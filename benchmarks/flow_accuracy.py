"""Optical flow and stabilising on the sample, whose exact motion is known.

    python benchmarks/flow_accuracy.py [--frames 12] [--drift 300]

Prints, per method, the end-point error on exactly visible pixels, the intersection over union of our validity
and of our invalidity with the exact ones, and the time per pair; then the error of a clip with planted
flicker before and after stabilising, what is seen where an occluder has moved away, and by how much a
resting background has drifted after `--drift` frames.
"""

import argparse
import logging
import time

import torch

from reelbrush.nodes.flow import measure
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.estimate import Flow, estimate
from reelbrush.nodes.flow.stabilize import Stabilizer, stabilize
from reelbrush.nodes.sample import scene as sample

METHODS = ("dis-ultrafast", "dis-fast", "dis-medium", "farneback")
log = logging.getLogger("flow_accuracy")


def accuracy(scene: sample.Scene) -> None:
    """Every method that needs no weights, against the truth."""
    truth, seen = scene.forward.permute(0, 3, 1, 2), ~scene.occluded_forward
    log.info("mean motion of visible pixels: %.2f px", truth.norm(dim=1)[seen].mean())
    for method in METHODS:
        begin = time.perf_counter()
        flow = estimate(scene.frames, method)
        each = (time.perf_counter() - begin) / flow.pairs * 1000
        off, valid = (flow.forward - truth).norm(dim=1)[seen].mean(), flow.forward_valid
        iou = [(a & b).sum() / (a | b).sum() for a, b in ((valid, seen), (~valid, ~seen))]
        log.info(
            "%-14s end-point error %.3f px  IoU valid %.3f, invalid %.3f  %4.0f ms a pair",
            method,
            off,
            *iou,
            each,
        )


def calm(scene: sample.Scene) -> None:
    """Planted flicker before and after, measured with the exact flow."""
    ways = (way.permute(0, 3, 1, 2).contiguous() for way in (scene.forward, scene.backward))
    exact = Flow(*ways, ~scene.occluded_forward, ~scene.occluded_backward, 1, "exact")
    flat, loud = (sample.flickering(scene.frames, amount) for amount in (0.0, 0.05))
    error = lambda clip: measure.batch(clip, None, exact, convention(), "").error  # noqa: E731
    log.info("flow error (mse, 0-255): without flicker %.1f, planted %.1f", error(flat), error(loud))
    for strength in (0.5, 0.8, 0.9):
        log.info(
            "  stabilised at %.1f: %.1f",
            strength,
            error(stabilize(loud, scene.frames, strength, "dis-medium")),
        )
    change = (stabilize(flat, scene.frames, 0.8, "dis-medium") - flat).abs().mean(-1)[1:] * 255
    uncovered = scene.occluded_backward
    stale = (flat[1:] - flat[:-1]).abs().mean(-1)[uncovered].mean() * 255
    log.info(
        "a calm clip changes by %.2f/255, where an occluder left by %.2f/255 (without care %.1f/255)",
        change[~uncovered].mean(),
        change[uncovered].mean(),
        stale * 0.8,
    )


def drift(frames: int) -> None:
    """The still variant: what has not moved at all must look the same at the end."""
    scene = sample.scene(frames, variant="still", flow=False)
    flat, run = sample.flickering(scene.frames, 0.0), Stabilizer(0.8, "dis-medium")
    resting = (scene.frames - scene.frames[:1]).abs().amax(dim=(0, 3)) < 1e-4
    begin = time.perf_counter()
    for stylized, content in zip(flat, scene.frames, strict=True):
        out = run.push(stylized, content)
    each = (time.perf_counter() - begin) / frames * 1000
    change = (out - flat[0]).abs().mean(-1)[resting].mean() * 255
    log.info(
        "after %d frames %.0f%% of the frame has rested and changed by %.3f/255; %.0f ms a frame",
        frames,
        resting.float().mean() * 100,
        change,
        each,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--drift", type=int, default=300)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with torch.inference_mode():
        scene = sample.scene(args.frames)
        accuracy(scene)
        calm(scene)
        drift(args.drift) if args.drift else None


if __name__ == "__main__":
    main()
