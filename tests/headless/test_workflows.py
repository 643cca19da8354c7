"""The shipped workflows, as the headless runner reads them: every value is one that its node takes."""

import json
from pathlib import Path

import pytest

from reelbrush.nodes import headless
from reelbrush.nodes.graph import Link
from reelbrush.nodes.graphfile import parse
from reelbrush.nodes.uigraph import matches

FOLDER = Path(__file__).parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def data(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_every_reelbrush_node_is_there_and_takes_what_it_is_given(data, home):
    graph = parse(data, headless.definition)
    ours = [node for node in graph.nodes.values() if node.kind.startswith("ReelBrush")]
    assert ours
    for node in ours:
        known = headless.definition(node.kind)
        assert known is not None, node
        assert set(node.inputs) <= set(known.inputs), node
        for given in known.inputs.values():
            value = node.inputs.get(given.name)
            if value is None:
                assert not given.required, f"{node}: {given.name} is not connected"
            elif isinstance(value, Link):
                origin = headless.definition(graph.nodes[value.node].kind)
                gives = origin.outputs[value.slot] if origin else "*"
                assert matches(gives, given.type), f"{node}: {given.name} takes {given.type}, not {gives}"
            elif not (given.choices is not None and Path(str(value)).suffix):  # a file that is not here
                headless._checked(node, given, value, free=False)


def test_everything_that_runs_is_in_order_and_something_is_saved_or_shown(data, home):
    graph = parse(data, headless.definition)
    assert {node.id for node in graph.order(graph.nodes)} == set(graph.nodes)
    assert any((d := headless.definition(node.kind)) and d.is_output for node in graph.nodes.values())


def test_a_note_says_what_it_does(data):
    notes = [node for node in data["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and any(len(str(note["widgets_values"])) > 100 for note in notes)
