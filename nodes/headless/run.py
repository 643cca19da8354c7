"""Runs a graph without ComfyUI."""

import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import host, sample
from .catalog import local_catalog
from .check import check_known, check_node, output_nodes
from .graph import Catalog, Graph, GraphNode, Link
from .out_file import deliver, redirect
from .read import read
from .settings import apply_settings

log = logging.getLogger("reelbrush")


def render(path: str | Path, settings: Iterable[str] = (), out: str | Path | None = None) -> list[Path]:
    """Run a graph file; returns the files that it saved."""
    catalog = local_catalog()
    graph = read(path, catalog)
    applied = apply_settings(graph, settings, catalog)
    order = graph.order(output_nodes(graph, catalog))
    check_known(order, catalog)
    with ExitStack() as stack:
        stack.enter_context(host.trusting(setting.path for setting in applied if setting.path))
        copy_missing_samples(order)
        saver = redirect(order, Path(out), catalog) if out else None
        for node in order:
            check_node(node, graph, catalog, applied)
        stack.enter_context(torch.inference_mode())
        files = GraphRun(graph, order, catalog).run()
    if saver:
        return deliver(files[saver.id], Path(out))
    return [file for saved in files.values() for file in saved]


def copy_missing_samples(nodes: Iterable[GraphNode]) -> None:
    """Copy the files and folders of the sample that the graph names and the input folder lacks."""
    named = {value for node in nodes for value in node.inputs.values() if isinstance(value, str)}
    for path in sample.copy_missing(host.folder("input"), named.intersection(sample.ALL)):
        log.info("copied %s from the sample", path)


class GraphRun:
    """One pass over the ordered nodes; an output is released after its last use."""

    def __init__(self, graph: Graph, order: list[GraphNode], catalog: Catalog):
        self.graph, self.order, self.catalog = graph, order, catalog
        self._outputs: dict[str, tuple] = {}
        self._uses = Counter(link.node for node in order for link in node.links.values())

    def run(self) -> dict[str, list[Path]]:
        """The files that each output node saved, by node id."""
        files: dict[str, list[Path]] = {}
        for number, node in enumerate(self.order, 1):
            log.debug("%d/%d %s", number, len(self.order), node)
            result = self._call(node)
            if isinstance(result, dict) and "expand" in result:
                raise ValueError(f"{node} expands into other nodes, which needs ComfyUI: add --server URL")
            shown = result.get("ui", {}) if isinstance(result, dict) else {}
            values = result.get("result", ()) if isinstance(result, dict) else result
            if self._uses[node.id]:
                self._outputs[node.id] = tuple(values)
            if self.catalog(node.class_type).is_output:
                files[node.id] = _shown_files(shown) if shown else [Path(v) for v in values if _is_path(v)]
            self._release(node)
        return files

    def _release(self, node: GraphNode) -> None:
        for link in node.links.values():
            self._uses[link.node] -= 1
            if not self._uses[link.node]:
                del self._outputs[link.node]

    def _call(self, node: GraphNode) -> Any:
        definition = self.catalog(node.class_type)
        cls = definition.node_class
        if getattr(cls, "INPUT_IS_LIST", False) or any(getattr(cls, "OUTPUT_IS_LIST", ())):
            raise ValueError(f"{node} works on lists, which needs ComfyUI: add --server URL")
        values = {
            name: self._outputs[value.node][value.slot] if isinstance(value, Link) else value
            for name, value in node.inputs.items()
            if name in definition.inputs
        }
        for name, what in definition.hidden.items():
            values[name] = node.id if what == "UNIQUE_ID" else self._hidden.get(what)
        try:
            return getattr(cls(), cls.FUNCTION)(**values)
        except host.interrupt_types():
            raise
        except (ValueError, RuntimeError, OSError) as error:
            message = str(error) or type(error).__name__
            error_type = ValueError if isinstance(error, ValueError) else RuntimeError
            raise error_type(message if str(node) in message else f"{node}: {message}") from error

    @cached_property
    def _hidden(self) -> dict[str, Any]:
        info = {} if self.graph.workflow is None else {"workflow": self.graph.workflow}
        return {"PROMPT": self.graph.to_api(), "EXTRA_PNGINFO": info}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()


def _shown_files(shown: dict[str, Any]) -> list[Path]:
    """The files that a node reports to the front end."""
    entries = [entry for entries in shown.values() for entry in entries if isinstance(entry, dict)]
    return [
        host.folder(entry.get("type", "output")) / entry.get("subfolder", "") / entry["filename"]
        for entry in entries
        if "filename" in entry
    ]
