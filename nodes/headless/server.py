"""The HTTP and websocket interface of a running ComfyUI.

The server is not trusted: the size of every answer and the time of every request are limited, downloads
are checked for their length, and control characters are removed from its texts.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..common.files import replacing
from .graph import Definition

MAX_ANSWER = 64 << 20  # bytes of JSON; /object_info with many packs has a few million
MAX_MESSAGE = 16 << 20  # bytes of a websocket message; previews are the largest
MAX_DOWNLOAD = 64 << 30
MAX_TEXT = 500  # characters of an error message or a title
CONNECT_TIME, ANSWER_TIME, TRANSFER_TIME = 10, 60, 6 * 3600  # seconds
_CHUNK = 1 << 20


def clean(text: Any, limit: int = MAX_TEXT, keep: str = "") -> str:
    """Text from the server without control characters (except those in `keep`), cut to a length."""
    characters = (c if c.isprintable() or c in keep else " " for c in str(text)[:limit])
    return "".join(characters).strip()


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise RuntimeError("--server needs aiohttp: install it with `pip install aiohttp`") from error
    return aiohttp


class Server:
    """One connection to a ComfyUI server: `async with Server.connect(url) as server`."""

    def __init__(self, url: str, session: Any):
        self.url, self._session = url, session
        self.client_id = uuid.uuid4().hex
        self._object_info: dict[str, Any] = {}

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator["Server"]:
        """Connect and read the definitions of the server's nodes."""
        address = (url if "://" in url else f"http://{url}").rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"--server {url!r} is not a web address: give one like http://127.0.0.1:8188")
        async with _aiohttp().ClientSession() as session:
            server = cls(address, session)
            server._object_info = await server.call("/object_info")
            yield server

    async def call(self, path: str, data: Any = None) -> Any:
        """The JSON answer to a GET request, or to a POST request when there is `data`."""
        async with self._request(path, ANSWER_TIME, json=data) as answer:
            return await _json(answer)

    @asynccontextmanager
    async def _request(self, path: str, seconds: float, **options: Any) -> AsyncIterator[Any]:
        """An answer with status 200; other answers and connection problems are error messages."""
        aiohttp = _aiohttp()
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIME, sock_read=ANSWER_TIME)
        method = "POST" if options.get("json", options.get("data")) is not None else "GET"
        try:
            async with self._session.request(
                method, self.url + path, timeout=timeout, allow_redirects=False, **options
            ) as answer:
                if answer.status != 200:
                    raise await _rejection(answer)
                yield answer
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, aiohttp.InvalidURL):
                raise
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> RuntimeError:
        reason = clean(error) or type(error).__name__
        return RuntimeError(f"no ComfyUI answers at {self.url} ({reason}): start it, or check the address")

    def definition(self, class_type: str) -> Definition | None:
        """The server's definition of a node class."""
        info = self._object_info.get(class_type)
        if info is None:
            return None
        name = clean(info.get("display_name") or class_type)
        return Definition.from_declaration(
            class_type, name, info["input"], info["output"], bool(info.get("output_node"))
        )

    @asynccontextmanager
    async def messages(self, quiet: float) -> AsyncIterator[AsyncIterator[dict | None]]:
        """The server's messages; None whenever none came for `quiet` seconds."""
        aiohttp = _aiohttp()
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        try:
            connecting = self._session.ws_connect(address, max_msg_size=MAX_MESSAGE)
            connection = await asyncio.wait_for(connecting, CONNECT_TIME)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._no_answer(error) from error

        async def receive() -> AsyncIterator[dict | None]:
            while True:
                try:
                    message = await connection.receive(timeout=quiet)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield _parsed(message.data)
                elif message.type is not aiohttp.WSMsgType.BINARY:  # binary messages are previews
                    raise RuntimeError(f"the server at {self.url} closed the connection")

        try:
            yield receive()
        finally:
            await connection.close()

    async def upload(self, path: Path) -> str:
        """Send a file into the server's input folder; returns its name there, which may be a new one."""
        with path.open("rb") as file:
            form = _aiohttp().FormData()
            form.add_field("image", file, filename=path.name, content_type="application/octet-stream")
            async with self._request("/upload/image", TRANSFER_TIME, data=form) as answer:
                entry = await _json(answer)
        return "/".join(str(name) for name in (entry.get("subfolder"), entry["name"]) if name)

    async def download(self, entry: dict[str, str], target: Path) -> Path:
        """Fetch one result; the file appears under its name when it is complete."""
        query = {key: str(entry.get(key, "")) for key in ("filename", "subfolder", "type")}
        uncompressed = {"Accept-Encoding": "identity"}  # so that the length can be checked
        with replacing(target) as temporary, temporary.open("wb") as file:
            async with self._request("/view", TRANSFER_TIME, params=query, headers=uncompressed) as answer:
                size = 0
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    if size > MAX_DOWNLOAD:
                        raise RuntimeError(f"{target.name} has more than {MAX_DOWNLOAD >> 30} GB")
                    file.write(chunk)
                if answer.content_length not in (None, size):
                    raise RuntimeError(
                        f"{target.name} is incomplete: {size} of {answer.content_length} bytes arrived"
                    )
        return target


async def _json(answer: Any) -> Any:
    """The JSON body of an answer; None for an empty one."""
    body = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > MAX_ANSWER:
            raise RuntimeError(f"the server's answer has more than {MAX_ANSWER >> 20} MB: is it a ComfyUI?")
    return _parsed(body) if body.strip() else None


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RuntimeError("the server's answer is not JSON: is it a ComfyUI?") from error


async def _rejection(answer: Any) -> Exception:
    """ComfyUI's answer to a graph that it rejects, as one sentence with the node's name."""
    status = f"the server answered {answer.status} {clean(answer.reason)}"
    try:
        body = await _json(answer)
    except RuntimeError:
        return RuntimeError(status)
    if not isinstance(body, dict):
        return RuntimeError(status)
    node_errors = body.get("node_errors")
    for node, report in node_errors.items() if isinstance(node_errors, dict) else ():
        first = (report.get("errors") or [{}])[0]
        details = ": ".join(clean(text) for text in (first.get("message"), first.get("details")) if text)
        return ValueError(
            f"ComfyUI rejects {clean(report.get('class_type'))} (node {clean(node)}): {details}"
        )
    error = body.get("error")
    texts = (error.get("message"), error.get("details")) if isinstance(error, dict) else (error,)
    return ValueError("ComfyUI rejects the graph: " + " ".join(clean(text) for text in texts if text))
