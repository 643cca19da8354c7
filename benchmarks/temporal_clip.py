"""Whether Temporal Attention leaves a seam where a clip is split over calls, with the denoiser of our own.

    python benchmarks/temporal_clip.py --weights denoiser.safetensors --data ../shared/data --out folder
                                       [--runs NAME ...] [--size 48] [--steps 10] [--frames 32] [--per-call 4]

A clip is inverted and painted with Z*, its frames `--per-call` at a time:

    alone       without Temporal Attention
    forgetful   with it, but anchors are forgotten between calls (what an implementation within one call does)
    split       with it
    one call    with it, all frames in one call: no borders

and the optical-flow error of neighbouring frames is compared, across calls and inside them. Pairs differ in
themselves (motion, detail, what the flow gets wrong), so the raw ratio of medians says more about the clip
than about borders. It is given, and beside it two ratios in which each pair's error is divided by its own
difficulty first: by the error of the same pair in the content, and by that of the same pair painted in one
call. The last isolates the border: the same method, pair and frames, and nothing but the split differs.

Every run is kept in the folder (NAME.safetensors), so that runs can be made one at a time.
"""

import argparse
import sys
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from zstar_pictures import STYLES, Bench

from reelbrush.lab.pictures import square
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import pick_layers, sigma_range
from reelbrush.nodes.diffusion.temporal import TemporalPatch
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.estimate import Flow, estimate
from reelbrush.nodes.flow.report import Report, measure_with_flow

RUNS = ("alone", "forgetful", "split", "one call")
CLIP = "sintel_mountain_2"


def clip(given: argparse.Namespace, size: int) -> Tensor:
    """The clip's first frames, [frames, size, size, 3]."""
    files = sorted((given.data / "clips" / CLIP).glob("*.png"))[: given.frames]
    return torch.cat([square(p, size) for p in files])


def run(
    name: str, bench: Bench, noise: dict, sigmas: Tensor, style: object, given: argparse.Namespace
) -> Tensor:
    """The painted clip."""
    model = bench.zstar(style, layers=given.layers).clone()
    if name != "alone":
        chosen, when = pick_layers(model, given.layers), sigma_range(model, 0.0, 1.0)
        temporal = TemporalPatch(chosen, when)
        temporal.attach(model)
        if name == "forgetful":

            def forget(call: unet.UNetCall) -> Tensor:
                temporal.drop()
                return call.run()

            unet.attach(model, "forget", forget, rank=7)
    if name != "one call":
        (model,) = FramesPerCall().patch(model, given.per_call)
    return bench.draw(model, noise, sigmas)


@torch.inference_mode()
def paint(given: argparse.Namespace) -> None:
    """Make the runs that are asked for."""
    bench = Bench(given.weights, given.steps, refine=0)
    inverted = given.out / "inverted.safetensors"
    if not inverted.exists():
        noise, _, sigmas = bench.invert(clip(given, given.size), frames_per_call=8)
        save_file({"noise": noise["samples"].contiguous(), "sigmas": sigmas.contiguous()}, inverted)
    kept = load_file(inverted)
    style = bench.invert(square(given.data / "style" / given.style, given.size))[1]
    for name in given.runs:
        drawn = run(name, bench, {"samples": kept["noise"]}, kept["sigmas"], style, given)
        save_file({"frames": drawn.contiguous()}, given.out / f"{name}.safetensors")


def errors(frames: Tensor, flow: Flow) -> Tensor:
    """The flow error of each pair, 0-255, mean square."""
    report = measure_with_flow(frames, flow, Report(convention()))
    return torch.tensor([pair.error for pair in report.pairs])


def told(given: argparse.Namespace) -> None:
    """The table, and the runs as strips."""
    content = clip(given, given.size)
    flow = estimate(clip(given, 4 * given.size)).at(given.size, given.size)
    found = {
        path.stem: load_file(path)["frames"]
        for path in map(given.out.joinpath, map(_file, RUNS))
        if path.exists()
    }
    rows, own = {"content": content, **found}, errors(content, flow)
    whole = errors(found["one call"], flow) if "one call" in found else None
    border = (torch.arange(len(own)) + 1) % given.per_call == 0
    lines = [
        f"{int(border.sum())} pairs across calls, {int((~border).sum())} inside; medians, across / inside"
    ]
    for name, frames in rows.items():
        error = errors(frames, flow)
        words = [f"error {error[border].median():7.2f} / {error[~border].median():7.2f}"]
        for label, by in (("raw", None), ("by content", own), ("by one call", whole)):
            if by is not None or label == "raw":
                each = error if by is None else error / by
                words.append(f"{label} {each[border].median() / each[~border].median():.3f}")
        lines.append(f"{name:>10}: " + ", ".join(words))
    sys.stdout.write("\n".join(lines) + "\n")
    places = torch.linspace(0, len(content) - 1, 12).long()
    sheet = torch.cat([torch.cat(list(frames[places]), dim=1) for frames in rows.values()])
    image = (sheet * 255).round().byte().numpy()[..., ::-1]
    image = cv2.resize(image, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(given.out / "strips.png"), image)


def _file(name: str) -> str:
    return f"{name}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=RUNS)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--per-call", type=int, default=4)
    parser.add_argument("--layers", default="10-15")
    parser.add_argument("--style", default=STYLES[1], help="a file name in style/")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        paint(given)
    told(given)


if __name__ == "__main__":
    main()
