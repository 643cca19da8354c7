"""UNet rows per frame and step of a Z* clip, ours against the official code's two.

    python benchmarks/zstar_rows.py [--frames 16] [--steps 30]

The tests' small UNet is counted where its first convolution runs, so that reading passes are in the number.
The inversion is apart (one row per frame and step, in the official code too), CFG is off. Rows do not depend
on widths or weights. The official loop runs every frame with its style: two rows per frame and step.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
OFFICIAL = 2.0


def tools() -> ModuleType:
    """The tests' models and counters."""
    for name, folder in (("tests", TESTS), ("tests.diffusion", TESTS / "diffusion")):
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(folder)]
    return importlib.import_module("tests.diffusion.attention_tools")


def rows(frames: int, steps: int, per_call: int, cache: str) -> float:
    """Rows per frame and step of one run over the whole clip."""
    from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall

    t = tools()
    model = t.make("tiny")
    style = t.trajectory(model, sigmas=t.levels(model, steps))
    patched = t.zstar(model, style, start_percent=0.0, cache=cache)
    if per_call:
        (patched,) = FramesPerCall().patch(patched, per_call)
    with t.counted(model) as seen, torch.inference_mode():
        t.sample(patched, frames=frames, sigmas=t.levels(model, steps))
    return sum(seen) / (frames * steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    lines = [f"{'frames per call':>16} {'style kept':>11} {'rows per frame and step':>24} {'official':>9}"]
    for per_call, cache in ((0, "gpu"), (4, "gpu"), (1, "gpu"), (4, "cpu"), (4, "recompute")):
        found = rows(given.frames, given.steps, per_call, cache)
        lines.append(f"{per_call or 'all':>16} {cache:>11} {found:>24.4f} {OFFICIAL:>9.1f}")
    lines.append(f"target: at most {(given.frames + 1) / given.frames:.4f} with the style kept")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
