"""`reelbrush nodes`: lists the nodes with their ids, names, inputs and outputs."""

import argparse
import json
import sys
from typing import Any

from ... import NODE_CLASS_MAPPINGS
from ..catalog import local_catalog, node_classes
from ..graph import Definition


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also the core nodes that run without ComfyUI")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    catalog = local_catalog()
    definitions = [
        catalog(class_type) for class_type in (node_classes() if args.all else NODE_CLASS_MAPPINGS)
    ]
    if args.json:
        sys.stdout.write(json.dumps([_as_data(definition) for definition in definitions], indent=2) + "\n")
    else:
        sys.stdout.writelines(_as_text(definition) for definition in definitions)
    return 0


def _as_data(definition: Definition) -> dict[str, Any]:
    inputs = {i.name: {"type": i.type, "required": i.required} for i in definition.inputs.values()}
    return {
        "id": definition.class_type,
        "name": definition.name,
        "inputs": inputs,
        "outputs": definition.outputs,
    }


def _as_text(definition: Definition) -> str:
    lines = [f"{definition.class_type}  ({definition.name})"]
    for declared in definition.inputs.values():
        mark = "" if declared.required else "?"
        default = f" = {declared.default!r}" if declared.is_widget else ""
        lines.append(f"    {declared.name}{mark} {declared.type}{default}")
    lines.append(f"    -> {', '.join(definition.outputs) or 'saves or shows'}")
    return "\n".join(lines) + "\n"
