"""The help pages: what they name exists, and they can be shown in ComfyUI's narrow panel."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from reelbrush import nodes

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "web" / "docs"
IDS = sorted(nodes.NODE_CLASS_MAPPINGS)
NAMES = nodes.NODE_DISPLAY_NAME_MAPPINGS
WORKFLOWS = {path.stem: path for path in (ROOT / "workflows").glob("*.json")}
IDENTIFIER = re.compile(r"[`*]([a-z][a-z0-9]*(?:_[a-z0-9]+)*)[`*]")
# Core nodes' inputs that pages mention, and words for code or files that look like names of inputs.
OTHERS = {"add_noise", "ddim_uniform", "transformers", "none", "nan", "all"}


def page(node_id):
    return (DOCS / f"{node_id}.md").read_text(encoding="utf-8")


def inputs(node_id):
    groups = nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    return {name: kind for group in ("required", "optional") for name, kind in groups.get(group, {}).items()}


def outputs(node_id):
    return list(getattr(nodes.NODE_CLASS_MAPPINGS[node_id], "RETURN_NAMES", ()))


@cache
def words(node_id):
    """Names of a node's inputs and outputs, and the choices of its combos."""
    choices = {c for kind, *_ in inputs(node_id).values() if isinstance(kind, list) for c in kind}
    return {*inputs(node_id), *outputs(node_id), *choices}


def listed(text, title):
    """The names before the dashes in the list with this title."""
    found = re.search(rf"^\*\*{title}\*\*\n\n((?:- .*\n|  .*\n)*)", text, re.MULTILINE)
    items = re.findall("^- ((?:`[^`]+`(?:, )?)+) \u2013 ", found[1] if found else "", re.MULTILINE)
    return [name for item in items for name in re.findall(r"`([^`]+)`", item)]


@pytest.mark.parametrize("node_id", IDS)
def test_a_page_describes_the_inputs_that_its_node_has(node_id):
    text = page(node_id)
    assert text.startswith(f"# {NAMES[node_id]}\n")
    assert "\n**How to wire it.** " in text
    assert sorted(listed(text, "Inputs")) == sorted(inputs(node_id))
    assert listed(text, "Outputs") in ([], outputs(node_id))


@pytest.mark.parametrize("node_id", IDS)
def test_names_in_a_page_exist(node_id):
    text = page(node_id)
    mentioned = [i for i, name in NAMES.items() if i == node_id or name in text]
    known = OTHERS.union(WORKFLOWS, *(words(i) for i in mentioned))
    unknown = set(IDENTIFIER.findall(text)) - known
    assert not unknown, "an input of this node, or of a node that the page names"


@pytest.mark.parametrize("node_id", IDS)
def test_workflows_that_a_page_names_have_its_node(node_id):
    line = re.search(r"^Workflows?: (.*)", page(node_id), re.MULTILINE)
    for name in re.findall(r"`(\w+)`", line[1] if line else ""):
        types = {node["type"] for node in json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))["nodes"]}
        assert node_id in types, name


@pytest.mark.parametrize("node_id", IDS)
def test_a_page_fits_the_panel(node_id):
    text = page(node_id)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (DOCS / target).is_file(), f"{target}: links are not resolved"
    for image in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert (DOCS / image).stat().st_size <= 60_000, image
    assert not re.search(r"^\|", text, re.MULTILINE), (
        "tables are cut off in a panel of 200 pixels: use a list"
    )
    assert len(text.splitlines()) <= 90
