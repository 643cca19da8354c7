"""API-format graphs: reading, ordering, and inputs that the command line sets."""

import json
from pathlib import Path

import pytest

from reelbrush.nodes.headless.graph import Definition, Link
from reelbrush.nodes.headless.read import SHIPPED, graph_file, parse, read
from reelbrush.nodes.headless.settings import apply_settings

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
    kind: Definition.from_declaration(kind, f"A {kind}", TYPES, ["VIDEO"], kind == "Save")
    for kind in ("Work", "Save")
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


def test_a_chain_of_20000_nodes_needs_no_recursion():
    names = [f"n{i}" for i in range(20_000)]
    chain = graph(**dict(zip(names, [*names[1:], ""], strict=True)))
    assert [n.id for n in chain.order(["n0"])] == names[::-1]


def test_the_order_of_100000_nodes_takes_linear_time():
    """Every node reads from the two before it: any search per node would take hours."""
    names = [f"n{i}" for i in range(100_000)]
    ladder = graph(**{name: " ".join(names[max(0, i - 2) : i]) for i, name in enumerate(names)})
    assert [n.id for n in ladder.order([names[-1]])] == names


def test_a_branch_is_finished_before_the_next_one_begins():
    order = [
        n.id for n in graph(end="a3 b3", a3="a2", a2="a1", a1="", b3="b2", b2="b1", b1="").order(["end"])
    ]
    assert order in (["a1", "a2", "a3", "b1", "b2", "b3", "end"], ["b1", "b2", "b3", "a1", "a2", "a3", "end"])


def test_a_cycle_is_named():
    with pytest.raises(ValueError, match=r"cycle: .*node c.* > .*node b"):
        graph(a="b", b="c", c="b").order(["a"])


def test_the_message_about_a_long_cycle_is_short():
    names = [f"n{i}" for i in range(20_000)]
    with pytest.raises(ValueError, match=r"cycle: .* > \.\.\.;") as caught:
        graph(**dict(zip(names, [*names[1:], names[0]], strict=True))).order(["n0"])
    assert len(str(caught.value)) < 500


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
    parsed = parse(data, KINDS.get)
    assert parsed.nodes["3"].inputs == {"source": Link("1", 0), "steps": 2, "list": ["a", 1]}
    assert parsed.to_api() == data
    assert parse({"prompt": data, "client_id": "x"}, KINDS.get).to_api() == data


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": 1}', '{"a": {"inputs": {}}}', "not json", "\udcff"])
def test_what_is_no_graph_is_an_error_message(tmp_path, text):
    (tmp_path / "g.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"g\.json (is not a JSON file|contains no graph)"):
        read(tmp_path / "g.json", KINDS.get)


def test_a_byte_order_mark_is_accepted(tmp_path):
    """Some editors on Windows write one."""
    (tmp_path / "g.json").write_text(json.dumps(WORK), encoding="utf-8-sig")
    assert list(read(tmp_path / "g.json", KINDS.get).nodes) == list(WORK)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000 + "]" * 100_000])
def test_a_value_that_python_cannot_read_is_an_error_message(tmp_path, value):
    (tmp_path / "g.json").write_text(json.dumps(WORK).replace('"steps": 1', f'"steps": {value}', 1))
    with pytest.raises(ValueError, match=r"g\.json is not a JSON file"):
        read(tmp_path / "g.json", KINDS.get)


@pytest.mark.parametrize("broken", [{"inputs": [1]}, {"inputs": "x"}, {"class_type": 5}])
def test_a_broken_node_is_named(broken):
    with pytest.raises(ValueError, match=r"contains no graph that can be read .node '2' is broken"):
        parse(WORK | {"2": WORK["2"] | broken}, KINDS.get)


@pytest.mark.parametrize("meta", ["x", None, [], {"title": 5}, {"title": ["a"]}])
def test_a_title_may_be_anything(meta):
    parsed = parse(WORK | {"2": WORK["2"] | {"_meta": meta}}, KINDS.get)
    assert isinstance(parsed.nodes["2"].title, str)
    assert parsed.find("Twin").id == "3"


def test_a_missing_file_is_an_error_message(tmp_path):
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
    work = parse(json.loads(json.dumps(WORK)), KINDS.get)
    apply_settings(work, [setting], KINDS.get)
    assert work.nodes[node].inputs[name] == value and type(work.nodes[node].inputs[name]) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps=5", "does not have the form"),
        ("Twin.steps=5", r"2 nodes are called 'Twin': use one of their ids \(2, 3\)"),
        ("Nobody.steps=5", r"no node 'Nobody': it has First one \(node 1\)"),
        ("1.stops=5", "no input 'stops': its inputs are source, steps"),
        ("1.steps=five", "steps is a whole number, not 'five'"),
        ("1.scale=x", "scale is a number"),
        ("1.on=maybe", "on is true or false"),
        ("1.source=x", "takes a connection of type VIDEO"),
    ],
)
def test_settings_that_are_errors(setting, words):
    with pytest.raises(ValueError, match=words):
        apply_settings(parse(WORK, KINDS.get), [setting], KINDS.get)


def test_a_path_that_exists_becomes_absolute_and_text_stays_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").touch()
    work = parse(json.loads(json.dumps(WORK)), KINDS.get)
    file, text = apply_settings(work, ["1.file=clip.mp4", "1.text=clip.mp4"], KINDS.get)
    assert work.nodes["1"].inputs["file"] == str(tmp_path / "clip.mp4") and file.path == tmp_path / "clip.mp4"
    assert work.nodes["1"].inputs["text"] == "clip.mp4" and text.path is None


def test_a_shipped_workflow_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = SHIPPED / "flow_error_report.json"
    assert file.exists()
    assert graph_file(Path("flow_error_report")) == graph_file(Path("flow_error_report.json")) == file
    assert graph_file(Path("../flow_error_report")) == Path("../flow_error_report")
    (tmp_path / "flow_error_report.json").touch()
    assert graph_file(Path("flow_error_report.json")) == Path(
        "flow_error_report.json"
    )  # the user's own file comes first
