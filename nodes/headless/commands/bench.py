"""`reelbrush bench`: lists and runs the scripts of benchmarks/ in a source checkout."""

import argparse
import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the script to run; without a name they are listed")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the script")


def run(args: argparse.Namespace) -> int:
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith("_")}
    if not scripts:
        raise ValueError(
            "the benchmarks are not part of an installed ReelBrush: run this in a source checkout"
        )
    if args.name is None:
        for name, path in scripts.items():
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            sys.stdout.write(f"{name:<20} {docstring.partition(chr(10))[0]}\n")
        return 0
    if args.name not in scripts:
        raise ValueError(f"there is no benchmark {args.name!r}: choose one of {', '.join(scripts)}")
    arguments, sys.argv = sys.argv, [str(scripts[args.name]), *args.rest]
    try:
        runpy.run_path(str(scripts[args.name]), run_name="__main__")
    finally:
        sys.argv = arguments
    return 0
