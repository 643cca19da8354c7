"""Folders of numbered pictures: their order, and the text chunks of PNG files that contain a workflow."""

import re
import struct
import zlib
from pathlib import Path

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def pictures_of(folder: Path) -> list[Path]:
    """The folder's pictures in the order of the numbers in their names (2 before 10)."""

    def key(path: Path) -> list:
        return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", path.name)]

    paths = (p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    return sorted(paths, key=key)


def insert_text(png: bytes, text: dict[str, str]) -> bytes:
    """A PNG with tEXt chunks after its header, as ComfyUI writes them; iTXt for text beyond Latin-1."""
    head = len(_SIGNATURE) + 25  # the header chunk: 13 bytes of data and 12 around them
    return png[:head] + b"".join(_chunk(key, value) for key, value in text.items()) + png[head:]


def _chunk(key: str, value: str) -> bytes:
    try:
        kind, data = b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        kind, data = b"iTXt", key.encode("latin-1", "replace") + b"\0\0\0\0\0" + value.encode()
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_text(path: Path) -> dict[str, str]:
    """The text chunks before a PNG's pixels; empty for other files."""
    text: dict[str, str] = {}
    with path.open("rb") as file:
        if file.read(8) != _SIGNATURE:
            return text
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT" or kind == b"IEND":
                break
            data = file.read(length)
            file.seek(4, 1)
            key, _, value = data.partition(b"\0")
            if kind == b"tEXt":
                text[key.decode("latin-1")] = value.decode("latin-1")
            elif kind == b"iTXt" and value[:2] == b"\0\0":
                text[key.decode("latin-1")] = value[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
    return text
