"""ReelBrush: video stylization nodes for ComfyUI, whose graphs also run from a terminal.

ComfyUI asks this module for the node mappings. They are imported only then, so that importing the
package (or collecting its tests) loads nothing.
"""

from typing import Any

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"

_MAPPINGS = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")


def __getattr__(name: str) -> Any:
    if name not in _MAPPINGS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import nodes
        from .nodes import sample

        sample.install()
    except AttributeError as error:
        # ComfyUI takes an AttributeError as "this pack has no mappings" and hides the cause.
        raise ImportError(f"ReelBrush could not be imported: {error}") from error
    return getattr(nodes, name)
