"""A chain as data that can be stored or sent, and rebuilt in another process.

What is only in this process (a VAE, bytes without a file) cannot travel and is refused in words.
"""

import os
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from . import chain


def to_data(sink: chain.Node) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A chain as JSON rows (inputs by row number) and tensors, to be rebuilt by `from_data`."""
    nodes = list(chain.walk([sink]))
    row = {node.fingerprint: number for number, node in enumerate(nodes)}
    rows: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, node in enumerate(nodes):
        match node:
            case chain.FileSource():
                if not isinstance(node.source, (str, os.PathLike)):
                    raise ValueError("a clip that is only in memory cannot travel: save it to a file first")
                rows.append({"kind": "file", "source": str(node.source)})
            case chain.FrameSource():
                tensors[f"{number}.frames"] = node.frames
                rows.append({"kind": "frames", "fps": str(node.fps), "bit_depth": node.bit_depth})
            case chain.Trim():
                values = {"start": node.start, "frames": node.frames, "every": node.every}
                rows.append({"kind": "trim", "input": row[node.source.fingerprint], **values})
            case chain.Step():
                if node.objects:
                    raise ValueError(
                        f"{node.label or node.name} holds {', '.join(node.objects)}, which cannot travel"
                    )
                tensors |= {f"{number}.{key}": t for key, t in node.tensors.items()}
                inputs = [row[i.fingerprint] for i in node.inputs]
                rows.append(
                    {
                        "kind": "step",
                        "name": node.name,
                        "params": dict(node.params),
                        "files": dict(node.files),
                    }
                    | {"inputs": inputs, "label": node.label}
                )
    return rows, tensors


def from_data(rows: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> chain.Node:
    """The chain that `to_data` described."""
    nodes: list[chain.Node] = []
    for number, r in enumerate(rows):
        match r["kind"]:
            case "file":
                nodes.append(chain.FileSource(r["source"]))
            case "frames":
                nodes.append(
                    chain.FrameSource(tensors[f"{number}.frames"], Fraction(r["fps"]), None, r["bit_depth"])
                )
            case "trim":
                nodes.append(chain.Trim(nodes[r["input"]], r["start"], r["frames"], r["every"]))
            case "step":
                mark = f"{number}."
                own = {key.removeprefix(mark): t for key, t in tensors.items() if key.startswith(mark)}
                inputs = tuple(nodes[i] for i in r["inputs"])
                nodes.append(chain.Step(r["name"], r["params"], inputs, own, r["files"], r["label"]))
    return nodes[-1]
