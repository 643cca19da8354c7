"""Broken graph files: parts of two small graphs are replaced, removed and swapped, or the text is damaged."""

import contextlib
import copy
import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from outcomes import Log, problem

from reelbrush import __main__ as command
from reelbrush.nodes.video.lazy_video import LazyVideo

API = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}, "_meta": {"title": "Clip"}},
    "2": {
        "class_type": "ReelBrushTrimVideo",
        "inputs": {"video": ["1", 0], "start": 1, "frames": 3, "every_nth": 1, "max_side": 0},
    },
    "3": {"class_type": "GetVideoComponents", "inputs": {"video": ["2", 0]}},
    "4": {"class_type": "ImageScale", "inputs": {"image": ["3", 0], "upscale_method": "area"}},
    "5": {"class_type": "CreateVideo", "inputs": {"images": ["4", 0], "fps": ["6", 0]}},
    "6": {"class_type": "PrimitiveFloat", "inputs": {"value": 12.0}},
    "7": {
        "class_type": "ReelBrushSaveVideo",
        "inputs": {"video": ["5", 0], "filename_prefix": "video/a", "format": "mkv", "codec": "ffv1"},
    },
}
API["4"]["inputs"] |= {"width": 16, "height": 16, "crop": "disabled"}
API["7"]["inputs"] |= {"quality": 20, "resume": False}
UI = {
    "nodes": [
        {
            "id": 1,
            "type": "LoadVideo",
            "outputs": [{"type": "VIDEO"}],
            "widgets_values": ["clip.mp4", "image"],
        },
        {
            "id": 2,
            "type": "Reroute",
            "inputs": [{"name": "", "type": "*", "link": 1}],
            "outputs": [{"type": "*"}],
        },
        {
            "id": 3,
            "type": "sub",
            "inputs": [{"name": "v", "type": "VIDEO", "link": 2}],
            "widgets_values": [4],
        },
        {"id": 4, "type": "PrimitiveNode", "outputs": [{"type": "STRING"}], "widgets_values": ["b", "fixed"]},
        {"id": 5, "type": "SaveVideo", "mode": 0, "title": "Out", "widgets_values": ["v/b", "mp4", "h264"]},
        {"id": 6, "type": "MarkdownNote", "widgets_values": ["# Note"]},
    ],
    "links": [[1, 1, 0, 2, 0, "V"], [2, 2, 0, 3, 0, "V"], [3, 3, 0, 5, 0, "V"], [4, 4, 0, 5, 1, "STRING"]],
    "definitions": {
        "subgraphs": [
            {
                "id": "sub",
                "name": "Cut",
                "nodes": [
                    {
                        "id": 9,
                        "type": "ReelBrushTrimVideo",
                        "inputs": [{"name": "video", "type": "VIDEO", "link": 1}],
                        "outputs": [{"type": "VIDEO"}],
                        "widgets_values": [0, 3, 1, 0],
                    }
                ],
                "inputs": [{"name": "v", "type": "VIDEO", "linkIds": [1]}],
                "outputs": [{"name": "o", "type": "VIDEO", "linkIds": [2]}],
                "links": [
                    {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 9, "target_slot": 0},
                    {"id": 2, "origin_id": 9, "origin_slot": 0, "target_id": -20, "target_slot": 0},
                ],
            }
        ]
    },
    "version": 0.4,
}
UI["nodes"][4]["inputs"] = [
    {"name": "video", "type": "VIDEO", "link": 3},
    {"name": "filename_prefix", "type": "STRING", "link": 4, "widget": {"name": "filename_prefix"}},
]
JUNK = [
    None, True, False, 0, -1, 1, 5, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", ".", "..", "../x", "/", "/etc/passwd", "\0", "\n", "a\x1b[31m",
    "é" * 300, "\ud800",
    "*", "-1", "1e9", "%width%", "CON", "ReelBrushX", "SaveVideo", "Reroute", [], [[]], {}, [None],
    ["1", 0], ["1", -1], ["99", 0], ["7", 0], [1, 2, 3], {"a": 1}, {"__value__": 1}, {"__value__": ["1", 0]},
]  # fmt: skip


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    torch.manual_seed(0)
    LazyVideo.from_frames(torch.rand(6, 32, 48, 3), 12).save_to(folder / "input" / "clip.mp4")
    return SimpleNamespace(folder=folder, log=Log())


def count(state: SimpleNamespace) -> int:
    return 1000


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a JSON value."""
    found = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += [(value, key), *places(inner)]
    return found


def broken(data: Any, rng: random.Random) -> str:
    """JSON text of the graph after one to three changes."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(places(data) or [([None], 0)])
        match rng.randrange(7):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(JUNK))
            case 3:
                del holder[key]
            case 4:
                other, place = rng.choice(places(data) or [([None], 0)])
                holder[key] = copy.deepcopy(other[place])
            case 5 if isinstance(holder, dict):
                holder[str(rng.choice(JUNK))] = holder.pop(key)
            case 5 | 6:
                deep: Any = holder[key]
                for _ in range(rng.choice((3, 400))):
                    deep = [deep] if rng.random() < 0.5 else {"a": deep}
                holder[key] = deep
    return json.dumps(data)


def damaged(text: str, rng: random.Random) -> bytes:
    """The text with a wrong encoding, cut, or with bytes changed."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    match rng.randrange(6):
        case 0:
            return b"\xef\xbb\xbf" + bytes(data)
        case 1:
            return text.encode("utf-16", "surrogatepass")
        case 2:
            return bytes(data[: rng.randrange(len(data))])
        case 3:
            return bytes(data).replace(b": ", b": " + b"9" * rng.choice((4000, 5000)), 1)
        case 4:
            at = rng.randrange(len(data))
            data[at : at + 1] = rng.choice((b"", b"\xff", b"\0", b"[" * 100_000, b'{"a":' * 5000, b"NaN"))
            return bytes(data)
        case _:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(data)


def case(state: SimpleNamespace, number: int) -> str:
    rng = random.Random(f"graph {number}")
    text = broken(API if number % 2 else UI, rng)
    path = state.folder / "g.json"
    path.write_bytes(damaged(text, rng) if number % 5 == 0 else text.encode("utf-8", "surrogatepass"))
    out, errors = io.StringIO(), io.StringIO()
    settings = ["--set", rng.choice(("1.file=", "7.quality=x", "2.start=1e9", "=", "Clip.file=..", "3.a=b"))]
    state.log.texts.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = command.main(["render", str(path), *(settings if number % 7 == 0 else [])])
    outside = [p.name for p in state.folder.iterdir()]
    if sorted(outside) != ["g.json", "input", "models", "output", "temp"]:
        return f"failure: files outside the output folder: {outside}"
    left = [p for p in (state.folder / "output").rglob("*") if p.name.endswith(".part")]
    if left:
        return f"failure: left {left}"
    if code == 0:
        files = [Path(line) for line in out.getvalue().splitlines()]
        if not all(file.is_file() for file in files):
            return f"failure: it names files that do not exist: {files}"
        return "warning: " + state.log.texts[0] if state.log.texts else "result"
    said = errors.getvalue()
    if "--debug shows" in said or not said.startswith("reelbrush: ") or said.count("\n") != 1:
        return f"failure: {said[:300]!r}"
    wrong = problem(said.removeprefix("reelbrush: ").rstrip("\n"))
    return f"failure: {wrong}" if wrong else f"message: {said.strip()}"
