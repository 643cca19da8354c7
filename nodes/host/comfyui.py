"""Access to ComfyUI's modules, and the test whether this process is a ComfyUI."""

import importlib
import logging
import sys
from types import ModuleType

log = logging.getLogger("reelbrush")


def inside_comfyui() -> bool:
    """True when this process is a ComfyUI: it imports `folder_paths` before it loads any pack."""
    return "folder_paths" in sys.modules


def server_running() -> bool:
    """True in a ComfyUI that was started, and not where a test or a script imports ComfyUI's modules."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return inside_comfyui() and getattr(server, "instance", None) is not None


def comfy(name: str, what: str = "this node") -> ModuleType:
    """A module of ComfyUI; without ComfyUI an error message that names the alternative."""
    if not inside_comfyui():
        raise RuntimeError(
            f"{what} needs ComfyUI: load the workflow in ComfyUI, or start a ComfyUI and send the graph "
            "to it with `reelbrush render GRAPH.json --server http://127.0.0.1:8188`"
        )
    return importlib.import_module(name)
