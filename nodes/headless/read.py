"""Reading a graph file in ComfyUI's API format or UI format."""

import json
from pathlib import Path
from typing import Any

from .graph import Catalog, Definition, Graph, GraphNode, Link
from .ui_format import convert

SHIPPED = Path(__file__).parents[2] / "workflows"


def graph_file(path: Path) -> Path:
    """The file itself; a bare name that is no file stands for the shipped workflow of that name."""
    own = SHIPPED / f"{path.name.removesuffix('.json')}.json"
    return own if path.name == str(path) and not path.exists() and own.exists() else path


def read(path: str | Path, catalog: Catalog) -> Graph:
    """A graph file in UI or API format, or a shipped workflow by its name."""
    path = graph_file(Path(path))
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
        raise ValueError(f"there is no graph file {path}; the shipped workflows are {names}") from error
    except (ValueError, IsADirectoryError, RecursionError) as error:  # ValueError: also too many digits
        raise ValueError(f"{path.name} is not a JSON file: save the workflow again in ComfyUI") from error
    return parse(data, catalog, path.name)


def parse(data: Any, catalog: Catalog, name: str = "this file") -> Graph:
    """A graph from the JSON of either format."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        return convert(data, catalog)
    if isinstance(data, dict) and set(data) <= {"prompt", "extra_data", "client_id"} and "prompt" in data:
        data = data["prompt"]  # the body of a request to /prompt
    nodes = data if isinstance(data, dict) and data else {"": data}
    for key, node in nodes.items():
        if not _is_api_node(node):
            where = f" that can be read (node {key[:20]!r} is broken)" if len(nodes) > 1 else ""
            raise ValueError(f"{name} contains no graph{where}: save it in ComfyUI with Save or Export (API)")
    return Graph({str(key): _api_node(str(key), node, catalog) for key, node in data.items()})


def _is_api_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs") or {}, dict)
    )


def _api_node(key: str, node: dict, catalog: Catalog) -> GraphNode:
    class_type = node["class_type"]
    definition = catalog(class_type)
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    title = str(title or (definition.name if definition else class_type))
    inputs = {name: _from_api(value) for name, value in (node.get("inputs") or {}).items()}
    if definition and definition.node_class:
        inputs = {_own_name(name, definition): value for name, value in inputs.items()}
    return GraphNode(key, class_type, title, inputs)


def _own_name(name: str, definition: Definition) -> str:
    """Newer ComfyUIs call an input of a choice `format.codec`; our core nodes call it `codec`."""
    last = name.rpartition(".")[2]
    return last if name not in definition.inputs and last in definition.inputs else name


def _from_api(value: Any) -> Any:
    if isinstance(value, list) and [type(item) for item in value] in ([str, int], [int, int]):
        return Link(str(value[0]), value[1])
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    return value
