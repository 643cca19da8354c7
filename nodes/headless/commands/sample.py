"""`reelbrush sample`: copies the sample to a folder that lacks it."""

import argparse
import sys
from pathlib import Path

from ... import host
from ...sample import ALL, copy_missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="the folder to copy to (default: the input folder)"
    )


def run(args: argparse.Namespace) -> int:
    folder = args.out or host.folder("input")
    copy_missing(folder)
    for name in ALL:
        sys.stdout.write(f"{folder / name}\n")
    return 0
