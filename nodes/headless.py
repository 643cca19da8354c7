"""Runs a saved graph without ComfyUI: the pack's nodes and stand-ins for the core nodes of video graphs."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import host
from .graph import Definition, Graph, Input, Link, Node, Setting, apply_settings
from .graphfile import read
from .sample import files as sample
from .uigraph import matches

log = logging.getLogger("reelbrush")

SAVERS = ("SaveVideo", "ReelBrushSaveVideo", "SaveImage")  # what --out speaks to, the first kind found


@cache
def classes() -> dict[str, tuple[type, str]]:
    """Every node that runs here, with its name: the pack's and the stand-ins."""
    from . import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .standins import STANDINS

    own = {
        kind: (cls, NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind)) for kind, cls in NODE_CLASS_MAPPINGS.items()
    }
    return STANDINS | own


def definition(kind: str) -> Definition | None:
    """What a node takes and gives; None for a node that does not run here."""
    if kind not in classes():
        return None
    cls, name = classes()[kind]
    is_output = getattr(cls, "OUTPUT_NODE", False)
    return Definition.of(kind, name, cls.INPUT_TYPES(), cls.RETURN_TYPES, is_output)


def render(path: str | Path, settings: Iterable[str] = (), out: str | Path | None = None) -> list[Path]:
    """Run a graph file; the files that it saved."""
    graph = read(path, definition)
    made = apply_settings(graph, settings, definition)
    order = graph.order(_goals(graph))
    _refuse_unknown(order)
    trusted = [setting.path for setting in made if setting.path]
    with ExitStack() as stack:
        stack.enter_context(host.trusting(trusted))
        write_missing_samples(order)
        saver = redirect(order, Path(out)) if out else None
        for node in order:
            check(node, graph, made)
        stack.enter_context(torch.inference_mode())
        files = Run(graph, order).run()
    if saver:
        return _deliver(files[saver.id], Path(out))
    return [file for saved in files.values() for file in saved]


def _goals(graph: Graph) -> list[str]:
    goals = [node.id for node in graph.nodes.values() if (d := definition(node.kind)) is None or d.is_output]
    if not any((d := definition(graph.nodes[goal].kind)) and d.is_output for goal in goals):
        _refuse_unknown([graph.nodes[goal] for goal in goals])
        raise ValueError("the graph saves and shows nothing: add a Save Video or a Preview node")
    return goals


def _refuse_unknown(nodes: Iterable[Node]) -> None:
    unknown = [node for node in nodes if definition(node.kind) is None]
    ours = [node for node in unknown if node.kind.startswith("ReelBrush")]
    if ours:
        raise ValueError(f"this ReelBrush has no node {ours[0].kind}, which {ours[0]} is: update ReelBrush")
    if unknown:
        kinds = ", ".join(f"{n.kind} ({n})" if n.title != n.kind else str(n) for n in unknown)
        raise ValueError(
            f"{kinds}: these nodes run in ComfyUI only; start one and add --server http://127.0.0.1:8188"
        )


# -- before running --------------------------------------------------------------------------------


def write_missing_samples(nodes: Iterable[Node]) -> None:
    """The shipped graphs load the sample: make what is named and not there."""
    named = {value for node in nodes for value in node.inputs.values() if isinstance(value, str)}
    missing = [name for name in sample.FILES if name in named and not (host.folder("input") / name).exists()]
    if missing:
        log.info("writing the sample into %s: %s", host.folder("input"), ", ".join(missing))
        sample.write_sample(host.folder("input"), missing)


def check(node: Node, graph: Graph, settings: Iterable[Setting] = ()) -> None:
    """Refuse in words what ComfyUI would refuse before running; numbers become numbers of the right type."""
    known = definition(node.kind)
    free = {setting.input.name for setting in settings if setting.node is node and setting.path}
    for given in known.inputs.values():
        if given.name not in node.inputs:
            if given.required:
                what = f"connect a {given.type}" if not given.is_widget else f"give a {given.type}"
                raise ValueError(f"{node}: its input {given.name} is missing; {what}")
            continue
        value = node.inputs[given.name]
        if isinstance(value, Link):
            _check_link(node, given, value, graph)
        elif given.is_widget:
            node.inputs[given.name] = _checked(node, given, value, free=given.name in free)
        elif value is not None:
            raise ValueError(f"{node}: {given.name} needs a connection of type {given.type}, not {value!r}")
    custom = getattr(classes()[node.kind][0], "VALIDATE_INPUTS", None)
    if custom is not None:
        _ask(node, custom)


def _check_link(node: Node, given: Input, link: Link, graph: Graph) -> None:
    origin = graph.nodes[link.node]
    outputs = definition(origin.kind).outputs
    if not 0 <= link.slot < len(outputs):
        raise ValueError(
            f"{node}: {given.name} comes from output {link.slot} of {origin}, which has {len(outputs)}"
        )
    gives = outputs[link.slot]
    if not matches(gives, given.type) and not (gives == "STRING" and given.type == "COMBO"):
        raise ValueError(f"{node}: {given.name} takes {given.type}, and {origin} gives {gives}")


def _checked(node: Node, given: Input, value: Any, *, free: bool) -> Any:
    """A widget's value as its type, within its limits."""
    try:
        if given.type == "INT":
            value = int(value)
        elif given.type == "FLOAT":
            value = float(value)
        elif given.type == "STRING":
            value = str(value)
        elif given.type == "BOOLEAN":
            value = bool(value)
    except (TypeError, ValueError):
        raise ValueError(f"{node}: {given.name} is {value!r}, which is no {given.type}") from None
    if given.type in ("INT", "FLOAT"):
        low, high = given.options.get("min"), given.options.get("max")
        if low is not None and value < low:
            raise ValueError(f"{node}: {given.name} is {value}, and {low} is the least")
        if high is not None and value > high:
            raise ValueError(f"{node}: {given.name} is {value}, and {high} is the most")
    custom = getattr(classes()[node.kind][0], "VALIDATE_INPUTS", None)
    if given.choices is not None and not free and value not in given.choices and custom is None:
        choices = ", ".join(str(choice) for choice in given.choices[:12]) + (
            ", ..." if len(given.choices) > 12 else ""
        )
        raise ValueError(f"{node}: {given.name} is {value!r}, and it can be {choices or 'nothing yet'}")
    return value


def _ask(node: Node, custom: Any) -> None:
    """A node's own VALIDATE_INPUTS, with the values it asks for."""
    code = custom.__func__.__code__
    wanted = code.co_varnames[1 : code.co_argcount]
    values = {name: None if isinstance(v, Link) else v for name, v in node.inputs.items() if name in wanted}
    if any(isinstance(node.inputs.get(name), Link) for name in wanted) or set(wanted) - set(values):
        return  # a value that is not known yet: the node itself will look
    answer = custom(**values)
    if answer is not True:
        raise ValueError(f"{node}: {answer or 'its inputs are not valid'}")


# -- running ---------------------------------------------------------------------------------------


class Run:
    """One pass over the ordered nodes; an output is let go after its last use."""

    def __init__(self, graph: Graph, order: list[Node]):
        self.graph, self.order = graph, order
        self._outputs: dict[str, tuple] = {}
        self._uses = Counter(link.node for node in order for link in node.links.values())

    def run(self) -> dict[str, list[Path]]:
        """The files that each output node saved, by node id."""
        files: dict[str, list[Path]] = {}
        for number, node in enumerate(self.order, 1):
            log.debug("%d/%d %s", number, len(self.order), node)
            result = self._call(node)
            shown = result.get("ui", {}) if isinstance(result, dict) else {}
            values = result.get("result", ()) if isinstance(result, dict) else result
            if isinstance(result, dict) and "expand" in result:
                raise ValueError(f"{node} unfolds into other nodes, which needs ComfyUI: add --server URL")
            if self._uses[node.id]:
                self._outputs[node.id] = tuple(values)
            if definition(node.kind).is_output:
                files[node.id] = _files(shown) or [Path(v) for v in values if _is_path(v)]
            for link in node.links.values():
                self._uses[link.node] -= 1
                if not self._uses[link.node]:
                    del self._outputs[link.node]
        return files

    def _call(self, node: Node) -> Any:
        cls, _ = classes()[node.kind]
        if getattr(cls, "INPUT_IS_LIST", False) or any(getattr(cls, "OUTPUT_IS_LIST", ())):
            raise ValueError(f"{node} works on lists, which needs ComfyUI: add --server URL")
        known = definition(node.kind).inputs
        values = {
            name: self._outputs[value.node][value.slot] if isinstance(value, Link) else value
            for name, value in node.inputs.items()
            if name in known
        }
        try:
            return getattr(cls(), cls.FUNCTION)(**values, **self._hidden(cls, node))
        except host.interrupt_types():
            raise
        except (ValueError, RuntimeError, OSError) as error:
            message = str(error) or type(error).__name__
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(message if str(node) in message else f"{node}: {message}") from error

    def _hidden(self, cls: type, node: Node) -> dict[str, Any]:
        info = {} if self.graph.workflow is None else {"workflow": self.graph.workflow}
        known = {
            "PROMPT": self.graph.to_api(),
            "EXTRA_PNGINFO": info,
            "UNIQUE_ID": node.id,
            "DYNPROMPT": None,
        }
        return {name: known.get(kind) for name, kind in (cls.INPUT_TYPES().get("hidden") or {}).items()}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()


def _files(shown: dict[str, Any]) -> list[Path]:
    """The files that a node's answer to the front end names."""
    entries = [entry for entries in shown.values() for entry in entries if isinstance(entry, dict)]
    return [
        host.folder(entry.get("type", "output")) / entry.get("subfolder", "") / entry["filename"]
        for entry in entries
        if "filename" in entry
    ]


# -- --out -----------------------------------------------------------------------------------------


def redirect(order: list[Node], out: Path) -> Node:
    """The node whose file --out is; its format follows the ending."""
    saver = the_saver(order)
    ending = out.suffix.lower().lstrip(".")
    known = definition(saver.kind).inputs
    if saver.kind == "SaveImage":
        if ending != "png":
            raise ValueError(f"--out {out.name}: {saver} writes PNG pictures, so the name must end in .png")
        return saver
    formats = known["format"].choices or []
    if ending not in formats:
        endings = ", ".join(f".{choice}" for choice in formats if " " not in choice and choice != "auto")
        raise ValueError(f"--out {out.name}: {saver} writes {endings}")
    current = saver.inputs.get("format")
    if current != ending and (current, ending) != ("auto", "mp4"):
        saver.inputs |= {"format": ending, "codec": "auto"}
    return saver


def the_saver(order: list[Node]) -> Node:
    """The one save node of a graph; clips before pictures."""
    for kinds in (SAVERS[:2], SAVERS[2:]):
        found = [node for node in order if node.kind in kinds]
        if len(found) > 1:
            names = ", ".join(str(node) for node in found)
            raise ValueError(f"--out names one file, and the graph saves with {names}: mute all but one")
        if found:
            return found[0]
    raise ValueError("--out needs a Save Video or Save Image node in the graph")


def _deliver(files: list[Path], out: Path) -> list[Path]:
    """Move what the saver wrote to --out; several pictures are numbered."""
    out.parent.mkdir(parents=True, exist_ok=True)
    targets = (
        [out] if len(files) == 1 else [out.with_stem(f"{out.stem}_{i:05}") for i in range(1, len(files) + 1)]
    )
    for file, target in zip(files, targets, strict=True):
        part = target.with_name(
            f".{target.name}.part"
        )  # another disk copies: the name appears when it is whole
        shutil.move(file, part)
        part.replace(target)
    return targets
