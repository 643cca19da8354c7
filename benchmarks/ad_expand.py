"""Texture expansion at the sizes that people ask for: what the UNet's memory does when the canvas grows.

    python benchmarks/ad_expand.py

A small UNet with random weights (tests/distill/small.py), windows of 512 pixels: 512 x 1536 with the paper's
overlap, then 1024² and 2048², where a window is guided on its own in each. Peaks are the allocator's count.
"""

import importlib
import logging
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import torch

from reelbrush.nodes.distill.expand import Expansion, TextureCanvas, expand
from reelbrush.nodes.distill.features import opened
from reelbrush.nodes.distill.guided import seeded

TESTS = Path(__file__).resolve().parents[1] / "tests"
log = logging.getLogger("ad_expand")


def small():
    """tests/distill/small.py, seen as a module of a package under another name."""
    for name, folder in (("", TESTS), (".diffusion", TESTS / "diffusion"), (".distill", TESTS / "distill")):
        package = sys.modules[f"reelbrush_tests{name}"] = ModuleType(f"reelbrush_tests{name}")
        package.__path__ = [str(folder)]
    return importlib.import_module("reelbrush_tests.distill.small")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tests = small()
    model = tests.model()
    texture = tests.styles(size=(64, 64))

    def grown(height: int, width: int, overlap: int) -> torch.Tensor:
        canvas = TextureCanvas(height // 8, width // 8, 64, overlap // 8)
        how = Expansion(steps=1, iterations=1, windows_per_call=1)
        with torch.inference_mode(), opened(model, tests.null(model)) as (clone, reader):
            return expand(clone, reader, texture, canvas, how, seeded(0))

    begin = time.process_time()
    out = grown(512, 1536, 448)
    spent = time.process_time() - begin
    sound = bool(out.isfinite().all())
    log.warning("512 x 1536: latent %s, all finite: %s, %.0f s of CPU", tuple(out.shape), sound, spent)
    with tempfile.TemporaryDirectory() as folder:
        peaks = [
            tests.peak(lambda side=side: grown(side, side, 0), Path(folder) / f"{side}.json")
            for side in (1024, 2048)
        ]
    log.warning(
        "peak at 1024²: %.1f MB, at 2048²: %.1f MB (%.3f of it)",
        *(p / 1e6 for p in peaks),
        peaks[1] / peaks[0],
    )


if __name__ == "__main__":
    main()
