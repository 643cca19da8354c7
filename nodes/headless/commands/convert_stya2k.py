"""`reelbrush convert-stya2k`: converts official StyA2K files to one safetensors file."""

import argparse
import logging
from pathlib import Path

from ...stya2k import checkpoint

log = logging.getLogger("reelbrush")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="latest_net_{A2K,transform,decoder}.pth and an encoder")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="float16: half the size")


def run(args: argparse.Namespace) -> int:
    output = args.output.with_suffix(".safetensors")
    checkpoint.save(checkpoint.load(args.folder), output, half=args.half)
    log.info("wrote %s; put it into models/stya2k", output)
    return 0
