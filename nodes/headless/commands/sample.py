"""`reelbrush sample`: copies the sample clips and style pictures to a folder that lacks them."""

import argparse
import sys
from pathlib import Path

from ... import host
from ...sample import FILES, copy_missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="the folder to copy to (default: the input folder)"
    )


def run(args: argparse.Namespace) -> int:
    folder = args.out or host.folder("input")
    copy_missing(folder)
    for name in FILES:
        sys.stdout.write(f"{folder / name}\n")
    return 0
