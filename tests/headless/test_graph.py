"""API-format graphs: reading, ordering, and inputs set from the command line."""

import json
from pathlib import Path

import pytest

from reelbrush.nodes.graph import Definition, Link, apply_settings
from reelbrush.nodes.graphfile import SHIPPED, parse, read, shipped

TYPES = {
    "required": {
        "source": ("VIDEO",),
        "steps": ("INT", {"default": 1}),
        "scale": ("FLOAT", {}),
        "on": ("BOOLEAN", {}),
        "mode": (["1", 2, "three"],),
        "text": ("STRING", {}),
        "file": ("STRING", {}),
    }
}
KINDS = {
    kind: Definition.of(kind, f"A {kind}", TYPES, ["VIDEO"], kind == "Save") for kind in ("Work", "Save")
}


def graph(**nodes):
    """Nodes of links: a="b" hangs a on b."""
    return parse(
        {
            key: {"class_type": "Work", "inputs": {f"i{n}": [on, 0] for n, on in enumerate(needs.split())}}
            for key, needs in nodes.items()
        },
        KINDS.get,
    )


def test_every_node_comes_after_what_it_needs_and_only_what_is_needed_comes():
    order = [n.id for n in graph(a="b c", b="d", c="d", d="", e="a").order(["a"])]
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order[0] == "d" and order[-1] == "a"


def test_a_long_chain_needs_no_recursion():
    names = [f"n{i}" for i in range(3000)]
    found = graph(**dict(zip(names, [*names[1:], ""], strict=True)))
    assert [n.id for n in found.order(["n0"])] == names[::-1]


def test_a_circle_is_named():
    with pytest.raises(ValueError, match=r"circle: .*node c.* > .*node b"):
        graph(a="b", b="c", c="b").order(["a"])


def test_a_link_from_nowhere_is_named():
    with pytest.raises(ValueError, match=r"node a\): its input i0 comes from node x"):
        graph(a="x").order(["a"])


def test_the_api_format_survives_a_round_trip():
    data = {
        "3": {
            "class_type": "Work",
            "inputs": {"source": ["1", 0], "steps": 2, "list": {"__value__": ["a", 1]}},
            "_meta": {"title": "Mine"},
        },
        "1": {"class_type": "Other", "inputs": {}, "_meta": {"title": "Other"}},
    }
    found = parse(data, KINDS.get)
    assert found.nodes["3"].inputs == {"source": Link("1", 0), "steps": 2, "list": ["a", 1]}
    assert found.to_api() == data
    assert parse({"prompt": data, "client_id": "x"}, KINDS.get).to_api() == data


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": 1}', '{"a": {"inputs": {}}}', "not json", "\udcff"])
def test_what_is_no_graph_is_refused_in_words(tmp_path, text):
    (tmp_path / "g.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"g\.json (is no JSON file|holds no graph)"):
        read(tmp_path / "g.json", KINDS.get)


def test_a_missing_file_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no graph file"):
        read(tmp_path / "nix.json", KINDS.get)


# -- --set -------------------------------------------------------------------------------------------

WORK = {
    "1": {"class_type": "Work", "inputs": {"steps": 1}, "_meta": {"title": "First one"}},
    "2": {"class_type": "Work", "inputs": {"steps": 1}, "_meta": {"title": "Twin"}},
    "3": {"class_type": "Work", "inputs": {"steps": ["1", 0]}, "_meta": {"title": "Twin"}},
    "4": {"class_type": "Save", "inputs": {}, "_meta": {"title": "v1.2"}},
}


@pytest.mark.parametrize(
    ("setting", "node", "name", "value"),
    [
        pytest.param("First one.steps=5", "1", "steps", 5, id="by title"),
        pytest.param("first ONE.steps=5", "1", "steps", 5, id="whatever the case"),
        pytest.param("2.scale=0.5", "2", "scale", 0.5, id="by id"),
        pytest.param("save.on=yes", "4", "on", True, id="by kind"),
        pytest.param("v1.2.on=off", "4", "on", False, id="a title with a point"),
        pytest.param("1.mode=2", "1", "mode", 2, id="a choice that is a number"),
        pytest.param("1.text=a=b", "1", "text", "a=b", id="a value with an equals sign"),
        pytest.param("3.steps=9", "3", "steps", 9, id="instead of a link"),
    ],
)
def test_settings(setting, node, name, value):
    found = parse(json.loads(json.dumps(WORK)), KINDS.get)
    apply_settings(found, [setting], KINDS.get)
    assert found.nodes[node].inputs[name] == value and type(found.nodes[node].inputs[name]) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps=5", "not of the form"),
        ("Twin.steps=5", r"2 nodes are called 'Twin': name one by its id \(2, 3\)"),
        ("Nobody.steps=5", r"no node 'Nobody': it has First one \(node 1\)"),
        ("1.stops=5", "no input 'stops': its inputs are source, steps"),
        ("1.steps=five", "steps is a whole number, not 'five'"),
        ("1.scale=x", "scale is a number"),
        ("1.on=maybe", "on is true or false"),
        ("1.source=x", "takes a connection of type VIDEO"),
    ],
)
def test_settings_that_cannot_be(setting, words):
    with pytest.raises(ValueError, match=words):
        apply_settings(parse(WORK, KINDS.get), [setting], KINDS.get)


def test_a_path_that_exists_becomes_absolute_and_text_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").touch()
    found = parse(json.loads(json.dumps(WORK)), KINDS.get)
    file, text = apply_settings(found, ["1.file=clip.mp4", "1.text=clip.mp4"], KINDS.get)
    assert (
        found.nodes["1"].inputs["file"] == str(tmp_path / "clip.mp4") and file.path == tmp_path / "clip.mp4"
    )
    assert found.nodes["1"].inputs["text"] == "clip.mp4" and text.path is None


def test_a_shipped_workflow_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = SHIPPED / "flow_error_report.json"
    assert file.exists()
    assert shipped(Path("flow_error_report")) == shipped(Path("flow_error_report.json")) == file
    assert shipped(Path("../flow_error_report")) == Path("../flow_error_report")
    (tmp_path / "flow_error_report.json").touch()
    assert shipped(Path("flow_error_report.json")) == Path("flow_error_report.json")  # one's own comes first
