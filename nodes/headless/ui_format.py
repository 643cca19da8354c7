"""The front end's UI format (0.4 and 1.0) as a graph that can be run, as the front end does when it queues.

Subgraphs are expanded (node 52 in instance 55 becomes 55:52). Muted nodes are left out, and connections
from them. A bypassed node passes on an input of the same type. Reroutes are followed. The value of a
primitive is written into the inputs that it is connected to.

The widget values of a node are a bare list. The order of the declared inputs tells which value belongs to
which input, with one more value after every seed ("fixed", "randomize", ...) and after an upload.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .graph import Catalog, Definition, Graph, GraphNode, Input, Link, types_match

VIRTUAL = ("Reroute", "PrimitiveNode", "Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4
INPUTS, OUTPUTS = -10, -20  # the ids of a subgraph's own inputs and outputs in its links

_SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize", True, False)  # the oldest files: a switch
_UPLOAD_BUTTONS = ("image", "video", "audio")
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")


class _Wire(NamedTuple):
    origin: Any
    origin_slot: int
    target: Any
    target_slot: int


class _Constant(NamedTuple):
    """A value that arrives at an input instead of a link: from a primitive or from a subgraph's widget."""

    value: Any


class _Input(NamedTuple):
    """Input `slot` of a node in `scope`."""

    scope: "_Scope"
    raw: dict[str, Any]
    slot: int


class _Output(NamedTuple):
    """Output `slot` of a node in `scope`; the node is None where the file lacks it."""

    scope: "_Scope"
    raw: dict[str, Any] | None
    slot: int


@dataclass
class _Scope:
    """The nodes and links of the graph itself, or of one instance of a subgraph."""

    raw: dict[str, Any]
    path: str = ""
    parent: "_Scope | None" = None
    instance: dict[str, Any] | None = None
    inside: tuple[str, ...] = ()  # the subgraphs that enclose it
    nodes: dict[str, dict] = field(init=False)
    wires: dict[Any, _Wire] = field(init=False)

    def __post_init__(self):
        self.nodes = {str(node["id"]): node for node in self.raw["nodes"]}
        if not all(isinstance(node["type"], str) for node in self.nodes.values()):
            raise TypeError("the type of a node is not a text")
        self.wires = dict(_wire(link) for link in self.raw.get("links") or ())

    def id(self, node: dict) -> str:
        return f"{self.path}{node['id']}"

    @cached_property
    def outputs(self) -> dict[int, _Wire]:
        """The wires that lead to the subgraph's own outputs, by slot."""
        return {w.target_slot: w for w in reversed(self.wires.values()) if w.target == OUTPUTS}

    @cached_property
    def instance_inputs(self) -> dict[str, int]:
        """The slots of the instance's inputs, by name."""
        ends = enumerate((self.instance or {}).get("inputs") or ())
        return {end["name"]: slot for slot, end in reversed(list(ends))}

    @cached_property
    def promoted(self) -> dict[int, int]:
        """Slots of subgraph inputs that are widgets of the instance, and their place among its values."""
        ends = self.raw.get("inputs") or ()
        slots = [slot for slot, end in enumerate(ends) if self._is_promoted(end)]
        return {slot: place for place, slot in enumerate(slots)}

    def _is_promoted(self, end: dict) -> bool:
        for link in end.get("linkIds") or ():
            wire = self.wires.get(link)
            inner = self.nodes.get(str(wire.target)) if wire else None
            slots = (inner or {}).get("inputs") or ()
            if wire and wire.target_slot < len(slots) and "widget" in slots[wire.target_slot]:
                return True
        return False


def _wire(link: Any) -> tuple[Any, _Wire]:
    if isinstance(link, dict):
        ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
        return link["id"], _Wire(*ends)
    return link[0], _Wire(*link[1:5])


def convert(data: dict[str, Any], catalog: Catalog) -> Graph:
    """UI-format JSON as a graph of nodes that can be run."""
    converter = _Converter(catalog)
    try:
        return converter.graph(data)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"a node or link of this graph is broken{converter.place}: save it again in ComfyUI"
        ) from error


class _Converter:
    def __init__(self, catalog: Catalog):
        self.catalog, self.place = catalog, ""
        self.scopes: dict[str, _Scope] = {}  # of subgraph instances, by their id

    def graph(self, data: dict[str, Any]) -> Graph:
        self.data = data
        self.subgraphs = {s["id"]: s for s in (data.get("definitions") or {}).get("subgraphs") or ()}
        nodes = {}
        for scope, raw in list(self._active_nodes()):
            id_ = scope.id(raw)
            self.place = f" (at node {str(id_)[:20]})"
            nodes[id_] = GraphNode(id_, raw["type"], self._title(raw), self._inputs(scope, raw))
        return Graph(nodes, self.data)

    def _active_nodes(self) -> Iterator[tuple[_Scope, dict]]:
        """All nodes that run, each with its scope; the nodes of a subgraph in the place of its instance."""
        top = _Scope(self.data)
        stack = [(top, iter(top.raw["nodes"]))]
        while stack:
            scope, remaining = stack[-1]
            raw = next(remaining, None)
            if raw is None:
                stack.pop()
                continue
            class_type, active = raw["type"], raw.get("mode", 0) not in (MUTED, BYPASSED)
            if class_type in self.subgraphs:
                inner = self._enter(scope, raw, class_type)
                if active:
                    stack.append((inner, iter(inner.raw["nodes"])))
            elif class_type.startswith(("workflow>", "workflow/")):
                raise ValueError(
                    f"{self._title(raw)} (node {scope.id(raw)}) is a group node of an old front end: "
                    "convert it to a subgraph in ComfyUI and save again"
                )
            elif active and class_type not in VIRTUAL:
                yield scope, raw

    def _enter(self, scope: _Scope, raw: dict, class_type: str) -> _Scope:
        """The scope of a subgraph instance."""
        if class_type in scope.inside:
            raise ValueError(f"the subgraph {self._title(raw)} contains itself")
        inside = (*scope.inside, class_type)
        inner = _Scope(self.subgraphs[class_type], scope.id(raw) + ":", scope, raw, inside)
        self.scopes[scope.id(raw)] = inner
        return inner

    def _title(self, raw: dict) -> str:
        if raw.get("title"):
            return str(raw["title"])
        if raw["type"] in self.subgraphs:
            return self.subgraphs[raw["type"]].get("name", "Subgraph")
        definition = self.catalog(raw["type"])
        return definition.name if definition else raw["type"]

    # -- inputs

    def _inputs(self, scope: _Scope, raw: dict) -> dict[str, Any]:
        inputs = widget_values(raw, self.catalog(raw["type"]))
        for slot, end in enumerate(raw.get("inputs") or ()):
            source = self._source(_Input(scope, raw, slot), end.get("type", "*"))
            if source is not None:
                inputs[end["name"]] = source.value if isinstance(source, _Constant) else source
        return inputs

    def _source(self, at: _Input, wanted: str) -> Link | _Constant | None:
        """The link or constant that arrives at an input: from end to end until a node that runs."""
        visited: set[tuple[str, int]] = set()
        place: Any = at
        while isinstance(place, _Input | _Output):
            if isinstance(place, _Output):
                place = self._behind_output(place, wanted)
                continue
            key = (place.scope.id(place.raw), place.slot)
            if key in visited:
                raise ValueError(f"the graph has a cycle through {self._title(place.raw)} (node {key[0]})")
            visited.add(key)
            place = self._behind_input(place)
        return place

    def _behind_input(self, place: _Input) -> _Input | _Output | _Constant | None:
        """The other end of the connection to an input."""
        ends = place.raw.get("inputs") or ()
        if place.slot >= len(ends):
            return None
        wire = place.scope.wires.get(ends[place.slot].get("link"))
        if wire is None:
            return None
        if wire.origin == INPUTS:
            return self._behind_subgraph_input(place.scope, wire.origin_slot)
        return _Output(place.scope, place.scope.nodes.get(str(wire.origin)), wire.origin_slot)

    def _behind_subgraph_input(self, scope: _Scope, slot: int) -> _Input | _Constant | None:
        """The input of the subgraph's instance where it is connected, otherwise the value of its widget."""
        ends = scope.raw.get("inputs") or ()
        if slot >= len(ends):
            return None
        name = ends[slot]["name"]
        outer = scope.instance_inputs.get(name)
        if outer is not None and scope.instance["inputs"][outer].get("link") is not None:
            return _Input(scope.parent, scope.instance, outer)
        values = scope.instance.get("widgets_values")
        if slot not in scope.promoted:
            return None
        if isinstance(values, dict):
            return _Constant(values[name]) if name in values else None
        place = scope.promoted[slot]
        return _Constant(values[place]) if values and place < len(values) else None

    def _behind_output(self, place: _Output, wanted: str) -> _Input | _Output | _Constant | Link | None:
        """What an output gives: a link for a node that runs; other nodes pass something on."""
        scope, raw, slot = place
        if raw is None or (raw.get("mode", 0) == MUTED and raw["type"] not in VIRTUAL):
            return None
        if raw["type"] == "PrimitiveNode":
            values = raw.get("widgets_values")
            return _Constant(values[0]) if values else None
        if raw["type"] == "Reroute":
            return _Input(scope, raw, 0)
        if raw.get("mode", 0) == BYPASSED:
            through = _bypass(raw, slot, wanted)
            return None if through is None else _Input(scope, raw, through)
        if raw["type"] in self.subgraphs:
            inner = self.scopes[scope.id(raw)]
            wire = inner.outputs.get(slot)
            if wire is None:
                return None
            if wire.origin == INPUTS:
                return self._behind_subgraph_input(inner, wire.origin_slot)
            return _Output(inner, inner.nodes.get(str(wire.origin)), wire.origin_slot)
        return Link(scope.id(raw), slot)


def _bypass(raw: dict, slot: int, wanted: str) -> int | None:
    """The input that a bypassed node passes on: the one beside the output, else the first of the type."""
    types = [str(end.get("type", "*")) for end in raw.get("inputs") or ()]
    outputs = raw.get("outputs") or ()
    if not types or slot >= len(outputs):
        return None
    if wanted in ("*", ""):
        return slot if slot < len(types) else 0
    output = str(outputs[slot].get("type", "*"))
    fitting = [
        i for i, type_ in enumerate(types) if types_match(type_, output) and types_match(type_, wanted)
    ]
    if slot in fitting:
        return slot
    return next((i for i, type_ in enumerate(types) if type_ == wanted), fitting[0] if fitting else None)


# -- widget values ---------------------------------------------------------------------------------


class _StoredValues:
    """The widget values of a file, one after the other."""

    def __init__(self, values: Sequence[Any]):
        self._values, self._position = values, 0

    def next(self, default: Any) -> Any:
        if self._position >= len(self._values):
            return default
        self._position += 1
        return self._values[self._position - 1]

    def skip(self, extra: tuple[str | bool, ...]) -> None:
        """Skip the value that newer front ends store after some widgets."""
        value = self._values[self._position] if self._position < len(self._values) else None
        if isinstance(value, str | bool) and value in extra:
            self._position += 1


def widget_values(raw: dict, definition: Definition | None) -> dict[str, Any]:
    """A node's own values by input name; a value that the file lacks is the default."""
    stored = raw.get("widgets_values") or ()
    if definition is None:  # newer files have the names of the widgets
        names = [end["widget"]["name"] for end in raw.get("inputs") or () if end.get("widget")]
        return stored if isinstance(stored, dict) else dict(zip(names, stored, strict=False))
    by_name = stored if isinstance(stored, dict) else {}
    values = _StoredValues(() if by_name else stored)
    inputs: dict[str, Any] = {}
    for required in (True, False):
        group = [declared for declared in definition.inputs.values() if declared.required is required]
        for declared in group:
            _take(declared, by_name, values, inputs)
        if any(declared.options.get(name) for declared in group for name in _UPLOADS):
            values.skip(_UPLOAD_BUTTONS)
    return inputs


def _take(declared: Input, by_name: dict[str, Any], values: _StoredValues, inputs: dict[str, Any]) -> None:
    """Write the value of an input, and of the inputs that its choice adds, into `inputs`."""
    if not declared.is_widget or declared.options.get("hidden"):
        return
    name = declared.name
    inputs[name] = by_name[name] if name in by_name else values.next(declared.default)
    is_seed = declared.type == "INT" and name in ("seed", "noise_seed")
    if declared.options.get("control_after_generate", is_seed):
        values.skip(_SEED_CONTROLS)
    for added in declared.choice_inputs(inputs[name]):
        _take(added, by_name, values, inputs)
