"""Packs pictures for the training of the modulated StyA2K network, without those that judge it.

    python lab/stylizer/pack.py --data ../shared/data --out ~/stylizer

Writes contents.safetensors and styles.safetensors for `reelbrush train stya2k`, and the pictures of
hold_out.json (60 styles, 20 contents, chosen by a seed before the first training) as *-held.safetensors.
Pictures that nearly show a held-out one are in neither file.
"""

import argparse
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("pack")
KINDS = {"contents": (("content",), 256), "styles": (("paintings", "style"), 384)}  # folders, short side


def read(path: Path, side: int) -> Tensor | None:
    """A picture [H, W, 3], shrunk to the short side; None if it is damaged or tiny."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None or min(image.shape[:2]) < 96:
        return None
    scale = min(1, side / min(image.shape[:2]))
    size = tuple(round(length * scale) for length in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    longest = 2 * min(image.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(image[:longest, :longest, ::-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder with content, paintings, style")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the packed files")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    hold_out = json.loads((Path(__file__).parent / "hold_out.json").read_text())
    for kind, (folders, side) in KINDS.items():
        pictures = {
            f"{folder}/{path.name}": picture
            for folder in folders
            for path in sorted((args.data / folder).iterdir())
            if (picture := read(path, side)) is not None
        }
        held, left_out = set(hold_out[kind]), set(hold_out[f"{kind}_not_trained_either"])
        trained = {name: p for name, p in pictures.items() if name not in held | left_out}
        judged = {name: p for name, p in pictures.items() if name in held}
        for suffix, part in (("", trained), ("-held", judged)):
            save_file(part, args.out / f"{kind}{suffix}.safetensors", metadata={"skipped": "[]"})
        log.info("%s: %d to train on, %d held out", kind, len(trained), len(judged))


if __name__ == "__main__":
    main()
