"""Checks before a graph runs: the same errors that ComfyUI reports when a graph is queued."""

import inspect
from collections.abc import Iterable
from math import isfinite
from typing import Any

from .graph import Catalog, Graph, GraphNode, Input, Link, types_match
from .settings import Setting


def output_nodes(graph: Graph, catalog: Catalog) -> list[str]:
    """The ids of the nodes that save or show something, and of unknown nodes."""
    definitions = {node.id: catalog(node.class_type) for node in graph.nodes.values()}
    if not any(definition and definition.is_output for definition in definitions.values()):
        check_known(graph.nodes.values(), catalog)
        raise ValueError("the graph saves and shows nothing: add a Save Video or a Preview node")
    return [node for node, definition in definitions.items() if definition is None or definition.is_output]


def check_known(nodes: Iterable[GraphNode], catalog: Catalog) -> None:
    """An error for nodes that do not run without ComfyUI."""
    unknown = [node for node in nodes if catalog(node.class_type) is None]
    ours = [node for node in unknown if node.class_type.startswith("ReelBrush")]
    if ours:
        raise ValueError(f"{ours[0]}: this version of ReelBrush has no node {ours[0].class_type}; update it")
    if unknown:
        names = ", ".join(f"{n.class_type} ({n})" if n.title != n.class_type else str(n) for n in unknown)
        raise ValueError(
            f"{names}: these nodes run in ComfyUI only; start ComfyUI and add --server http://127.0.0.1:8188"
        )


def check_node(node: GraphNode, graph: Graph, catalog: Catalog, settings: Iterable[Setting] = ()) -> None:
    """Check all inputs of a node; numbers are converted to the declared type."""
    definition = catalog(node.class_type)
    paths = {setting.input.name for setting in settings if setting.node is node and setting.path}
    validate = getattr(definition.node_class, "VALIDATE_INPUTS", None)
    for declared in definition.inputs.values():
        if declared.name not in node.inputs:
            if declared.required:
                verb = "give" if declared.is_widget else "connect"
                raise ValueError(f"{node}: its input {declared.name} is missing; {verb} a {declared.type}")
            continue
        value = node.inputs[declared.name]
        if isinstance(value, Link):
            _check_link(node, declared, value, graph, catalog)
        elif declared.is_widget:
            any_choice = validate is not None or declared.name in paths
            node.inputs[declared.name] = checked_value(node, declared, value, any_choice=any_choice)
        elif value is not None:
            raise ValueError(
                f"{node}: {declared.name} needs a connection of type {declared.type}, not {value!r}"
            )
    if validate is not None:
        _validate(node, validate)


def _check_link(node: GraphNode, declared: Input, link: Link, graph: Graph, catalog: Catalog) -> None:
    origin = graph.nodes[link.node]
    outputs = catalog(origin.class_type).outputs
    if not (isinstance(link.slot, int) and 0 <= link.slot < len(outputs)):
        raise ValueError(
            f"{node}: {declared.name} comes from output {link.slot} of {origin}, which has {len(outputs)}"
        )
    output = outputs[link.slot]
    if not types_match(output, declared.type) and not (output == "STRING" and declared.type == "COMBO"):
        raise ValueError(f"{node}: {declared.name} takes {declared.type}, but {origin} gives {output}")


def checked_value(node: GraphNode, declared: Input, value: Any, *, any_choice: bool = False) -> Any:
    """A widget's value in its declared type; an error outside its limits or its choices."""
    convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(declared.type, lambda x: x)
    try:
        value = convert(value)
        if declared.type == "FLOAT" and not isfinite(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{node}: {declared.name} is {value!r}, which is no {declared.type}") from None
    if declared.type in ("INT", "FLOAT"):
        low, high = declared.options.get("min"), declared.options.get("max")
        if low is not None and value < low:
            raise ValueError(f"{node}: {declared.name} is {value}, but the minimum is {low}")
        if high is not None and value > high:
            raise ValueError(f"{node}: {declared.name} is {value}, but the maximum is {high}")
    if declared.choices is not None and not any_choice and value not in declared.choices:
        choices = ", ".join(str(choice) for choice in declared.choices[:12])
        choices += ", ..." if len(declared.choices) > 12 else ""
        raise ValueError(f"{node}: {declared.name} is {value!r}, but it can be {choices or 'nothing yet'}")
    return value


def _validate(node: GraphNode, validate: Any) -> None:
    """Call a node's own VALIDATE_INPUTS with the values that it asks for."""
    wanted = list(inspect.signature(validate).parameters)
    if any(name not in node.inputs or isinstance(node.inputs[name], Link) for name in wanted):
        return  # the node checks a value that is not known yet when it runs
    answer = validate(**{name: node.inputs[name] for name in wanted})
    if answer is not True:
        raise ValueError(f"{node}: {answer or 'its inputs are not valid'}")
