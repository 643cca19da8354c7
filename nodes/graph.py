"""A saved graph as one thing to run: nodes by id, each input a value or a link.

API-format JSON is that already; the front end's UI format is turned into it by `uigraph`. What a node's
inputs and outputs are comes from a catalog: the pack's own classes and the stand-ins, or a server's
/object_info.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_FILES = re.compile(r"(file|folder|image|path|model|audio|video)$")


class Link(NamedTuple):
    """Output `slot` of another node."""

    node: str
    slot: int


@dataclass
class Input:
    """What an input takes: a type, or the choices of a combo, and its options (default, min, max, ...)."""

    name: str
    type: str
    required: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: list[Any] | None = None

    @classmethod
    def of(cls, name: str, spec: Any, required: bool) -> "Input":
        kind, options = spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        if isinstance(kind, list | tuple):
            return cls(name, "COMBO", required, options, list(kind))
        return cls(name, str(kind), required, options, options.get("options") if kind == "COMBO" else None)

    @property
    def is_widget(self) -> bool:
        """True when a person types or picks it; other inputs are only connected."""
        return self.type in WIDGETS and not self.options.get("forceInput")

    @property
    def is_file(self) -> bool:
        """True when a path on the command line may stand for it."""
        return self.type in ("COMBO", "STRING") and (
            self.choices is not None or bool(_FILES.search(self.name))
        )

    @property
    def is_upload(self) -> bool:
        """True when the file comes from the input folder, into which a server takes uploads."""
        return any(word.endswith("_upload") for word in self.options) or self.name in (
            "file",
            "image",
            "flow",
        )

    @property
    def default(self) -> Any:
        """What the front end puts there."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")


@dataclass
class Definition:
    """A kind of node: its name for people, its inputs in order, the types of its outputs."""

    kind: str
    name: str
    inputs: dict[str, Input]
    outputs: list[str]
    is_output: bool = False

    @classmethod
    def of(cls, kind: str, name: str, types: Mapping[str, Any], outputs: Iterable[Any], is_output: bool):
        inputs = {
            key: Input.of(key, spec, part == "required")
            for part in ("required", "optional")
            for key, spec in (types.get(part) or {}).items()
        }
        # An output that offers choices (a combo) connects to anything that takes them.
        return cls(
            kind, name, inputs, ["COMBO" if isinstance(o, list) else str(o) for o in outputs], is_output
        )


Catalog = Callable[[str], Definition | None]


@dataclass
class Node:
    """One node of a graph that will run."""

    id: str
    kind: str
    title: str
    inputs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.title} (node {self.id})"

    @property
    def links(self) -> dict[str, Link]:
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclass
class Graph:
    """Nodes by id; `workflow` is the UI format that it came from, for the metadata of what is saved."""

    nodes: dict[str, Node]
    workflow: dict | None = None

    def to_api(self) -> dict[str, Any]:
        """The format that /prompt takes."""
        return {
            node.id: {
                "class_type": node.kind,
                "inputs": {name: _to_api(value) for name, value in node.inputs.items()},
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }

    def find(self, name: str) -> Node:
        """The one node with this id, title or kind."""
        if name in self.nodes:
            return self.nodes[name]
        for text in (lambda n: n.title, lambda n: n.kind):
            found = [node for node in self.nodes.values() if text(node).casefold() == name.strip().casefold()]
            if len(found) == 1:
                return found[0]
            if found:
                ids = ", ".join(node.id for node in found)
                raise ValueError(f"{len(found)} nodes are called {name!r}: name one by its id ({ids})")
        titles = ", ".join(str(node) for node in self.nodes.values())
        raise ValueError(f"the graph has no node {name!r}: it has {titles or 'no nodes'}")

    def order(self, goals: Iterable[str]) -> list[Node]:
        """Everything that the goals need, each node after its inputs; a cycle is one sentence."""
        done: dict[str, Node] = {}
        for goal in goals:
            path: list[tuple[str, Iterator[Link]]] = [(goal, iter(self._needs(goal)))]
            while path:
                here, links = path[-1]
                link = next((link for link in links if link.node not in done), None)
                if link is None:
                    done[here] = self.nodes[here]
                    path.pop()
                elif any(link.node == passed for passed, _ in path):
                    start = [passed for passed, _ in path].index(link.node)
                    ring = " > ".join(str(self.nodes[passed]) for passed, _ in reversed(path[start:]))
                    raise ValueError(f"the graph runs in a circle: {ring}; remove one of these connections")
                else:
                    path.append((link.node, iter(self._needs(link.node))))
        return list(done.values())

    def _needs(self, node_id: str) -> list[Link]:
        node = self.nodes[node_id]
        for name, link in node.links.items():
            if link.node not in self.nodes:
                raise ValueError(f"{node}: its input {name} comes from node {link.node}, which is not there")
        return list(node.links.values())


def _to_api(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value


# -- changing inputs from the command line ---------------------------------------------------------


@dataclass
class Setting:
    """One `--set node.input=value`, found in a graph."""

    node: Node
    input: Input
    path: Path | None = None  # the file or folder that the value is, on this machine


def apply_settings(graph: Graph, settings: Iterable[str], catalog: Catalog) -> list[Setting]:
    """Put the values of `--set` into the graph; paths that exist become absolute."""
    return [_apply(graph, text, catalog) for text in settings]


def _apply(graph: Graph, text: str, catalog: Catalog) -> Setting:
    target, equals, value = text.partition("=")
    name, dot, key = target.rpartition(".")
    if not (equals and dot and name and key):
        raise ValueError(f"--set {text!r} is not of the form node.input=value")
    node = graph.find(name)
    known = catalog(node.kind)
    given = known.inputs.get(key.strip()) if known else None
    if given is None:
        has = ", ".join(known.inputs) if known else "unknown, because the node is"
        raise ValueError(f"{node} has no input {key!r}: its inputs are {has}")
    if not given.is_widget:
        raise ValueError(f"{node}: {given.name} takes a connection of type {given.type}, not a value")
    setting = Setting(node, given)
    if given.is_file and value and value not in (given.choices or ()):
        path = Path(value).expanduser()
        if path.exists():
            setting.path = path.resolve()
            value = str(setting.path)
    node.inputs[given.name] = _typed(node, given, value)
    return setting


def _typed(node: Node, given: Input, text: str) -> Any:
    """The text of the command line as the input's type."""
    if given.type == "BOOLEAN":
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError(f"{node}: {given.name} is true or false, not {text!r}")
    if given.type in ("INT", "FLOAT"):
        try:
            return int(text) if given.type == "INT" else float(text)
        except ValueError:
            kind = "a whole number" if given.type == "INT" else "a number"
            raise ValueError(f"{node}: {given.name} is {kind}, not {text!r}") from None
    return next((choice for choice in given.choices or () if str(choice) == text), text)
