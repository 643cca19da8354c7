"""A graph that can be run: nodes by id, and for each input a value or a link to another node's output."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # a combo whose choices have inputs of their own
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO)
_NAMED = 12  # nodes of a cycle that its error message names
_FILE_NAME = re.compile(r"(file|folder|image|path|model|audio|video)$")


class Link(NamedTuple):
    """Output `slot` of another node."""

    node: str
    slot: int


@dataclass
class Input:
    """A declared input: its type, its options (default, min, max, ...) and the choices of a combo."""

    name: str
    type: str
    required: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: list[Any] | None = None

    @classmethod
    def from_declaration(cls, name: str, declaration: Any, required: bool) -> "Input":
        """From an entry of INPUT_TYPES or of a server's /object_info."""
        type_, *rest = declaration
        options = rest[0] if rest and isinstance(rest[0], Mapping) else {}
        if isinstance(type_, list | tuple):
            return cls(name, "COMBO", required, options, list(type_))
        choices = options.get("options") if type_ in ("COMBO", DYNAMIC_COMBO) else None
        if type_ == DYNAMIC_COMBO:
            choices = [option["key"] for option in choices]
        return cls(name, str(type_), required, options, choices)

    def choice_inputs(self, value: Any) -> "list[Input]":
        """The inputs that a choice of a dynamic combo adds; their names begin with the combo's name."""
        if self.type != DYNAMIC_COMBO:
            return []
        chosen = next((o for o in self.options["options"] if o["key"] == value), {})
        declared = _declared_inputs(chosen.get("inputs") or {})
        return [replace(i, name=f"{self.name}.{i.name}") for i in declared]

    @property
    def is_widget(self) -> bool:
        """True when a value can be typed or chosen; other inputs only take a connection."""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def is_file(self) -> bool:
        """True when the command line may give a path as its value."""
        return self.type in ("COMBO", "STRING") and (
            self.choices is not None or bool(_FILE_NAME.search(self.name))
        )

    @property
    def is_upload(self) -> bool:
        """True when the file is read from the input folder, where a server accepts uploads."""
        return any(option.endswith("_upload") for option in self.options) or self.name in (
            "file",
            "image",
            "flow",
        )

    @property
    def default(self) -> Any:
        """The value that the front end fills in."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")


def _declared_inputs(input_types: Mapping[str, Any]) -> list[Input]:
    """Required inputs, then optional ones."""
    return [
        Input.from_declaration(name, declaration, group == "required")
        for group in ("required", "optional")
        for name, declaration in (input_types.get(group) or {}).items()
    ]


@dataclass
class Definition:
    """The declaration of a node class: display name, inputs in order, output types, hidden inputs.

    `node_class` is the Python class of a node that can run in this process.
    """

    class_type: str
    name: str
    inputs: dict[str, Input]
    outputs: list[str]
    is_output: bool = False
    hidden: Mapping[str, str] = field(default_factory=dict)
    node_class: type | None = None

    @classmethod
    def from_declaration(
        cls,
        class_type: str,
        name: str,
        input_types: Mapping[str, Any],
        outputs: Iterable[Any],
        is_output: bool,
    ) -> "Definition":
        """From INPUT_TYPES and RETURN_TYPES, or from a server's /object_info."""
        inputs = {declared.name: declared for declared in _declared_inputs(input_types)}
        # An output that is a list of choices connects to every input that takes a combo.
        types = ["COMBO" if isinstance(output, list) else str(output) for output in outputs]
        return cls(class_type, name, inputs, types, is_output, input_types.get("hidden") or {})


Catalog = Callable[[str], Definition | None]
"""Returns the definition of a node class, None for a class that is not known."""


@dataclass
class GraphNode:
    """One node of a graph."""

    id: str
    class_type: str
    title: str
    inputs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.title} (node {self.id})"

    @property
    def links(self) -> dict[str, Link]:
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclass
class Graph:
    """Nodes by id; `workflow` is the UI format that it was read from, for the metadata of saved files."""

    nodes: dict[str, GraphNode]
    workflow: dict | None = None

    def to_api(self) -> dict[str, Any]:
        """The API format, which /prompt takes."""
        return {
            node.id: {
                "class_type": node.class_type,
                "inputs": {name: _to_api(value) for name, value in node.inputs.items()},
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }

    def find(self, name: str) -> GraphNode:
        """The one node with this id, title or class."""
        if name in self.nodes:
            return self.nodes[name]
        for attribute in ("title", "class_type"):
            wanted = name.strip().casefold()
            matching = [n for n in self.nodes.values() if getattr(n, attribute).casefold() == wanted]
            if len(matching) == 1:
                return matching[0]
            if matching:
                ids = ", ".join(node.id for node in matching)
                raise ValueError(f"{len(matching)} nodes are called {name!r}: use one of their ids ({ids})")
        titles = ", ".join(str(node) for node in self.nodes.values())
        raise ValueError(f"the graph has no node {name!r}: it has {titles or 'no nodes'}")

    def order(self, goals: Iterable[str]) -> list[GraphNode]:
        """All nodes that the goals need, each after the nodes that it reads from."""
        sorter = TopologicalSorter(self._dependencies(goals))
        try:
            sorter.prepare()
        except CycleError as error:
            members = error.args[1]
            cycle = " > ".join(str(self.nodes[node]) for node in members[:_NAMED])
            cycle += " > ..." if len(members) > _NAMED else ""
            raise ValueError(f"the graph has a cycle: {cycle}; remove one of these connections") from error
        order, ready = [], []
        while sorter.is_active():
            # The node that became ready last is next, so that its inputs can be released early.
            ready.extend(reversed(sorter.get_ready()))
            node = ready.pop()
            order.append(self.nodes[node])
            sorter.done(node)
        return order

    def _dependencies(self, goals: Iterable[str]) -> dict[str, list[str]]:
        """The nodes that each needed node reads from."""
        dependencies: dict[str, list[str]] = {}
        waiting = list(goals)[::-1]
        while waiting:
            node = self.nodes[waiting.pop()]
            if node.id in dependencies:
                continue
            for name, link in node.links.items():
                if link.node not in self.nodes:
                    raise ValueError(
                        f"{node}: its input {name} comes from node {link.node}, which is missing"
                    )
            dependencies[node.id] = [link.node for link in node.links.values()]
            waiting.extend(reversed(dependencies[node.id]))
        return dependencies


def _to_api(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value


def types_match(a: str, b: str) -> bool:
    """True when two types may be connected; a type may list several, separated by commas."""
    if "*" in (a, b) or "" in (a, b):
        return True
    return bool(set(_type_names(a)) & set(_type_names(b)))


def _type_names(types: str) -> Iterator[str]:
    return (name.strip().upper() for name in types.split(","))
