"""`reelbrush bench`: lists and runs the two tools of benchmarks/ in a source checkout."""

import argparse
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks"
TOOLS = {"speed": "time and memory of variants in turns", "sheet": "labelled pictures of a method's settings"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tool", nargs="?", choices=TOOLS, help="without a tool, everything is listed")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the tool")


def run(args: argparse.Namespace) -> int:
    if not FOLDER.is_dir():
        raise ValueError(
            "the benchmarks are not part of an installed ReelBrush: run this in a source checkout"
        )
    for tool, about in TOOLS.items():
        if args.tool is None:
            sys.stdout.write(f"{tool}: {about}\n\n")
            run_tool(tool, [])
            sys.stdout.write("\n")
        elif args.tool == tool:
            run_tool(tool, args.rest)
    return 0


def run_tool(tool: str, arguments: list[str]) -> None:
    before, sys.argv = sys.argv, [str(FOLDER / f"{tool}.py"), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
