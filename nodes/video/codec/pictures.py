"""Folders of numbered pictures: their order, and the text chunks of PNG files that contain a workflow."""

import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMBER = re.compile(r"-?\d{1,12}(/\d{1,12}|\.\d{1,12})?")
_ORIENTATION = 0x0112  # an EXIF tag
_LARGEST = 10**6  # frames per second, seconds


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


def number(text: dict[str, str], key: str, low: Fraction = Fraction(0)) -> Fraction | None:
    """A number among a picture's texts; None if it is absent, no number or not between `low` and 10^6."""
    value = text.get(key, "").strip()
    try:
        found = Fraction(value) if _NUMBER.fullmatch(value) else None
    except ZeroDivisionError:
        return None
    return found if found is not None and low <= found <= _LARGEST else None


def exif_orientation(source: Any) -> tuple[bool, bool, bool]:
    """Whether a picture is to be transposed, then mirrored in x and in y, according to its EXIF data."""
    from PIL import Image

    try:
        with Image.open(source) as picture:
            number = picture.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError):
        return False, False, False
    return number in (5, 6, 7, 8), number in (2, 3, 6, 7), number in (3, 4, 7, 8)
