"""A key of what a node is connected to, for results that are kept on disk.

A MODEL with its patches cannot be hashed. The graph above it can: equal nodes with equal values and equal
files make equal models. So the key has the class and the values of every node above, what its `IS_CHANGED`
says, and size and time of the model files that it names.
"""

import hashlib
import json
import os
import uuid
from typing import Any

from .comfyui import comfy, inside_comfyui


def graph_key(prompt: dict | None, node: str | None, names: tuple[str, ...]) -> str:
    """A hash of all nodes above the inputs `names` of a node; a new one each time if the graph is unknown."""
    if not inside_comfyui() or not prompt or str(node) not in prompt:
        return uuid.uuid4().hex
    described: dict[str, Any] = {}
    links = [v for k, v in prompt[str(node)]["inputs"].items() if k in names]
    todo = [str(link[0]) for link in links if _is_link(link)]
    while todo:
        key = todo.pop()
        if key in described or key not in prompt:
            continue
        inputs = prompt[key]["inputs"]
        values = {k: v for k, v in inputs.items() if not _is_link(v)}
        kind = prompt[key]["class_type"]
        described[key] = [kind, inputs, _changed(kind, values), [_file(v) for v in values.values()]]
        todo.extend(str(v[0]) for v in inputs.values() if _is_link(v))
    text = json.dumps([links, described], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_link(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], int)


def _changed(kind: str, values: dict[str, Any]) -> Any:
    """What the node says about files that it reads. NaN means that it always changes."""
    node = comfy("nodes").NODE_CLASS_MAPPINGS.get(kind)
    for name in ("fingerprint_inputs", "IS_CHANGED"):
        if (function := getattr(node, name, None)) is not None:
            try:
                said = function(**values)
            except Exception:  # it needs a connected value, which a file name never is
                return None
            return uuid.uuid4().hex if said != said else said
    return None


def _file(value: Any) -> Any:
    """Size and time of a model file with this name."""
    if not isinstance(value, str) or "." not in value:
        return None
    paths = comfy("folder_paths")
    for folder in paths.folder_names_and_paths:
        if path := paths.get_full_path(folder, value):
            about = os.stat(path)
            return [about.st_size, about.st_mtime_ns]
    return None
