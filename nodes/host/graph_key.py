"""A key of what a node is connected to, for results that are kept on disk.

A MODEL with its patches cannot be hashed. The graph above it can: equal nodes with equal values and equal
files make equal models. So the key has the class and the values of every node above, what its `IS_CHANGED`
says, and size and time of the model files that it names.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

from .comfyui import comfy, inside_comfyui

_users: WeakValueDictionary[str, Any] = WeakValueDictionary()  # the object that a key stands for


def graph_key(prompt: dict | None, node: str | None, names: tuple[str, ...], stands_for: Any) -> str:
    """A hash of all nodes above the inputs `names` of a node; a new one each time if the graph is unknown.

    A node that gets lists is called once per item, with the same graph. So a key stands for one object.
    """
    if not inside_comfyui() or not prompt or str(node) not in prompt:
        return uuid.uuid4().hex
    described: dict[str, Any] = {}
    links = {k: v for k, v in prompt[str(node)]["inputs"].items() if k in names and _is_link(v)}
    todo = [link[0] for link in links.values()]
    while todo:
        key = todo.pop()
        if key in described or key not in prompt:
            continue
        inputs = prompt[key]["inputs"]
        files = [_files(text) for text in _texts(list(inputs.values()))]
        described[key] = [prompt[key]["class_type"], inputs, _changed(prompt[key]), files]
        todo.extend(v[0] for v in inputs.values() if _is_link(v))
    text = json.dumps([links, described], sort_keys=True, default=str)
    made = hashlib.sha256(text.encode()).hexdigest()
    if _users.setdefault(made, stands_for) is not stands_for:
        return uuid.uuid4().hex
    return made


def _is_link(value: Any) -> bool:
    """ComfyUI's own rule."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
    )


def _changed(node: dict) -> Any:
    """What the node says about files that it reads. NaN, or an error, means that it always changes."""
    said = node.get("is_changed")  # ComfyUI has asked before it runs the graph
    kind = comfy("nodes").NODE_CLASS_MAPPINGS.get(node["class_type"])
    if said is None and (function := getattr(kind, "IS_CHANGED", None)) is not None:
        try:
            said = function(**{k: None if _is_link(v) else v for k, v in node["inputs"].items()})
        except Exception:
            said = float("nan")
    return [
        uuid.uuid4().hex if value != value else value
        for value in (said if isinstance(said, list) else [said])
    ]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value; some nodes have dictionaries and lists of file names."""
    match value:
        case str():
            yield value
        case dict():
            yield from _texts(list(value.values()))
        case list():
            for item in value:
                yield from _texts(item)


def _files(text: str) -> list[Any]:
    """Size and time of the model files with this name, in all model folders."""
    paths, found = comfy("folder_paths"), []
    for folder in paths.folder_names_and_paths if "." in text else ():
        if path := paths.get_full_path(folder, text):
            about = os.stat(path)
            found.append([folder, about.st_size, about.st_mtime_ns])
    return found
