"""`reelbrush render`: a saved graph, run here or on a ComfyUI server."""

import argparse
import sys

from .headless import render
from .server import render_on


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
        help="change an input; NODE is a title or an id, a path may be anywhere",
    )
    parser.add_argument("--out", metavar="FILE", help="where the result goes; the ending chooses the format")
    parser.add_argument(
        "--server", metavar="URL", help="run in a ComfyUI that is running, e.g. http://127.0.0.1:8188"
    )


def run(args: argparse.Namespace) -> int:
    if args.server:
        files = render_on(args.server, args.graph, args.set, args.out)
    else:
        files = render(args.graph, args.set, args.out)
    for file in files:
        sys.stdout.write(f"{file}\n")
    return 0
