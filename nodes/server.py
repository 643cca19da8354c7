"""`render --server`: a graph in a ComfyUI that is running; its progress here, its results on this machine."""

import json
import logging
import secrets
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from . import host
from .graph import Definition, Graph, Setting, apply_settings
from .graphfile import read
from .headless import the_saver
from .sample import files as sample
from .websocket import WebSocket

log = logging.getLogger("reelbrush")

QUIET = 15.0  # seconds without a message, after which the history is asked


class Server:
    """The parts of ComfyUI's HTTP interface that a render needs."""

    def __init__(self, url: str):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"--server {url!r} is no web address: give one like http://127.0.0.1:8188")
        self.client = uuid.uuid4().hex
        self._kinds: dict[str, Any] | None = None

    def call(
        self, path: str, data: Any = None, headers: dict[str, str] | None = None, raw: bool = False
    ) -> Any:
        """GET, or POST when there is data; a dead server is one sentence."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        kind = {"Content-Type": "application/json"} if body is not None else {}
        try:
            with urlopen(Request(self.url + path, body, {**kind, **(headers or {})}), timeout=60) as answer:
                content = answer.read()
        except HTTPError as error:
            raise _refusal(error) from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise RuntimeError(
                f"no ComfyUI answers at {self.url} ({reason}): start it, or check the address"
            ) from error
        return content if raw else json.loads(content) if content.strip() else None

    def definition(self, kind: str) -> Definition | None:
        """What the server says about a node."""
        if self._kinds is None:
            self._kinds = self.call("/object_info")
        info = self._kinds.get(kind)
        if info is None:
            return None
        name = info.get("display_name") or kind
        return Definition.of(kind, name, info["input"], info["output"], bool(info.get("output_node")))

    def upload(self, path: Path) -> str:
        """A file into the server's input folder; its name there (another one, if that is taken)."""
        border = secrets.token_hex(16)
        name = path.name.replace('"', "_")
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{border}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
        answer = self.call("/upload/image", body, kind)
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def download(self, entry: dict[str, str], target: Path) -> Path:
        """One result; the name appears when the file is whole."""
        query = urlencode({key: entry.get(key, "") for key in ("filename", "subfolder", "type")})
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with urlopen(f"{self.url}/view?{query}", timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target


def _refusal(error: HTTPError) -> Exception:
    """ComfyUI's answer to a graph that it does not take, as one sentence with the node's name."""
    try:
        answer = json.loads(error.read())
    except ValueError:
        return RuntimeError(f"the server answered {error.code} {error.reason}")
    for node, found in (answer.get("node_errors") or {}).items():
        first = (found.get("errors") or [{}])[0]
        detail = ": ".join(text for text in (first.get("message"), first.get("details")) if text)
        return ValueError(f"ComfyUI refuses {found.get('class_type')} (node {node}): {detail}")
    message = (
        (answer.get("error") or {})
        if isinstance(answer.get("error"), dict)
        else {"message": answer.get("error")}
    )
    return ValueError(
        f"ComfyUI refuses the graph: {message.get('message')} {message.get('details') or ''}".rstrip()
    )


# -- a render --------------------------------------------------------------------------------------


def render_on(url: str, path: str | Path, settings: Iterable[str] = (), out: str | None = None) -> list[Path]:
    """Run a graph file on a server; the files that it saved, brought here."""
    server = Server(url)
    graph = read(path, server.definition)
    unknown = [node for node in graph.nodes.values() if server.definition(node.kind) is None]
    if unknown:
        names = ", ".join(f"{node.kind} (node {node.id})" for node in unknown)
        raise ValueError(f"the ComfyUI at {server.url} does not have {names}: install the pack there")
    _send_files(server, graph, apply_settings(graph, settings, server.definition))
    saver = the_saver(list(graph.nodes.values())) if out else None
    outputs = _follow(server, graph)
    entries = [
        entry
        for node, shown in outputs.items()
        if saver is None or node == saver.id
        for entries in shown.values()
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") == "output"
    ]
    for shown in outputs.values():
        for text in shown.get("text") or ():
            sys.stdout.write(str(text).rstrip("\n") + "\n")
    return [
        server.download(entry, _target(entry, i, len(entries), out)) for i, entry in enumerate(entries, 1)
    ]


def _target(entry: dict[str, str], number: int, count: int, out: str | None) -> Path:
    """Where a result goes: --out, or the output folder, under a free name."""
    if out is not None:
        path = Path(out)
        if Path(entry["filename"]).suffix.lower() != path.suffix.lower():
            log.warning("%s is named as you said, but it is a %s", path.name, Path(entry["filename"]).suffix)
        return path if count == 1 else path.with_stem(f"{path.stem}_{number:05}")
    target = host.output_path("/".join(part for part in (entry.get("subfolder"), entry["filename"]) if part))
    if not target.exists():
        return target
    stem, suffix = target.stem.rstrip("_0123456789") or target.stem, target.suffix
    return host.numbered(str(target.parent.relative_to(host.folder("output")) / stem), suffix)[0]


def _send_files(server: Server, graph: Graph, settings: list[Setting]) -> None:
    """Upload what --set names on this machine, and the sample where the graph wants it and has it not."""
    for setting in settings:
        if setting.path is not None:
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
            setting.node.inputs[setting.input.name] = server.upload(setting.path)
    for node in graph.nodes.values():
        for name, value in node.inputs.items():
            if not isinstance(value, str) or value not in sample.FILES:
                continue
            given = server.definition(node.kind).inputs.get(name)
            if given and given.choices is not None and value not in given.choices:
                log.info("sending the sample's %s", value)
                with tempfile.TemporaryDirectory() as folder:
                    server.upload(sample.write_sample(folder, [value])[0])


def _follow(server: Server, graph: Graph) -> dict[str, dict]:
    """Queue the graph and watch it to its end; Ctrl-C cancels it there too."""
    info = {} if graph.workflow is None else {"extra_pnginfo": {"workflow": graph.workflow}}
    address = server.url.replace("http", "ws", 1) + f"/ws?clientId={server.client}"
    with WebSocket(address, timeout=QUIET) as socket:
        prompt = {"prompt": graph.to_api(), "client_id": server.client, "extra_data": info}
        number = server.call("/prompt", prompt)["prompt_id"]
        try:
            _watch(server, graph, socket, number)
        except KeyboardInterrupt:
            server.call("/queue", {"delete": [number]})
            server.call("/interrupt", {"prompt_id": number})
            raise
    return _history(server, number).get("outputs") or {}


def _history(server: Server, number: str) -> dict[str, Any]:
    """The server's record of a run; it may come a moment after the last message."""
    for _ in range(20):
        found = (server.call(f"/history/{number}") or {}).get(number)
        if found:
            return found
        time.sleep(0.1)
    return {}


def _watch(server: Server, graph: Graph, socket: WebSocket, number: str) -> None:
    """Messages until the run is over; its error becomes one sentence."""
    bar = _Line(graph)
    try:
        while True:
            try:
                message = socket.receive()
            except TimeoutError:
                if _is_over(server, number):
                    return
                continue
            if isinstance(message, bytes):
                continue  # a preview picture
            event = json.loads(message)
            data = event.get("data") or {}
            if data.get("prompt_id", number) != number:
                continue
            kind = event["type"]
            if kind == "execution_error":
                node = f"{data.get('node_type')} (node {data.get('node_id')})"
                raise RuntimeError(f"{node}: {str(data.get('exception_message')).strip()}")
            if kind == "execution_interrupted":
                raise RuntimeError(f"the run was cancelled on the server, at node {data.get('node_id')}")
            if kind == "execution_success" or (kind == "executing" and data.get("node") is None):
                return
            bar.show(kind, data)
    finally:
        bar.close()


def _is_over(server: Server, number: str) -> bool:
    """Asked when nothing came for a while: a message may have been lost."""
    found = (server.call(f"/history/{number}") or {}).get(number)
    if found is None:
        queue = server.call("/queue")
        waiting = [item[1] for part in ("queue_running", "queue_pending") for item in queue.get(part) or ()]
        if number not in waiting:
            raise RuntimeError(
                "the server no longer knows this run: it was removed, or ComfyUI was started anew"
            )
        return False
    status = found.get("status") or {}
    for kind, data in status.get("messages") or ():
        if kind == "execution_error":
            node = f"{data.get('node_type')} (node {data.get('node_id')})"
            raise RuntimeError(f"{node}: {str(data.get('exception_message')).strip()}")
    if status.get("status_str") == "error":
        raise RuntimeError("the run was cancelled on the server")
    return True


class _Line:
    """One line on the terminal: the node that runs and how far it is."""

    def __init__(self, graph: Graph):
        self._graph, self._open = graph, False

    def show(self, kind: str, data: dict[str, Any]) -> None:
        if kind not in ("executing", "progress") or not sys.stderr.isatty():
            return
        node = self._graph.nodes.get(str(data.get("node")))
        done = f" {data['value']}/{data['max']}" if kind == "progress" else ""
        sys.stderr.write(f"\r{node.title if node else 'working'}{done}\033[K")
        sys.stderr.flush()
        self._open = True

    def close(self) -> None:
        if self._open:
            sys.stderr.write("\n")
