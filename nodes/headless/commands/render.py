"""`reelbrush render`: runs a saved graph here or on a ComfyUI server."""

import argparse
import sys

from ... import host
from ..run import render
from ..server_run import render_on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "graph",
        metavar="GRAPH.json",
        help="a workflow saved by ComfyUI (UI or API format), or a shipped one's name",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is a title or an id, and a file may be anywhere on this machine",
    )
    parser.add_argument("--out", metavar="FILE", help="the file to write; its suffix chooses the format")
    parser.add_argument(
        "--server", metavar="URL", help="use a running ComfyUI (needs aiohttp), e.g. http://127.0.0.1:8188"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="a clip that cannot be read to its end is an error, not a warning",
    )


def run(args: argparse.Namespace) -> int:
    if args.server:
        files = render_on(args.server, args.graph, args.set, args.out)
    else:
        with host.strict(args.strict):
            files = render(args.graph, args.set, args.out)
    for file in files:
        sys.stdout.write(f"{file}\n")
    return 0
