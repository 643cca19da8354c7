"""A graph from a file: ComfyUI's UI format and its API format, told apart by what is in them."""

import json
from pathlib import Path
from typing import Any

from .graph import Catalog, Graph, Link, Node
from .uigraph import convert

SHIPPED = Path(__file__).parents[1] / "workflows"


def shipped(path: Path) -> Path:
    """The file itself; the bare name of a shipped workflow stands for its file where there is none."""
    own = SHIPPED / f"{path.name.removesuffix('.json')}.json"
    return own if path.name == str(path) and not path.exists() and own.exists() else path


def read(path: str | Path, catalog: Catalog) -> Graph:
    """A graph file in UI or API format, or the name of a workflow that comes with the pack."""
    path = shipped(Path(path))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
        raise ValueError(f"there is no graph file {path}; the pack itself has {names}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path.name} is no JSON file: save the workflow again in ComfyUI") from error
    return parse(data, catalog, path.name)


def parse(data: Any, catalog: Catalog, name: str = "this file") -> Graph:
    """A graph from the JSON of either format."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        return convert(data, catalog)
    if isinstance(data, dict) and set(data) <= {"prompt", "extra_data", "client_id"} and "prompt" in data:
        data = data["prompt"]  # what was posted to a server
    if not isinstance(data, dict) or not data or not all(_is_api_node(node) for node in data.values()):
        raise ValueError(f"{name} holds no graph: save it in ComfyUI with Save or Export (API)")
    return Graph({str(key): _api_node(str(key), node, catalog) for key, node in data.items()})


def _is_api_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str)


def _api_node(key: str, node: dict, catalog: Catalog) -> Node:
    kind = node["class_type"]
    known = catalog(kind)
    title = (node.get("_meta") or {}).get("title") or (known.name if known else kind)
    return Node(key, kind, title, {name: _from_api(v) for name, v in (node.get("inputs") or {}).items()})


def _from_api(value: Any) -> Any:
    if isinstance(value, list) and [type(part) for part in value] in ([str, int], [int, int]):
        return Link(str(value[0]), value[1])
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    return value
