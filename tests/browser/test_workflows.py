"""Every workflow in ComfyUI's browser page, in the classic design and in Nodes 2.0.

Needs COMFYUI_PATH, the package playwright and Debian's chromium. ComfyUI runs with a new base folder, as
after its installation: nothing is in `input/` but what this pack puts there.
"""

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from reelbrush.nodes.video import codec

ROOT = Path(__file__).resolve().parents[2]
COMFYUI, CHROMIUM = os.environ.get("COMFYUI_PATH"), shutil.which("chromium")
DESIGNS = {"classic": False, "nodes 2.0": True}
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
PORT = 8377

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium"),
]
playwright = pytest.importorskip("playwright.sync_api")

BOXES = """() => app.graph._nodes.map(node => {
  const dom = document.querySelector(`[data-node-id="${node.id}"]`);
  const size = dom ? [dom.offsetWidth, dom.offsetHeight] : [node.size[0], node.size[1] + 30];
  return [node.title, node.pos[0], node.pos[1] - 30, ...size];
})"""
UNKNOWN = "() => app.graph._nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
PLAYERS = """() => [...document.querySelectorAll('video')].filter(v => v.readyState >= 2 && v.duration > 1)
  .map(v => v.currentSrc).filter(src => src.includes('type=output') || src.includes('type=temp'))"""


def without_checkpoint(name):
    text = (ROOT / "workflows" / f"{name}.json").read_text()
    return '"models"' not in text and name != "stya2k_train"


class ComfyUI:
    """A running server, and a page that shows it."""

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, page):
        self.page, self.errors = page, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def get(self, path):
        return json.load(urllib.request.urlopen(self.url + path))

    def set(self, name, value):
        kind = {"Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/settings/{name}", json.dumps(value).encode(), kind)
        )

    def open(self, workflow, nodes2):
        """Load a workflow, a name or a file, into a new page."""
        self.set("Comfy.VueNodes.Enabled", nodes2)
        self.set("Comfy.TutorialCompleted", True)
        self.page.goto(self.url, timeout=120_000)
        self.page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        self.page.wait_for_timeout(2500)
        path = workflow if isinstance(workflow, Path) else ROOT / "workflows" / f"{workflow}.json"
        graph = json.loads(path.read_text())
        self.page.evaluate("g => app.loadGraphData(g, true, true)", graph)
        self.page.wait_for_timeout(3000)

    def run(self, seconds=300):
        """Press Run, wait for the end. Gives the status of the run."""
        before = set(self.get("/history"))
        self.page.evaluate("() => app.queuePrompt(0, 1)")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            new = [entry for key, entry in self.get("/history").items() if key not in before]
            if new:
                self.page.wait_for_timeout(3000)
                return new[0]["status"]
            self.page.wait_for_timeout(500)
        raise TimeoutError("the run did not end")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (base / name).mkdir()
    (base / "custom_nodes" / "any-folder").symlink_to(ROOT)
    log = (base / "log.txt").open("w")
    command = [sys.executable, "main.py", "--cpu", "--port", str(PORT), "--base-directory", str(base)]
    process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            time.sleep(1)
            assert process.poll() is None, (base / "log.txt").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{ComfyUI.url}/queue")
                break
            except OSError:
                continue
        yield base
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def browser():
    with playwright.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def comfyui(server, browser):
    page = browser.new_page(viewport={"width": 1800, "height": 1100})
    yield ComfyUI(page)
    page.close()


def overlaps(boxes):
    return [
        (a[0], b[0])
        for a, b in itertools.combinations(boxes, 2)
        if a[1] < b[1] + b[3] and b[1] < a[1] + a[3] and a[2] < b[2] + b[4] and b[2] < a[2] + a[4]
    ]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_without_missing_nodes_overlaps_and_errors(comfyui, name, design):
    comfyui.open(name, DESIGNS[design])
    assert comfyui.page.evaluate(UNKNOWN) == []
    assert overlaps(comfyui.page.evaluate(BOXES)) == []
    assert comfyui.errors == []


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", [w for w in WORKFLOWS if without_checkpoint(w)])
def test_first_run_ends_with_a_playing_result(comfyui, name, design):
    comfyui.open(name, DESIGNS[design])
    status = comfyui.run()
    assert status["status_str"] == "success", status
    assert comfyui.page.evaluate(PLAYERS)
    assert comfyui.errors == []


@pytest.mark.parametrize("design", DESIGNS)
def test_result_is_shown_again_after_a_reload(comfyui, design):
    comfyui.open("stylize_video", DESIGNS[design])
    comfyui.run()
    shown = comfyui.page.evaluate(PLAYERS)
    comfyui.page.reload()
    comfyui.page.wait_for_function("window.app?.graph", timeout=120_000)
    comfyui.page.wait_for_timeout(6000)
    again = comfyui.page.evaluate(PLAYERS)
    assert [url.split("&rand")[0] for url in again] == [url.split("&rand")[0] for url in shown] != []


@pytest.mark.parametrize("design", DESIGNS)
def test_a_result_is_shown_in_its_own_tab(comfyui, design):
    """Another workflow is opened while the first one renders."""
    comfyui.open("stylize_video", DESIGNS[design])
    before, page = set(comfyui.get("/history")), comfyui.page
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_timeout(1000)
    other = json.loads((ROOT / "workflows" / "stya2k_multi_style.json").read_text())
    page.evaluate("g => app.loadGraphData(g, true, true)", other)
    while not set(comfyui.get("/history")) - before:
        page.wait_for_timeout(500)
    page.wait_for_timeout(3000)
    kept = "() => app.graph._nodes.filter(n => n.properties.reelbrush_result).map(n => n.type)"
    assert page.evaluate(kept) == []
    page.get_by_text("Unsaved Workflow (2)").first.click()
    page.wait_for_timeout(6000)
    assert page.evaluate(kept) == ["ReelBrushSaveVideo"]
    assert page.evaluate(PLAYERS)


@pytest.mark.parametrize("design", DESIGNS)
def test_divider_and_play_button_of_compare_videos(comfyui, design):
    comfyui.open("compare_stabilized", DESIGNS[design])
    assert comfyui.run()["status_str"] == "success"
    page = comfyui.page
    page.evaluate(
        "() => app.canvas.centerOnNode(app.graph._nodes.find(n => n.type === 'ReelBrushCompareVideo'))"
    )
    page.wait_for_timeout(1000)
    box = page.locator(".rb-stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    clip = page.evaluate("() => document.querySelectorAll('.rb-stage video')[1].style.clipPath")
    assert 20 < float(clip.split()[-1].rstrip("%)")) < 30
    page.locator(".rb-bar button").click()
    page.wait_for_timeout(1500)
    times = page.evaluate("() => [...document.querySelectorAll('.rb-stage video')].map(v => v.currentTime)")
    assert min(times) > 0 and abs(times[0] - times[1]) < 0.2


@pytest.mark.parametrize("design", DESIGNS)
def test_badges_name_the_pack_and_links_have_colours_in_every_theme(comfyui, design):
    comfyui.open("stya2k_video", DESIGNS[design])
    badges = """() => Object.values(
      document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef').nodeDefsByName
    ).filter(d => d.name.startsWith('ReelBrush')).map(d => d.nodeSource.badgeText)"""
    assert set(comfyui.page.evaluate(badges)) == {"ReelBrush"}
    colours = """() => ['VIDEO', 'REELBRUSH_STYLE', 'REELBRUSH_STYA2K', 'MODEL'].map(type => [
      app.canvas.default_connection_color_byType[type], app.canvas.constructor.link_type_colors[type],
      getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`)])"""
    for theme in ("light", "dark"):
        comfyui.set("Comfy.ColorPalette", theme)
        comfyui.page.evaluate("t => app.extensionManager.setting.set('Comfy.ColorPalette', t)", theme)
        comfyui.page.wait_for_timeout(1500)
        shown = comfyui.page.evaluate(colours)
        assert all(all(kinds) for kinds in shown[:3]), shown
        assert len({kinds[0] for kinds in shown}) == 4


@pytest.mark.parametrize("container", ["mkv", "gif", "mp4"])
def test_a_dropped_clip_opens_its_workflow(comfyui, container):
    graph = json.loads((ROOT / "workflows" / "stya2k_multi_style.json").read_text())
    file = io.BytesIO()
    info = codec.VideoInfo(64, 48, Fraction(24))
    with codec.Writer(file, info, container=container, metadata={"workflow": graph}) as writer:
        writer.write(torch.zeros(48, 64, 3, dtype=torch.uint8), Fraction(0))
    comfyui.open("stylize_video", False)
    comfyui.page.evaluate(
        """async ([data, name]) => {
          const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
          await app.handleFile(new File([bytes], name), 'file_drop');
        }""",
        [base64.b64encode(file.getvalue()).decode(), f"clip.{container}"],
    )
    comfyui.page.wait_for_timeout(2000)
    found = comfyui.page.evaluate("() => app.graph._nodes.map(n => n.type)")
    assert sorted(found) == sorted(node["type"] for node in graph["nodes"])


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_blueprint_is_offered_and_has_no_missing_node(comfyui, path):
    offered = comfyui.get("/global_subgraphs").values()
    assert path.stem in {entry["name"] for entry in offered}
    comfyui.open(path, False)
    inner = "() => [...app.rootGraph.subgraphs.values()].flatMap(s => s.nodes).map(n => n.type)"
    types = comfyui.page.evaluate(inner)
    known = set(comfyui.get("/object_info"))
    assert len(types) > 3 and set(types) <= known
    prompt = comfyui.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert sorted(node["class_type"] for node in prompt.values()) == sorted(types)
    assert comfyui.errors == []


def test_help_pages_fit_into_their_panel_and_show_their_pictures(comfyui):
    comfyui.open("stylize_video", False)
    page, missing = comfyui.page, []
    page.on("response", lambda answer: answer.ok or missing.append(answer.url))
    names = page.evaluate(
        "() => Object.keys(LiteGraph.registered_node_types).filter(n => n.startsWith('ReelBrush'))"
    )
    assert len(names) > 50
    shown, wide = set(), {}
    for name in names:
        page.evaluate(
            """name => { app.graph.clear(); const node = LiteGraph.createNode(name); node.pos = [600, 300];
            app.graph.add(node); app.canvas.selectNode(node); }""",
            name,
        )
        page.wait_for_timeout(400)
        if not page.locator(".markdown-content").count():
            page.locator('[data-testid="info-button"]').first.click()
        page.wait_for_timeout(800)
        title, width, widest = (
            page.evaluate("""() => { const help = document.querySelector('.markdown-content');
          return [help.querySelector('h1').innerText, help.clientWidth,
            Math.max(...[...help.querySelectorAll('p, li, img, table')].map(e => e.scrollWidth))]; }""")
        )
        shown.add(title)
        if widest > width + 2:
            wide[name] = (widest, width)
    assert len(shown) == len(names) and not wide
    assert not [url for url in missing if "/docs/" in url and not url.endswith("/en.md")]
