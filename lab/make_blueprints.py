"""Makes subgraphs/*.json, the blueprints of ComfyUI's node search, from the middle part of workflows.

    python lab/make_blueprints.py

A blueprint has the nodes of a workflow without loaders, notes, previews and save nodes. Connections to those
become its inputs and outputs; the settings that matter become its widgets.
"""

import json
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("Note", "Load", "Save", "Preview", "Checkpoint", "ControlNetLoader")
BLUEPRINTS = {
    "Stylize Video and Measure Flicker (StyA2K)": (
        "stya2k_video",
        "Stylizes a clip with a picture, stabilizes it, and plots its flicker before and after.",
        [("StyA2KApplyVideo", "strength"), ("StyA2KStyle", "size"), ("StabilizeVideo", "strength")],
    ),
    "Style Video by Attention (Z*)": (
        "sample_video_sd15",
        "Inverts a clip of any length and a style picture, and samples the clip with the style's features.",
        [("ZStar", "style_scale"), ("ZStar", "start_percent"), ("SampleVideo", "max_side")],
    ),
    "Two Styles in Regions (DiffStyler)": (
        "diffstyler_regions_sd15",
        "Trains a style LoRA for each of two pictures and uses each in one region of a clip.",
        [("TrainStyleLoRA", "steps"), ("TrimVideo", "frames")],
    ),
    "Distill a Style into a Clip (Attention Distillation)": (
        "ad_video_sd15",
        "Optimizes the frames of a clip of any length until their attention is like the style picture's.",
        [("ADVideo", "content_weight"), ("ADVideo", "steps"), ("ADVideo", "max_side")],
    ),
    "Style from a Reference Picture (Reference Attention)": (
        "reference_attention_sdxl",
        "Samples with the keys and values of a reference picture.",
        [("ReferenceAttention", "mode"), ("ReferenceAttention", "start_percent")],
    ),
    "Style from a Text (AttnStyle)": (
        "attnstyle_video",
        "Trains a small network until the key frames of a clip look like a text, and applies it to the clip.",
        [("AttnStyle", "style_text"), ("AttnStyle", "epochs"), ("KeyFrames", "frames")],
    ),
}


def blueprint(title: str, workflow: dict, about: str, widgets: list[tuple[str, str]]) -> dict:
    """A workflow's middle part as a subgraph, and one node that shows it."""
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"reelbrush/{title}"))
    nodes = {n["id"]: n for n in workflow["nodes"]}
    inner = {i for i, n in nodes.items() if not any(word in n["type"] for word in OUTSIDE)}
    inner |= {i for i, n in nodes.items() if n["type"] == "ReelBrushPreviewVideo"}
    inputs, outputs, links = {}, {}, []
    for number, a, slot, b, place, kind in workflow["links"]:
        if b in inner and a not in inner:
            inputs.setdefault((a, slot), (kind, []))[1].append((number, b, place))
        elif a in inner and b not in inner:
            outputs.setdefault((a, slot), (kind, []))[1].append(number)
        elif a in inner:
            links.append(_link(number, a, slot, b, place, kind))
    left = min(nodes[i]["pos"][0] for i in inner)
    right = max(nodes[i]["pos"][0] + nodes[i]["size"][0] for i in inner)
    names: set[str] = set()
    ports: dict[str, list[dict]] = {"inputs": [], "outputs": []}
    for place, ((a, slot), (kind, ends)) in enumerate(inputs.items()):
        name = _unique(nodes[a].get("title") or nodes[a]["outputs"][slot]["name"], kind, names)
        ports["inputs"].append(_port(key, name, kind, [n for n, *_ in ends], [left - 200, 20 * place]))
        links += [_link(number, -10, place, b, there, kind) for number, b, there in ends]
    used: set[str] = set()
    for place, ((a, slot), (kind, ends)) in enumerate(outputs.items()):
        name = _unique(nodes[a]["outputs"][slot]["name"], kind, used, nodes[a].get("title", ""))
        ports["outputs"].append(_port(key, name, kind, ends[:1], [right + 120, 20 * place]))
        links.append(_link(ends[0], a, slot, -20, place, kind))
    kept = {link["id"] for link in links}
    copies = [json.loads(json.dumps(nodes[i])) for i in sorted(inner)]
    for node in copies:
        for port in node["inputs"]:
            port["link"] = port.get("link") if port.get("link") in kept else None
        for port in node["outputs"]:
            port["links"] = [n for n in port.get("links") or [] if n in kept] or None
    shown = [
        [str(i), name]
        for kind, name in widgets
        for i in sorted(inner)
        if nodes[i]["type"] == f"ReelBrush{kind}"
    ]
    last = max(nodes), max(link["id"] for link in links)
    subgraph = {
        "id": key,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": last[0], "lastLinkId": last[1], "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": title,
        "inputNode": {"id": -10, "bounding": [left - 300, 0, 150, 40 + 20 * len(inputs)]},
        "outputNode": {"id": -20, "bounding": [right + 100, 0, 150, 40 + 20 * len(outputs)]},
        **ports,
        "widgets": [],
        "nodes": copies,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "ReelBrush",
        "description": about,
    }
    node = {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [400, 140 + 30 * len(shown) + 20 * max(len(inputs), len(outputs))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": p["name"], "type": p["type"], "link": None} for p in ports["inputs"]],
        "outputs": [{"name": p["name"], "type": p["type"], "links": []} for p in ports["outputs"]],
        "properties": {"proxyWidgets": shown},
        "widgets_values": [],
        "title": title,
    }
    whole = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": []}
    return whole | {"version": 0.4, "definitions": {"subgraphs": [subgraph]}, "extra": {}}


def _link(number: int, a: int, slot: int, b: int, place: int, kind: str) -> dict:
    return {
        "id": number,
        "origin_id": a,
        "origin_slot": slot,
        "target_id": b,
        "target_slot": place,
        "type": kind,
    }


def _port(key: str, name: str, kind: str, ends: list[int], pos: list[float]) -> dict:
    own = str(uuid.uuid5(uuid.UUID(key), name))
    return {"id": own, "name": name, "type": kind, "linkIds": ends, "pos": pos}


def _unique(wanted: str, kind: str, taken: set[str], more: str = "") -> str:
    """A name for a connection: words, and different from the others."""
    name = wanted.lower() if wanted != kind else kind.removeprefix("REELBRUSH_").lower()
    if kind in ("MODEL", "CLIP", "VAE", "VIDEO"):
        name = kind.lower()
    if name in taken and more:
        name = f"{name} ({more})"
    number, first = 2, name
    while name in taken:
        name, number = f"{first} {number}", number + 1
    taken.add(name)
    return name


def main() -> None:
    folder = ROOT / "subgraphs"
    folder.mkdir(exist_ok=True)
    for title, (name, about, widgets) in BLUEPRINTS.items():
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
        made = blueprint(title, workflow, about, widgets)
        file = folder / f"{title.replace('*', 'Star')}.json"
        file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
