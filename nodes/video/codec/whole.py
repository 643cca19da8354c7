"""Whether a Matroska, WebM or GIF file is whole, read without PyAV. FFmpeg skips damaged parts silently."""

from typing import BinaryIO

_ENTERED = {0x18538067, 0x1F43B675}  # Segment, Cluster: their content is elements, too
_KNOWN = {
    0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469,  # EBML,
    # SeekHead, Info, Tracks, Cues, Tags, Chapters, Attachments
    0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, 0xEC, 0xBF,  # in clusters: times, blocks; Void, CRC-32
}  # fmt: skip


def matroska_size(head: bytes) -> int:
    """The file's size from the header of its segment; 0 if it has none (live recordings)."""
    try:
        size, at = _number(head, 4)  # after the EBML header's id
        segment = at + size + 4  # after the segment's id
        size, at = _number(head, segment)
    except IndexError:
        return 0
    unknown = size == (1 << 7 * (at - segment)) - 1
    return 0 if unknown else at + size


def is_whole(file: BinaryIO, kind: str) -> bool:
    """False if a part of the file is damaged or missing; `kind` is FFmpeg's name for the format."""
    return _matroska(file) if "matroska" in kind else _gif(file) if kind == "gif" else True


def _matroska(file: BinaryIO) -> bool:
    """False if a part of the file is not made of known elements, one after the other."""
    end, at = matroska_size(file.read(4096)) or file.seek(0, 2), 0
    while at < end:
        file.seek(at)
        head = file.read(12)
        try:
            length = 9 - head[0].bit_length()
            kind = int.from_bytes(head[:length], "big")
            size, content = _number(head, length)
        except IndexError:
            return False
        if kind not in _KNOWN | _ENTERED:
            return False
        at += content if kind in _ENTERED else content + size
    return True


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An EBML number and the position after it. The leading zeros of the first byte give its length."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return value, at + length


def _gif(file: BinaryIO) -> bool:
    """False if the file is not made of extensions and pictures, one after the other up to its end mark."""
    data, at = file.read(), 13
    try:
        at += _colours(data[10])
        while data[at] != 0x3B:
            if data[at] == 0x2C:  # a picture: place and size, its colours, the size of a code
                at += 11 + _colours(data[at + 9])
            elif data[at] == 0x21:  # an extension and its kind
                at += 2
            else:
                return False
            while data[at]:  # blocks of data
                at += data[at] + 1
            at += 1
    except IndexError:
        return False
    return True


def _colours(flags: int) -> int:
    """The bytes of a table of colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
