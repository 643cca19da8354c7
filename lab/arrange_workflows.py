"""Arranges the nodes of workflows/*.json from left to right, without overlaps, in both node designs.

    python lab/arrange_workflows.py http://127.0.0.1:8188 [workflow.json ...]

Needs a running ComfyUI with this pack, the package playwright and Chromium. The sizes of nodes are read from
the browser: the classic design and Nodes 2.0 draw them differently, so each node gets the larger of the two.
"""

import argparse
import json
import logging
import math
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

log = logging.getLogger("arrange")
ROOT = Path(__file__).resolve().parents[1]
GAP_X, GAP_Y, TITLE, MARGIN = 90, 50, 30, 30
NOTE_WIDTH = 440
HEIGHTS = {"LoadImage": 410, "LoadImageMask": 430, "LoadVideo": 360, "PreviewImage": 340, "MaskPreview": 340}
HEIGHTS |= {"SaveImage": 380, "SaveVideo": 440, "ReelBrushSaveVideo": 560}  # with their picture or player
MEASURE = """() => Object.fromEntries(app.graph._nodes.map(node => {
  const least = node.computeSize(), dom = document.querySelector(`[data-node-id="${node.id}"]`);
  const scale = app.canvas.ds.scale;
  const drawn = dom ? [dom.offsetWidth, dom.offsetHeight] : [0, 0];
  return [node.id, [Math.max(least[0], drawn[0]), Math.max(least[1] + 30, drawn[1])]];
}))"""


def measure(page: Page, url: str, graph: dict, vue: bool) -> dict[int, list[float]]:
    """The least size of every node with its title, as drawn in one of the designs."""
    body = json.dumps(vue).encode()
    request = urllib.request.Request(
        f"{url}/settings/Comfy.VueNodes.Enabled", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()
    page.goto(url, timeout=120000)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120000)
    page.wait_for_timeout(2500)
    small = json.loads(json.dumps(graph))
    for node in small["nodes"]:
        node["size"] = [200, 60]
    page.evaluate("g => window.app.loadGraphData(g, true, true)", small)
    page.evaluate("() => { app.canvas.ds.scale = 1; }")
    page.wait_for_timeout(3000)
    return {int(k): v for k, v in page.evaluate(MEASURE).items()}


def size_of(node: dict, least: list[list[float]]) -> list[int]:
    """The size without the title."""
    if "Note" in node["type"]:
        text = node["widgets_values"][0]
        lines = sum(max(1, math.ceil(len(line) / 58)) for line in text.split("\n"))
        return [NOTE_WIDTH, 60 + 21 * lines]
    width = max(300, *(w for w, _ in least))
    height = HEIGHTS.get(node["type"]) or max(h for _, h in least) - TITLE
    return [math.ceil(width / 10) * 10, math.ceil(height / 10) * 10]


def columns(graph: dict) -> list[list[int]]:
    """Node ids by column: loaders first, every other node right of its inputs, results in the last one."""
    nodes = {n["id"]: n for n in graph["nodes"] if "Note" not in n["type"]}
    links = [(a, b) for _, a, _, b, *_ in graph["links"] if a in nodes and b in nodes]
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for a, b in links:
            depth[b] = max(depth[b], depth[a] + 1)
    # A node that feeds only late nodes stands next to the first of them; loaders stay in the first column.
    for node in sorted(nodes, key=depth.get, reverse=True):
        after = [depth[b] for a, b in links if a == node]
        if after and any(b == node for _, b in links):
            depth[node] = min(after) - 1
    last = max(depth.values())
    for node in nodes:
        if not any(a == node for a, _ in links):
            depth[node] = last
    table: list[list[int]] = [[] for _ in range(last + 1)]
    for node in nodes:
        table[depth[node]].append(node)
    neighbours = {n: [a for a, b in links if b == n] + [b for a, b in links if a == n] for n in nodes}
    for _ in range(12):  # fewer crossings: order each column by where its neighbours stand
        place = {n: i / max(1, len(column)) for column in table for i, n in enumerate(column)}
        for column in table:
            column.sort(key=lambda n: sum(place[m] for m in neighbours[n]) / max(1, len(neighbours[n])))
            place |= {n: i / max(1, len(column)) for i, n in enumerate(column)}
    return [column for column in table if column]


def arrange(graph: dict, sizes: list[dict[int, list[float]]]) -> None:
    """Set position and size of every node, and the groups."""
    nodes = {n["id"]: n for n in graph["nodes"]}
    for node in nodes.values():
        node["size"] = size_of(node, [s[node["id"]] for s in sizes if node["id"] in s])
        for name in ("color", "bgcolor"):  # the theme's colours are readable in every theme
            node.pop(name, None)
    notes = [n for n in nodes.values() if "Note" in n["type"]]
    x, y = 0, 0
    for note in notes:
        note["title"], note["pos"] = "About this workflow", [x, y]
        y += note["size"][1] + TITLE + GAP_Y
    if notes:
        x += NOTE_WIDTH + GAP_X
    boxes = []
    for column in columns(graph):
        y, width = 0, max(nodes[n]["size"][0] for n in column)
        for n in column:
            nodes[n]["pos"], nodes[n]["size"][0] = [x, y], width
            y += nodes[n]["size"][1] + TITLE + GAP_Y
        boxes.append((x, width, y - GAP_Y))
        x += width + GAP_X
    graph["groups"] = []
    parts = {"Inputs": boxes[:1], "Method": boxes[1:-1], "Result": boxes[-1:]}
    for number, (title, part) in enumerate(parts.items(), 1):
        if not part:
            continue
        left, right = part[0][0] - MARGIN, part[-1][0] + part[-1][1] + MARGIN
        height = max(h for *_, h in part) + 2 * MARGIN + TITLE
        bounding = [left, -TITLE - 2 * MARGIN - 10, right - left, height + 10]
        color = {"Inputs": "#3f789e", "Method": "#88A", "Result": "#8A8"}[title]
        graph["groups"].append(
            {"id": number, "title": title, "bounding": bounding, "color": color, "flags": {}}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("files", nargs="*", type=Path, default=sorted((ROOT / "workflows").glob("*.json")))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1800, "height": 1100})
        graphs = {file: json.loads(file.read_text()) for file in args.files}
        sizes = {
            file: [measure(page, args.url, g, vue) for vue in (False, True)] for file, g in graphs.items()
        }
        for file, graph in graphs.items():
            arrange(graph, sizes[file])
            file.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n")
            log.info("arranged %s", file.name)
        browser.close()


if __name__ == "__main__":
    main()
