"""`--out FILE`: the save node whose result goes to that file."""

import os
import shutil
from pathlib import Path

from ..common.files import file_error, replacing
from .graph import Catalog, GraphNode

_SAVERS = (("SaveVideo", "ReelBrushSaveVideo"), ("SaveImage",))  # clips before pictures


def redirect(order: list[GraphNode], out: Path, catalog: Catalog) -> GraphNode:
    """The save node for `out`; its format is set by the suffix of the name."""
    saver = save_node(order)
    suffix = out.suffix.lower().lstrip(".")
    if saver.class_type == "SaveImage":
        if suffix != "png":
            raise ValueError(f"--out {out.name}: {saver} writes PNG pictures, so the name must end in .png")
        return saver
    declared = catalog(saver.class_type).inputs.get("format")
    if declared is None:
        return saver
    formats = declared.choices or []
    if suffix not in formats:
        suffixes = ", ".join(f".{choice}" for choice in formats if " " not in choice and choice != "auto")
        raise ValueError(f"--out {out.name}: {saver} writes {suffixes}")
    current = saver.inputs.get("format")
    if current != suffix and (current, suffix) != ("auto", "mp4"):
        others = {key: value for key, value in saver.inputs.items() if not key.startswith("format.")}
        added = declared.choice_inputs(suffix)  # in ComfyUI 0.33 the codec belongs to the format
        codecs = {i.name: i.default for i in added} if added else {"codec": "auto"}
        saver.inputs = others | {"format": suffix} | codecs
    return saver


def save_node(order: list[GraphNode]) -> GraphNode:
    """The one node of a graph that saves a clip, otherwise the one that saves pictures."""
    for class_types in _SAVERS:
        savers = [node for node in order if node.class_type in class_types]
        if len(savers) > 1:
            names = ", ".join(str(node) for node in savers)
            raise ValueError(f"--out names one file, but the graph saves with {names}: mute all but one")
        if savers:
            return savers[0]
    raise ValueError("--out needs a Save Video or Save Image node in the graph")


def targets(out: Path, count: int) -> list[Path]:
    """The files for `count` results: `out` itself, or numbered names for several pictures."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}_{i:05}") for i in range(1, count + 1)]


def deliver(files: list[Path], out: Path) -> list[Path]:
    """Move what the save node wrote to `out`, which may be on another disk. An error leaves it there."""
    delivered = targets(out, len(files))
    for file, target in zip(files, delivered, strict=True):
        try:
            with replacing(target) as temporary:
                try:
                    os.link(file, temporary)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(file, temporary)
        except OSError as error:
            raise ValueError(f"{file} is saved, but not moved: {file_error(error)}") from error
        file.unlink()
    return delivered
