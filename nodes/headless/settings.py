"""`--set NODE.INPUT=VALUE`: inputs that the command line changes."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graph import Catalog, Graph, GraphNode, Input


@dataclass
class Setting:
    """One changed input; `path` is the file or folder on this machine that its value names."""

    node: GraphNode
    input: Input
    path: Path | None = None


def apply_settings(graph: Graph, settings: Iterable[str], catalog: Catalog) -> list[Setting]:
    """Write the values of `--set` into the graph; a path that exists becomes absolute."""
    return [_apply(graph, text, catalog) for text in settings]


def _apply(graph: Graph, text: str, catalog: Catalog) -> Setting:
    target, equals, value = text.partition("=")
    name, dot, key = target.rpartition(".")
    if not (equals and dot and name and key):
        raise ValueError(f"--set {text!r} does not have the form node.input=value")
    node = graph.find(name)
    definition = catalog(node.class_type)
    if definition is None:
        raise ValueError(f"{node} has no known inputs: this node is not installed")
    declared = definition.inputs.get(key.strip())
    if declared is None:
        raise ValueError(f"{node} has no input {key!r}: its inputs are {', '.join(definition.inputs)}")
    if not declared.is_widget:
        raise ValueError(f"{node}: {declared.name} takes a connection of type {declared.type}, not a value")
    setting = Setting(node, declared)
    if declared.is_file and value and value not in (declared.choices or ()):
        with suppress(RuntimeError, OSError, ValueError):  # ~nobody, too long a name
            path = Path(value).expanduser()
            if path.exists():
                setting.path = path.resolve()
                value = str(setting.path)
    node.inputs[declared.name] = _convert(node, declared, value)
    return setting


def _convert(node: GraphNode, declared: Input, text: str) -> Any:
    """The text from the command line in the input's type."""
    if declared.type == "BOOLEAN":
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError(f"{node}: {declared.name} is true or false, not {text!r}")
    if declared.type in ("INT", "FLOAT"):
        try:
            return int(text) if declared.type == "INT" else float(text)
        except ValueError:
            number = "a whole number" if declared.type == "INT" else "a number"
            raise ValueError(f"{node}: {declared.name} is {number}, not {text!r}") from None
    return next((choice for choice in declared.choices or () if str(choice) == text), text)
