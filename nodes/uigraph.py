"""The front end's UI format (0.4 and 1.0) turned into a graph to run, as the front end does when it queues.

Subgraphs are unfolded (node 52 in instance 55 becomes 55:52), muted nodes and what hangs on them left
out, bypassed nodes passed through by type, reroutes followed, primitives' values put where they are
connected. A node's widget values are stored as a bare list: which value is whose follows from the order
of its inputs, with one extra value after every seed ("fixed", "randomize", ...) and after an upload.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .graph import Catalog, Definition, Graph, Input, Link, Node

NOTES = ("Note", "MarkdownNote")
VIRTUAL = ("Reroute", "PrimitiveNode", *NOTES)
MUTED, BYPASSED = 2, 4
INPUTS, OUTPUTS = -10, -20  # a subgraph's own ends, as its links name them

_CONTROLS = ("fixed", "increment", "decrement", "randomize", True, False)  # the oldest files: a switch
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")


class _Wire(NamedTuple):
    origin: Any
    origin_slot: int
    target: Any
    target_slot: int


class _Value(NamedTuple):
    """A constant that arrives where a link would: a primitive's, or one promoted to a subgraph's face."""

    value: Any


@dataclass
class _Level:
    """The graph itself, or one instance of a subgraph: raw nodes and wires, and who encloses it."""

    raw: dict[str, Any]
    path: str = ""
    parent: "_Level | None" = None
    instance: dict[str, Any] | None = None
    nodes: dict[str, dict] = field(init=False)
    wires: dict[Any, _Wire] = field(init=False)

    def __post_init__(self):
        self.nodes = {str(node["id"]): node for node in self.raw["nodes"]}
        self.wires = dict(_wire(link) for link in self.raw.get("links") or ())

    def id(self, node: dict) -> str:
        return f"{self.path}{node['id']}"


def _wire(link: Any) -> tuple[Any, _Wire]:
    if isinstance(link, dict):
        ends = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
        return link["id"], _Wire(*ends)
    return link[0], _Wire(*link[1:5])


def convert(data: dict[str, Any], catalog: Catalog) -> Graph:
    """UI-format JSON as a graph of nodes that run."""
    try:
        return _Reader(data, catalog).graph()
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"a node or link of this graph is broken ({error!r}): save it again in ComfyUI"
        ) from error


class _Reader:
    def __init__(self, data: dict[str, Any], catalog: Catalog):
        self.data, self.catalog = data, catalog
        self.subgraphs = {s["id"]: s for s in (data.get("definitions") or {}).get("subgraphs") or ()}
        self.levels: dict[str, _Level] = {}  # of the instances, by their id

    def graph(self) -> Graph:
        nodes: dict[str, Node] = {}
        for level, raw in list(self._walk(_Level(self.data), ())):
            nodes[level.id(raw)] = Node(level.id(raw), raw["type"], self._title(raw), {})
            nodes[level.id(raw)].inputs = self._inputs(level, raw)
        return Graph(nodes, self.data)

    def _walk(self, level: _Level, inside: tuple[str, ...]) -> Iterator[tuple[_Level, dict]]:
        """All nodes that run, with the level that each is on."""
        for raw in level.raw["nodes"]:
            kind, live = str(raw.get("type")), raw.get("mode", 0) not in (MUTED, BYPASSED)
            if kind in self.subgraphs:
                if kind in inside:
                    raise ValueError(f"the subgraph {self._title(raw)} contains itself")
                inner = _Level(self.subgraphs[kind], level.id(raw) + ":", level, raw)
                self.levels[level.id(raw)] = inner
                if live:
                    yield from self._walk(inner, (*inside, kind))
            elif kind.startswith(("workflow>", "workflow/")):
                raise ValueError(
                    f"{self._title(raw)} (node {level.id(raw)}) is a group node of an old front end: "
                    "convert it to a subgraph in ComfyUI and save again"
                )
            elif live and kind not in VIRTUAL:
                yield level, raw

    def _title(self, raw: dict) -> str:
        if raw.get("title"):
            return raw["title"]
        if raw["type"] in self.subgraphs:
            return self.subgraphs[raw["type"]].get("name", "Subgraph")
        known = self.catalog(raw["type"])
        return known.name if known else raw["type"]

    # -- inputs

    def _inputs(self, level: _Level, raw: dict) -> dict[str, Any]:
        known = self.catalog(raw["type"])
        inputs = widget_values(raw, known)
        for slot, end in enumerate(raw.get("inputs") or ()):
            name = end["name"]
            found = self._into(level, raw, slot, end.get("type", "*"), set())
            if isinstance(found, _Value):
                inputs[name] = found.value
            elif found is not None:
                inputs[name] = found
        return inputs

    def _into(
        self, level: _Level, raw: dict, slot: int, wanted: str, seen: set[tuple[str, str, int]]
    ) -> Link | _Value | None:
        """What arrives at an input slot."""
        ends = raw.get("inputs") or ()
        if slot >= len(ends) or (wire := level.wires.get(ends[slot].get("link"))) is None:
            return None
        step = (level.id(raw), "in", slot)
        if step in seen:
            raise ValueError(f"the graph runs in a circle through {self._title(raw)} (node {level.id(raw)})")
        seen.add(step)
        if wire.origin == INPUTS:
            return self._from_outside(level, wire.origin_slot, wanted, seen)
        return self._out_of(level, level.nodes.get(str(wire.origin)), wire.origin_slot, wanted, seen)

    def _from_outside(self, level: _Level, slot: int, wanted: str, seen: set) -> Link | _Value | None:
        """What arrives at an input of the subgraph's instance: a link, or the value of its widget."""
        ends = level.raw.get("inputs") or ()
        if slot >= len(ends):
            return None
        name = ends[slot]["name"]
        outer = level.instance.get("inputs") or ()
        at = next((i for i, end in enumerate(outer) if end["name"] == name), None)
        if at is not None and outer[at].get("link") is not None:
            return self._into(level.parent, level.instance, at, wanted, seen)
        promoted = [i for i, end in enumerate(ends) if self._is_promoted(level, end)]
        values = level.instance.get("widgets_values")
        if slot not in promoted:
            return None
        if isinstance(values, dict):
            return _Value(values[name]) if name in values else None
        index = promoted.index(slot)
        return _Value(values[index]) if values and index < len(values) else None

    @staticmethod
    def _is_promoted(level: _Level, end: dict) -> bool:
        """True when a subgraph's input leads to a widget inside, which then shows on its face."""
        for link in end.get("linkIds") or ():
            wire = level.wires.get(link)
            inner = level.nodes.get(str(wire.target)) if wire else None
            slots = (inner or {}).get("inputs") or ()
            if wire and wire.target_slot < len(slots) and "widget" in slots[wire.target_slot]:
                return True
        return False

    def _out_of(
        self, level: _Level, raw: dict | None, slot: int, wanted: str, seen: set
    ) -> Link | _Value | None:
        """What an output slot gives: of a node that runs itself, of others what they pass on."""
        if raw is None or (raw.get("mode", 0) == MUTED and raw["type"] not in VIRTUAL):
            return None
        if raw["type"] == "PrimitiveNode":
            values = raw.get("widgets_values")
            return _Value(values[0]) if values else None
        if raw["type"] == "Reroute":
            return self._into(level, raw, 0, wanted, seen)
        if raw.get("mode", 0) == BYPASSED:
            through = _bypass(raw, slot, wanted)
            return None if through is None else self._into(level, raw, through, wanted, seen)
        if raw["type"] in self.subgraphs:
            inner = self.levels[level.id(raw)]
            end = next(
                (w for w in inner.wires.values() if w.target == OUTPUTS and w.target_slot == slot), None
            )
            if end is None:
                return None
            if end.origin == INPUTS:
                return self._from_outside(inner, end.origin_slot, wanted, seen)
            return self._out_of(inner, inner.nodes.get(str(end.origin)), end.origin_slot, wanted, seen)
        return Link(level.id(raw), slot)


def _bypass(raw: dict, slot: int, wanted: str) -> int | None:
    """The input that a bypassed node hands on: the one across, else the first of the type."""
    kinds = [str(end.get("type", "*")) for end in raw.get("inputs") or ()]
    outputs = raw.get("outputs") or ()
    if not kinds or slot >= len(outputs):
        return None
    if wanted in ("*", ""):
        return slot if slot < len(kinds) else 0
    gives = str(outputs[slot].get("type", "*"))
    fits = [i for i, kind in enumerate(kinds) if matches(kind, gives) and matches(kind, wanted)]
    if slot in fits:
        return slot
    return next((i for i, kind in enumerate(kinds) if kind == wanted), fits[0] if fits else None)


def matches(a: str, b: str) -> bool:
    """True when two types may be connected; a type may be several, with commas."""
    if "*" in (a, b) or "" in (a, b):
        return True
    return bool(
        {part.strip().upper() for part in a.split(",")} & {part.strip().upper() for part in b.split(",")}
    )


# -- widget values ---------------------------------------------------------------------------------


def widget_values(raw: dict, known: Definition | None) -> dict[str, Any]:
    """The node's own values by input name; what the file does not have is the default."""
    values = raw.get("widgets_values")
    ends = [end["widget"]["name"] for end in raw.get("inputs") or () if end.get("widget")]
    if known is None:  # an unknown node still tells the names of its widgets, in newer files
        return values if isinstance(values, dict) else dict(zip(ends, values or (), strict=False))
    row = list(_row(known))
    inputs = {given.name: given.default for given, extra in row if not extra}
    if isinstance(values, dict):
        return inputs | {name: value for name, value in values.items() if name in inputs}
    at = 0
    for given, extra in row:
        if at >= len(values or ()):
            break
        if extra and not (isinstance(values[at], str | bool) and values[at] in extra):
            continue
        if not extra:
            inputs[given.name] = values[at]
        at += 1
    return inputs


def _row(known: Definition) -> Iterator[tuple[Input, tuple[str | bool, ...]]]:
    """The widgets in the order in which values are stored; extras come with the values they may have."""
    required = [given for given in known.inputs.values() if given.required]
    optional = [given for given in known.inputs.values() if not given.required]
    for part in (required, optional):
        for given in part:
            if not given.is_widget:
                continue
            yield given, ()
            seed = given.type == "INT" and given.name in ("seed", "noise_seed")
            if given.options.get("control_after_generate", seed):
                yield given, _CONTROLS
        uploads = [given for given in part if any(given.options.get(word) for word in _UPLOADS)]
        if uploads:
            yield uploads[0], ("image", "video", "audio")
