"""The shipped workflows: every node exists and accepts the values of the file."""

import json
from pathlib import Path

import pytest

from reelbrush.nodes.headless.catalog import local_catalog
from reelbrush.nodes.headless.check import checked_value
from reelbrush.nodes.headless.graph import Link, types_match
from reelbrush.nodes.headless.read import parse

FOLDER = Path(__file__).parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def data(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_every_reelbrush_node_exists_and_accepts_its_inputs(data, home):
    catalog = local_catalog()
    graph = parse(data, catalog)
    ours = [node for node in graph.nodes.values() if node.class_type.startswith("ReelBrush")]
    assert ours
    for node in ours:
        definition = catalog(node.class_type)
        assert definition is not None, node
        assert set(node.inputs) <= set(definition.inputs), node
        for declared in definition.inputs.values():
            value = node.inputs.get(declared.name)
            if value is None:
                assert not declared.required, f"{node}: {declared.name} is not connected"
            elif isinstance(value, Link):
                origin = catalog(graph.nodes[value.node].class_type)
                output = origin.outputs[value.slot] if origin else "*"
                assert types_match(output, declared.type), f"{node}: {declared.name} takes {declared.type}"
            elif not (declared.choices is not None and Path(str(value)).suffix):  # a file that is not here
                checked_value(node, declared, value)


def test_all_nodes_can_be_ordered_and_something_is_saved_or_shown(data, home):
    catalog = local_catalog()
    graph = parse(data, catalog)
    assert {node.id for node in graph.order(graph.nodes)} == set(graph.nodes)
    assert any((d := catalog(node.class_type)) and d.is_output for node in graph.nodes.values())


def test_a_note_describes_it(data):
    notes = [node for node in data["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and any(len(str(note["widgets_values"])) > 100 for note in notes)
    assert not any("`" in str(note["widgets_values"]) for note in notes)  # blue on brown cannot be read


def test_the_template_browser_has_a_picture_of_each():
    for path in FILES:
        assert path.with_suffix(".jpg").stat().st_size < 100_000, f"{path.stem}: see lab/thumbnails.py"


def test_diffstyler_uses_the_settings_of_the_official_code_and_measures_flicker_before_and_after(home):
    data = json.loads((FOLDER / "diffstyler_regions_sd15.json").read_text(encoding="utf-8"))
    nodes = {node.class_type: node for node in parse(data, local_catalog()).nodes.values()}
    assert nodes["ReelBrushInject"].inputs["preset"] == "official code"
    decoded, stabilized, error = (
        nodes[f"ReelBrush{name}"] for name in ("DecodeVideo", "StabilizeVideo", "FlowErrorVideo")
    )
    assert stabilized.inputs["stylized"].node == error.inputs["other"].node == decoded.id
    assert error.inputs["stylized"].node == nodes["SaveVideo"].inputs["video"].node == stabilized.id
