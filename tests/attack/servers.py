"""Servers that send too much, too slowly, the wrong thing or nothing, at each step of `render --server`."""

import asyncio
import contextlib
import gzip
import io
import json
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import WSMsgType, web
from outcomes import Log, outcome

from reelbrush.nodes.headless import server as connection
from reelbrush.nodes.headless import server_run

VIDEO = {"input": {"required": {"video": ["VIDEO"]}}, "output": [], "output_node": True}
CLIP = {"input": {"required": {"file": [["a.mp4"], {"video_upload": True}]}}, "output": ["VIDEO"]}
INFO = {"LoadVideo": CLIP, "SaveVideo": VIDEO}
GRAPH = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
    "2": {"class_type": "SaveVideo", "inputs": {"video": ["1", 0]}},
}
FILE = {"filename": "v_00001_.mp4", "subfolder": "video", "type": "output"}
DONE = [{"type": "executing", "data": {"prompt_id": "p", "node": None}}]
ESCAPE = "\x1b]0;title\x07\x1b[2J\r\n\u202e"
DEEP = "[" * 100_000


def raw(body: bytes | str, status: int = 200, **headers: str) -> Callable:
    """An answer with this body."""
    data = body.encode() if isinstance(body, str) else body

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, status=status, headers=headers)

    return answer


def data(value: Any, status: int = 200) -> Callable:
    return raw(json.dumps(value), status)


def stream(chunk: bytes, pause: float = 0.0, first: bytes = b"") -> Callable:
    """An answer that never ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        while True:
            await response.write(chunk)
            await asyncio.sleep(pause)

    return answer


def short(body: bytes, length: int) -> Callable:
    """An answer that ends before its Content-Length."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)})
        await response.prepare(request)
        await response.write(body)
        request.transport.close()
        return response

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def bomb() -> Callable:
    return raw(gzip.compress(bytes(200 << 20), 1), **{"Content-Encoding": "gzip"})


Events = Callable[[web.WebSocketResponse], AsyncIterator[None]]


def socket(send: Callable) -> Callable:
    """A websocket on which `send` does what it likes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await send(opened)
            async for message in opened:
                if message.type is WSMsgType.CLOSE:
                    break
        return opened

    return answer


def events(*messages: Any, text: str = "") -> Callable:
    async def send(opened: web.WebSocketResponse) -> None:
        await asyncio.sleep(0.1)
        for message in messages:
            await opened.send_json(message)
        if text:
            await opened.send_str(text)

    return socket(send)


def forever(method: str, *arguments: Any) -> Callable:
    async def send(opened: web.WebSocketResponse) -> None:
        while not opened.closed:
            await getattr(opened, method)(*arguments)
            await asyncio.sleep(0)

    return socket(send)


def fragments() -> Callable:
    """One text message whose fragments never end."""

    async def send(opened: web.WebSocketResponse) -> None:
        transport, kind = opened._req.transport, 0x01
        while not transport.is_closing():
            transport.write(bytes([kind, 126, 0xFF, 0xFF]) + b"a" * 65535)
            kind = 0
            await asyncio.sleep(0.001)

    return socket(send)


def record(outputs: Any, **status: Any) -> Callable:
    return data({"p": {"outputs": outputs, "status": status}})


def files(*entries: Any) -> Callable:
    return record({"2": {"images": list(entries)}})


INFO_, PROMPT, SOCKET, HISTORY, VIEW = "/object_info", "/prompt", "/ws", "/history/{id}", "/view"
ERROR = {
    "type": "execution_error",
    "data": {"prompt_id": "p", "node_id": ESCAPE, "exception_message": ESCAPE},
}
LONG = {
    "type": "execution_error",
    "data": {"exception_message": "x" * 10**6, "node_type": [1], "node_id": {}},
}
ODD = {"type": "progress", "data": {"value": [1], "max": {}}}
WRONG = {"input": {"required": {"a": 1}}}
MODES: list[tuple[str, str, Callable]] = [
    ("endless JSON", INFO_, stream(b"[" + b"1," * 30_000)),
    ("dripped JSON", INFO_, stream(b" ", 0.2)),
    ("no JSON", INFO_, raw("<html>")),
    ("a list", INFO_, data([1])),
    ("nothing", INFO_, raw("")),
    ("status 500", INFO_, raw(ESCAPE, 500)),
    ("a redirect to a file", INFO_, raw("", 302, Location="file:///etc/passwd")),
    ("deep JSON", INFO_, raw(DEEP)),
    ("a node that is a number", INFO_, data(INFO | {"SaveVideo": 5})),
    ("inputs that are a list", INFO_, data(INFO | {"SaveVideo": VIDEO | {"input": [1]}})),
    (
        "an input that is a number",
        INFO_,
        data(INFO | {"SaveVideo": VIDEO | WRONG}),
    ),
    ("outputs that are a number", INFO_, data(INFO | {"LoadVideo": CLIP | {"output": 1}})),
    ("a node without inputs", INFO_, data(INFO | {"SaveVideo": {}})),
    ("control characters in a name", INFO_, data(INFO | {"SaveVideo": VIDEO | {"display_name": ESCAPE}})),
    ("a short body", INFO_, short(b"{", 1000)),
    ("a gzip bomb", INFO_, bomb()),
    ("a closed connection", INFO_, cut),
    ("no answer", INFO_, silent),
    ("bytes that are no text", INFO_, raw(b"\xff\xfe{")),
    ("a list as answer to the graph", PROMPT, data([])),
    ("no prompt_id", PROMPT, data({})),
    ("prompt_id is a dictionary", PROMPT, data({"prompt_id": {"a": ESCAPE}})),
    ("endless answer to the graph", PROMPT, stream(b"[" * 60_000)),
    ("node errors that are numbers", PROMPT, data({"node_errors": {"1": 5}}, 400)),
    ("node errors that are a text", PROMPT, data({"node_errors": "x", "error": [1, {"a": ESCAPE}]}, 400)),
    ("node errors in a list", PROMPT, data({"node_errors": {"1": {"errors": [5]}}}, 400)),
    ("errors that are a dictionary", PROMPT, data({"node_errors": {"1": {"errors": {"a": 1}}}}, 400)),
    ("control characters in an error", PROMPT, data({"error": {"message": ESCAPE, "details": ESCAPE}}, 400)),
    ("no answer to the graph", PROMPT, silent),
    ("no websocket", SOCKET, raw("", 403)),
    ("endless fragments", SOCKET, fragments()),
    ("a flood of pings", SOCKET, forever("ping")),
    ("a flood of previews", SOCKET, forever("send_bytes", bytes(1000))),
    (
        "a flood of other runs",
        SOCKET,
        forever("send_str", '{"type": "progress", "data": {"prompt_id": "x"}}'),
    ),
    ("a message that is too large", SOCKET, events(text="x" * (3 << 20))),
    ("a message that is no JSON", SOCKET, events(text="{")),
    ("deep JSON in a message", SOCKET, events(text=DEEP)),
    ("a message that is a list", SOCKET, events([1], 5, None, "x", *DONE)),
    ("data that is a list", SOCKET, events({"type": "executing", "data": [1]}, {"type": [1]}, {}, *DONE)),
    ("control characters in a message", SOCKET, events(ERROR)),
    ("an endless message of an error", SOCKET, events(LONG)),
    (
        "progress of odd values",
        SOCKET,
        events(ODD, *DONE),
    ),
    ("silence", SOCKET, events()),
    ("a list as history", HISTORY, data([1])),
    ("a history of numbers", HISTORY, data({"p": 5})),
    ("outputs that are a list", HISTORY, record([1])),
    ("outputs of odd shapes", HISTORY, record({"2": [1], "3": {"images": 5, "text": 7}, "4": None})),
    ("endless history", HISTORY, stream(b"[" * 60_000)),
    ("names of odd types", HISTORY, files({"type": "output", "filename": [1], "subfolder": {"a": 1}})),
    ("a name with a dot", HISTORY, files(FILE | {"filename": ".v.mp4"})),
    ("a name that leaves the folder", HISTORY, files(FILE | {"filename": "../../v.mp4"})),
    ("a folder that leaves the folder", HISTORY, files(FILE | {"subfolder": "../../.reelbrush"})),
    ("a hidden folder", HISTORY, files(FILE | {"subfolder": "a/.b"})),
    ("a name that is too long", HISTORY, files(FILE | {"filename": "v" * 300 + ".mp4"})),
    ("control characters in a result", HISTORY, record({"2": {"text": [ESCAPE, "x" * (3 << 20), 5, {}]}})),
    ("100,000 results", HISTORY, files(*[FILE] * 100_000)),
    ("a short file", VIEW, short(b"abc", 1000)),
    ("an endless file", VIEW, stream(bytes(1 << 20))),
    ("a dripped file", VIEW, stream(b"a", 0.2)),
    ("no file", VIEW, raw("", 404)),
    ("a file behind a redirect", VIEW, raw("", 302, Location="http://127.0.0.1:1/")),
    ("a file that is a gzip bomb", VIEW, bomb()),
]


class Hostile:
    """A ComfyUI server that behaves, except at one address."""

    def __init__(self, where: str, answer: Callable):
        behaves = {
            INFO_: data(INFO),
            PROMPT: data({"prompt_id": "p"}),
            SOCKET: events(*DONE),
            HISTORY: files(FILE),
            VIEW: raw(b"the clip"),
            "/queue": data({"queue_running": [[0, "p"]], "queue_pending": []}),
            "/interrupt": data({}),
        }
        self.answers = behaves | {where: answer}

    def __enter__(self) -> str:
        started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self.thread.start()
        started.wait(10)
        return self.url

    def _serve(self, started: threading.Event) -> None:
        async def listen() -> None:
            app = web.Application()
            for path, answer in self.answers.items():
                app.router.add_route("*", path, answer)
            self.runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

        self.loop.run_until_complete(listen())
        started.set()
        self.loop.run_forever()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    connection.MAX_ANSWER, connection.MAX_MESSAGE, connection.MAX_DOWNLOAD = 8 << 20, 1 << 20, 32 << 20
    connection.CONNECT_TIME, connection.ANSWER_TIME, connection.TRANSFER_TIME = 2, 2, 3
    server_run.QUIET, server_run.MAX_RUN = 0.5, 3
    (folder / "g.json").write_text(json.dumps(GRAPH))
    return SimpleNamespace(folder=folder, log=Log())


def count(state: SimpleNamespace) -> int:
    return len(MODES)


def case(state: SimpleNamespace, number: int) -> str:
    name, where, answer = MODES[number]
    out, begin = io.StringIO(), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Hostile(where, answer) as url, contextlib.redirect_stdout(out):
        text, files = outcome(lambda: server_run.render_on(url, state.folder / "g.json"), state.log)
    seconds = time.monotonic() - begin
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    if seconds > 20 or grown > 400:
        return f"failure: {name}: {seconds:.0f} s, {grown} MiB"
    shown = out.getvalue()
    if any(not c.isprintable() and c not in "\n\t" for c in shown):
        return f"failure: {name}: control characters reach the terminal: {shown[:100]!r}"
    made = [p for p in state.folder.rglob("*") if p.is_file() and p.name not in ("lock", "g.json")]
    wrong = [p for p in made if not p.is_relative_to(state.folder / "output" / "server") or not complete(p)]
    if wrong or not set(files or ()) <= set(made):
        return f"failure: {name}: files {wrong or files}"
    for file in made:
        file.unlink()
    return text.replace("failure: ", f"failure: {name}: ", 1)


def complete(file: Path) -> bool:
    return not file.name.startswith(".") and file.read_bytes() == b"the clip"
