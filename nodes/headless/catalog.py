"""The nodes that run without ComfyUI, and their definitions."""

from functools import cache

from .. import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .core_nodes import CORE_NODES
from .graph import Catalog, Definition


def node_classes() -> dict[str, tuple[type, str]]:
    """Class and display name of the pack's nodes and of the core nodes that run here."""
    own = {
        class_type: (cls, NODE_DISPLAY_NAME_MAPPINGS[class_type])
        for class_type, cls in NODE_CLASS_MAPPINGS.items()
    }
    return CORE_NODES | own


def local_catalog() -> Catalog:
    """A catalog for one run: INPUT_TYPES, which may list files on disk, is called once per node class."""
    classes = node_classes()

    @cache
    def define(class_type: str) -> Definition | None:
        if class_type not in classes:
            return None
        cls, name = classes[class_type]
        is_output = getattr(cls, "OUTPUT_NODE", False)
        definition = Definition.from_declaration(
            class_type, name, cls.INPUT_TYPES(), cls.RETURN_TYPES, is_output
        )
        definition.node_class = cls
        return definition

    return define
