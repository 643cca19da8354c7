"""A websocket client of one page (RFC 6455): enough to follow a ComfyUI, without a dependency."""

import base64
import os
import socket
import ssl
import struct
from urllib.parse import urlsplit

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """`with WebSocket(url) as ws: ws.receive()`. Receiving raises TimeoutError when nothing comes."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, timeout: float = 10.0):
        parts = urlsplit(url)
        secure = parts.scheme in ("wss", "https")
        port = parts.port or (443 if secure else 80)
        self._buffer = b""
        self._socket = socket.create_connection((parts.hostname, port), timeout)
        try:
            if secure:
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=parts.hostname)
            self._shake_hands(parts.hostname, port, f"{parts.path or '/'}?{parts.query}", headers or {})
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, host: str, port: int, target: str, headers: dict[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(f"no websocket there: {head.splitlines()[0].decode('latin-1')}")

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        self._buffer += data

    def _take(self, count: int, offset: int) -> bytes:
        """Bytes of the buffer, which stays whole until a frame is: a timeout loses nothing."""
        while len(self._buffer) < offset + count:
            self._more()
        return self._buffer[offset : offset + count]

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._take(2, 0)
        at, length = 2, second & 0x7F
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self._take(size, at), "big")
            at += size
        payload = self._take(length, at)
        self._buffer = self._buffer[at + length :]
        return bool(first & 0x80), first & 0x0F, payload

    def receive(self) -> str | bytes:
        """The next message; pings are answered on the way."""
        kind, parts = 0, []
        while True:
            final, opcode, payload = self._frame()
            if opcode == _CLOSE:
                raise ConnectionError("the server closed the connection")
            if opcode == _PING:
                self._send(_PONG, payload)
            if opcode in (_PING, _PONG):
                continue
            kind = opcode or kind
            parts.append(payload)
            if final:
                data = b"".join(parts)
                return data.decode() if kind == _TEXT else data

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        else:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        self._socket.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send(_CLOSE, b"")
        except OSError:
            pass
        finally:
            self._socket.close()
