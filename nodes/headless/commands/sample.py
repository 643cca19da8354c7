"""`reelbrush sample`: writes the sample clips, their exact flow and the style pictures."""

import argparse
import sys

from ... import host
from ...sample.files import write_sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER", help="the folder to write to (default: the input folder)")


def run(args: argparse.Namespace) -> int:
    for path in write_sample(args.out or host.folder("input")):
        sys.stdout.write(f"{path}\n")
    return 0
