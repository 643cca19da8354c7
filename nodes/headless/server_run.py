"""`render --server`: runs a graph on a ComfyUI server, shows its progress, and downloads the results."""

import asyncio
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import host, sample
from .graph import Graph
from .out_file import redirect, targets
from .read import read
from .server import Server, clean
from .settings import Setting, apply_settings

log = logging.getLogger("reelbrush")

FOLDER = "server"  # below output/: a server's results never lie among those of this machine
QUIET = 15.0  # seconds without a message, after which the history is asked
MAX_RUN = 7 * 24 * 3600  # seconds
MAX_SHOWN = 1 << 20  # characters of a text output


def render_on(
    url: str, path: str | Path, settings: Iterable[str] = (), out: str | Path | None = None
) -> list[Path]:
    """Run a graph file on a server; returns the downloaded files."""
    try:
        return asyncio.run(asyncio.wait_for(_render_on(url, path, settings, out), MAX_RUN))
    except asyncio.TimeoutError as error:
        raise RuntimeError(f"the run took more than {MAX_RUN // 3600} hours: cancelled") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise RuntimeError("the server's answer has an unexpected form: is it a ComfyUI?") from error


async def _render_on(
    url: str, path: str | Path, settings: Iterable[str], out: str | Path | None
) -> list[Path]:
    async with Server.connect(url) as server:
        graph = read(path, server.definition)
        unknown = [node for node in graph.nodes.values() if server.definition(node.class_type) is None]
        if unknown:
            names = ", ".join(f"{node.class_type} (node {node.id})" for node in unknown)
            raise ValueError(f"the ComfyUI at {server.url} has no {names}: install the node pack there")
        await _send_settings(server, apply_settings(graph, settings, server.definition))
        await _send_samples(server, graph)
        nodes = list(graph.nodes.values())
        saver = redirect(nodes, Path(out), server.definition) if out else None
        outputs = await _run(server, graph)
        for shown in outputs.values():
            for text in shown.get("text") or ():
                sys.stdout.write(clean(text, MAX_SHOWN, keep="\n\t") + "\n")
        entries = [
            entry
            for node, shown in outputs.items()
            if saver is None or node == saver.id
            for entries in shown.values()
            for entry in entries
            if isinstance(entry, dict) and entry.get("type") == "output"
        ]
        files = map(_target, entries) if out is None else _out_files(entries, Path(out))
        return [await server.download(*pair) for pair in zip(entries, files, strict=True)]


def _out_files(entries: list[dict], out: Path) -> list[Path]:
    for entry in entries:
        suffix = Path(str(entry.get("filename"))).suffix
        if suffix.lower() != out.suffix.lower():
            log.warning("%s is written under that name, but it is a %s file", out.name, clean(suffix))
    return targets(out, len(entries))


def _target(entry: dict[str, Any]) -> Path:
    """The next number of the result's name in output/server."""
    sub_folder, name = str(entry.get("subfolder") or ""), str(entry.get("filename") or "")
    parts = Path(sub_folder, name).parts
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    if hidden or name != Path(name).name or clean(name) != name or not Path(name).suffix:
        shown = clean(f"{sub_folder}/{name}").strip("/")
        raise ValueError(f"the server's result has the file name {shown!r}, which is not accepted")
    stem = Path(name).stem.rstrip("_0123456789") or "result"
    host.inside(host.folder("output") / FOLDER, f"{sub_folder}/{name}".lstrip("/"), "result")
    return host.numbered(f"{FOLDER}/{sub_folder}/{stem}", Path(name).suffix)[0]


async def _send_settings(server: Server, settings: list[Setting]) -> None:
    """Upload the files on this machine that --set names."""
    for setting in settings:
        if setting.path is None:
            continue
        if not setting.input.is_upload:
            raise ValueError(
                f"{setting.node}: {setting.input.name} is read from the server's own folders: "
                f"put {setting.path.name} there, and give its name"
            )
        if setting.path.is_dir():
            raise ValueError(
                f"{setting.node}: {setting.path} is a folder, and only files can be sent to a server"
            )
        log.info("sending %s", setting.path.name)
        setting.node.inputs[setting.input.name] = await server.upload(setting.path)


async def _send_samples(server: Server, graph: Graph) -> None:
    """Upload the files of the sample that the graph names and the server lacks."""
    for node in graph.nodes.values():
        for name, value in node.inputs.items():
            if not isinstance(value, str) or value not in sample.FILES:
                continue
            declared = server.definition(node.class_type).inputs.get(name)
            if declared and declared.choices is not None and value not in declared.choices:
                log.info("sending %s", value)
                await server.upload(sample.FOLDER / value)


async def _run(server: Server, graph: Graph) -> dict[str, dict]:
    """Queue the graph and wait for its end; Ctrl-C cancels it on the server too."""
    info = {} if graph.workflow is None else {"extra_pnginfo": {"workflow": graph.workflow}}
    prompt = {"prompt": graph.to_api(), "client_id": server.client_id, "extra_data": info}
    async with server.messages(QUIET) as messages:
        prompt_id = str((await server.call("/prompt", prompt))["prompt_id"])
        try:
            await _watch(server, graph, messages, prompt_id)
        except (KeyboardInterrupt, asyncio.CancelledError):  # also after MAX_RUN
            await server.call("/queue", {"delete": [prompt_id]})
            await server.call("/interrupt", {"prompt_id": prompt_id})
            raise
    return (await _finished(server, prompt_id)).get("outputs") or {}


async def _finished(server: Server, prompt_id: str) -> dict[str, Any]:
    """The server's record of a finished run; it may appear a moment after the last message."""
    for _ in range(20):
        record = await _history(server, prompt_id)
        if record is not None:
            return record
        await asyncio.sleep(0.1)
    return {}


async def _history(server: Server, prompt_id: str) -> dict[str, Any] | None:
    return ((await server.call(f"/history/{prompt_id}")) or {}).get(prompt_id)


async def _watch(server: Server, graph: Graph, messages: Any, prompt_id: str) -> None:
    """Follow the messages until the run is over; its error becomes an error message here."""
    with _ProgressLine(graph) as line:
        async for message in messages:
            if message is None:
                if await _is_over(server, prompt_id):
                    return
                continue
            data = message.get("data") or {}
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            event = message.get("type")
            if event == "execution_error":
                raise _node_error(data)
            if event == "execution_interrupted":
                raise RuntimeError(
                    f"the run was cancelled on the server, at node {clean(data.get('node_id'))}"
                )
            if event == "execution_success" or (event == "executing" and data.get("node") is None):
                return
            if event in ("executing", "progress"):
                line.show(data)


def _node_error(data: dict[str, Any]) -> RuntimeError:
    node = f"{clean(data.get('node_type'))} (node {clean(data.get('node_id'))})"
    return RuntimeError(f"{node}: {clean(data.get('exception_message'))}")


async def _is_over(server: Server, prompt_id: str) -> bool:
    """Ask the history; used when no message came for a while, because one may have been lost."""
    record = await _history(server, prompt_id)
    if record is None:
        queue = await server.call("/queue")
        waiting = [item[1] for name in ("queue_running", "queue_pending") for item in queue.get(name) or ()]
        if prompt_id not in waiting:
            raise RuntimeError(
                "the server no longer has this run: it was removed, or ComfyUI was started again"
            )
        return False
    status = record.get("status") or {}
    for event, data in status.get("messages") or ():
        if event == "execution_error":
            raise _node_error(data)
    if status.get("status_str") == "error":
        raise RuntimeError("the run was cancelled on the server")
    return True


class _ProgressLine:
    """A terminal line with the running node and its progress."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._bar = tqdm(disable=not sys.stderr.isatty(), dynamic_ncols=True, bar_format="{desc}")

    def __enter__(self) -> "_ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, data: dict[str, Any]) -> None:
        node = self._graph.nodes.get(str(data.get("node")))
        steps = f" {clean(data['value'])}/{clean(data['max'])}" if "max" in data and "value" in data else ""
        self._bar.set_description_str(f"{node.title if node else 'working'}{steps}")
