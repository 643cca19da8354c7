"""`reelbrush nodes`: what a graph can hold, with ids, names and inputs."""

import argparse
import json
import sys

from . import NODE_CLASS_MAPPINGS
from .headless import classes, definition


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also the core nodes that run without ComfyUI")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    found = [definition(kind) for kind in (classes() if args.all else NODE_CLASS_MAPPINGS)]
    if args.json:
        rows = [
            {
                "id": known.kind,
                "name": known.name,
                "inputs": {i.name: {"type": i.type, "required": i.required} for i in known.inputs.values()},
                "outputs": known.outputs,
            }
            for known in found
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for known in found:
        sys.stdout.write(f"{known.kind}  ({known.name})\n")
        for given in known.inputs.values():
            mark = "" if given.required else "?"
            shown = f" = {given.default!r}" if given.is_widget else ""
            sys.stdout.write(f"    {given.name}{mark} {given.type}{shown}\n")
        sys.stdout.write(f"    -> {', '.join(known.outputs) or 'saves or shows'}\n")
    return 0
