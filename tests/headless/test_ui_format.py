"""UI-format files as the front end writes them, and the graph that it would queue."""

from itertools import pairwise

import pytest

from reelbrush.nodes.headless.graph import Definition, Link
from reelbrush.nodes.headless.read import parse

INT, SEED = ("INT", {"default": 7}), ("INT", {"default": 0, "control_after_generate": True})
KINDS = {
    "Load": Definition.from_declaration(
        "Load", "Load It", {"required": {"file": (["a", "b"], {"video_upload": True})}}, ["VIDEO"], False
    ),
    "Work": Definition.from_declaration(
        "Work",
        "Work Hard",
        {
            "required": {"video": ("VIDEO",), "seed": SEED, "steps": INT, "mode": (["fast", "slow"],)},
            "optional": {"mask": ("MASK",), "note": ("STRING", {"default": "none"})},
        },
        ["VIDEO", "IMAGE"],
        False,
    ),
    "Save": Definition.from_declaration(
        "Save", "Save It", {"required": {"video": ("VIDEO",), "name": ("STRING", {})}}, [], True
    ),
}


def node(id, kind, inputs=(), values=None, mode=0, outputs=("VIDEO",), **more):
    """A saved node; inputs are (name, type, link) or (name, type, link, "widget")."""
    ends = [
        {"name": n, "type": t, "link": link, **({"widget": {"name": n}} if extra else {})}
        for n, t, link, *extra in inputs
    ]
    gives = [{"name": t, "type": t, "links": []} for t in outputs]
    return {
        "id": id,
        "type": kind,
        "mode": mode,
        "inputs": ends,
        "outputs": gives,
        "widgets_values": values,
        **more,
    }


def wire(*ends, form=list):
    """A link as an array (0.4) or as an object (1.0)."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return list(ends) if form is list else dict(zip(names, ends, strict=True))


def chain(middle, links=None, form=list, **more):
    """Load (1) > middle > Save (9)."""
    links = links or [(1, 1, 0, 5, 0, "VIDEO"), (2, 5, 0, 9, 0, "VIDEO")]
    nodes = [
        node(1, "Load", values=["b", "image"]),
        *middle,
        node(9, "Save", [("video", "VIDEO", 2)], ["out"], outputs=()),
    ]
    return {"nodes": nodes, "links": [wire(*link, form=form) for link in links], "version": 0.4, **more}


def queued(data):
    return {n.id: (n.class_type, n.inputs) for n in parse(data, KINDS.get).nodes.values()}


@pytest.mark.parametrize("form", [list, dict], ids=["links as arrays", "links as objects"])
def test_values_find_their_inputs_past_the_value_after_a_seed_and_after_an_upload(form):
    work = node(5, "Work", [("video", "VIDEO", 1)], [123, "randomize", 30, "slow", "hello"])
    assert queued(chain([work], form=form)) == {
        "1": ("Load", {"file": "b"}),
        "5": ("Work", {"video": Link("1", 0), "seed": 123, "steps": 30, "mode": "slow", "note": "hello"}),
        "9": ("Save", {"video": Link("5", 0), "name": "out"}),
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([1, "fixed", 2, "slow", "x"], (1, 2, "slow", "x"), id="as today"),
        pytest.param([1, 2, "slow", "x"], (1, 2, "slow", "x"), id="a host without the value after the seed"),
        pytest.param([1, True, 2, "slow", "x"], (1, 2, "slow", "x"), id="the oldest files had a switch"),
        pytest.param([1, "fixed", 2], (1, 2, "fast", "none"), id="later inputs have their defaults"),
        pytest.param(None, (0, 7, "fast", "none"), id="no values at all"),
        pytest.param({"seed": 3, "mode": "slow", "gone": 1}, (3, 7, "slow", "none"), id="values by name"),
    ],
)
def test_stored_values(values, expected):
    _, inputs = queued(chain([node(5, "Work", [("video", "VIDEO", 1)], values)]))["5"]
    assert (inputs["seed"], inputs["steps"], inputs["mode"], inputs["note"]) == expected


def test_the_inputs_of_a_choice_are_stored_after_it():
    """Save Video of newer ComfyUIs: a format has codecs, a codec has an encoding, an encoding has numbers."""

    def combo(**choices):
        options = [{"key": key, "inputs": {"required": value}} for key, value in choices.items()]
        return ("COMFY_DYNAMICCOMBO_V3", {"options": options})

    codec = combo(auto={}, h264={"encoding": combo(auto={}, own={"crf": ("FLOAT", {"default": 23.0})})})
    types = {"required": {"format": combo(auto={"codec": codec}, mp4={"codec": codec}), "name": ("STRING",)}}
    definition = Definition.from_declaration("Save", "Save", types, [], True)

    def read(*values):
        data = {"nodes": [node(1, "Save", values=list(values))], "links": []}
        return parse(data, lambda _: definition).nodes["1"].inputs

    assert read("mp4", "h264", "own", 30.0, "x") == {
        "format": "mp4",
        "format.codec": "h264",
        "format.codec.encoding": "own",
        "format.codec.encoding.crf": 30.0,
        "name": "x",
    }
    assert read("auto", "auto", "x") == {"format": "auto", "format.codec": "auto", "name": "x"}
    assert read() == {"format": "auto", "format.codec": "auto", "name": ""}


def test_a_muted_node_is_left_out_with_its_links():
    graph = queued(chain([node(5, "Work", [("video", "VIDEO", 1)], [], mode=2)]))
    assert "5" not in graph and graph["9"] == ("Save", {"name": "out"})


def test_a_bypassed_node_passes_on_an_input_of_the_type():
    work = node(
        5, "Work", [("mask", "MASK", None), ("video", "VIDEO", 1)], [], mode=4, outputs=("VIDEO", "IMAGE")
    )
    assert queued(chain([work]))["9"][1]["video"] == Link("1", 0)
    masked = node(5, "Work", [("mask", "MASK", 1)], [], mode=4)
    assert "video" not in queued(chain([masked]))["9"][1]  # no VIDEO goes in, so none comes out


def test_reroutes_are_followed_and_a_cycle_of_them_is_an_error():
    turns = [node(5, "Reroute", [("", "*", 1)]), node(6, "Reroute", [("", "*", 3)])]
    links = [(1, 1, 0, 5, 0, "*"), (3, 5, 0, 6, 0, "*"), (2, 6, 0, 9, 0, "*")]
    assert queued(chain(turns, links))["9"][1]["video"] == Link("1", 0)
    cycle = [(1, 6, 0, 5, 0, "*"), (3, 5, 0, 6, 0, "*"), (2, 6, 0, 9, 0, "*")]
    with pytest.raises(ValueError, match=r"cycle through .*Reroute"):
        queued(chain(turns, cycle))


def test_a_chain_of_20000_reroutes_needs_no_recursion():
    ids = range(100, 20_100)
    turns = [node(i, "Reroute", [("", "*", i)]) for i in ids]
    links = [(i, i - 1 if i > 100 else 1, 0, i, 0, "*") for i in ids]
    graph = queued(chain(turns, [*links, (2, 20_099, 0, 9, 0, "*")]))
    assert graph["9"][1]["video"] == Link("1", 0)


def test_a_primitive_gives_its_value_to_every_input_it_is_connected_to():
    work = node(5, "Work", [("video", "VIDEO", 1), ("steps", "INT", 3, "widget")], [1, "fixed", 2, "slow"])
    many = node(6, "PrimitiveNode", values=[44, "fixed"], outputs=("INT",))
    links = [(1, 1, 0, 5, 0, "VIDEO"), (2, 5, 0, 9, 0, "VIDEO"), (3, 6, 0, 5, 1, "INT")]
    graph = queued(chain([many, work], links))
    assert graph["5"][1]["steps"] == 44 and "6" not in graph


def test_notes_and_groups_are_left_out():
    notes = [
        node(5, "Work", [("video", "VIDEO", 1)], []),
        node(7, "Note", values=["hi"]),
        node(8, "MarkdownNote"),
    ]
    data = chain(notes, groups=[{"title": "all", "bounding": [0, 0, 1, 1]}])
    assert set(queued(data)) == {"1", "5", "9"}


# -- subgraphs ---------------------------------------------------------------------------------------


def subgraph(kind="inner", nodes=None, links=None, name="A Part"):
    """video in > Work (52) > video out, with Work's steps promoted to the instance."""
    return {
        "id": kind,
        "name": name,
        "inputs": [
            {"name": "video", "type": "VIDEO", "linkIds": [85]},
            {"name": "steps", "type": "INT", "linkIds": [86]},
        ],
        "outputs": [{"name": "video", "type": "VIDEO", "linkIds": [87]}],
        "nodes": nodes
        or [
            node(
                52, "Work", [("video", "VIDEO", 85), ("steps", "INT", 86, "widget")], [5, "fixed", 6, "slow"]
            )
        ],
        "links": links
        or [
            wire(85, -10, 0, 52, 0, "VIDEO", form=dict),
            wire(86, -10, 1, 52, 1, "INT", form=dict),
            wire(87, 52, 0, -20, 0, "VIDEO", form=dict),
        ],
    }


def with_subgraph(instance, *definitions):
    return chain([instance], definitions={"subgraphs": list(definitions or [subgraph()])})


def test_a_subgraph_is_expanded_and_the_value_of_the_instance_counts():
    graph = queued(with_subgraph(node(5, "inner", [("video", "VIDEO", 1)], [99])))
    assert set(graph) == {"1", "5:52", "9"}
    assert graph["5:52"][1] == {"video": Link("1", 0), "seed": 5, "steps": 99, "mode": "slow", "note": "none"}
    assert graph["9"][1]["video"] == Link("5:52", 0)


def test_without_a_value_of_the_instance_the_inner_one_counts():
    assert queued(with_subgraph(node(5, "inner", [("video", "VIDEO", 1)], [])))["5:52"][1]["steps"] == 6


def test_two_instances_of_one_subgraph_keep_their_own_values():
    data = with_subgraph(node(5, "inner", [("video", "VIDEO", 1)], [11]))
    data["nodes"].insert(1, node(6, "inner", [("video", "VIDEO", 3)], [22]))
    data["links"] = [wire(1, 1, 0, 5, 0, "V"), wire(3, 5, 0, 6, 0, "V"), wire(2, 6, 0, 9, 0, "V")]
    graph = queued(data)
    assert (graph["5:52"][1]["steps"], graph["6:52"][1]["steps"]) == (11, 22)
    assert graph["6:52"][1]["video"] == Link("5:52", 0) and graph["9"][1]["video"] == Link("6:52", 0)


def test_a_subgraph_in_a_subgraph():
    outer = subgraph(
        "outer", [node(3, "inner", [("video", "VIDEO", 85), ("steps", "INT", 86, "widget")], [1])]
    )
    for link in outer["links"]:
        link.update({key: 3 for key in ("origin_id", "target_id") if link[key] == 52})
    graph = queued(with_subgraph(node(5, "outer", [("video", "VIDEO", 1)], [77]), outer, subgraph()))
    assert graph["5:3:52"][1]["video"] == Link("1", 0) and graph["5:3:52"][1]["steps"] == 77
    assert graph["9"][1]["video"] == Link("5:3:52", 0)


@pytest.mark.parametrize(("mode", "arrives"), [(4, True), (2, False)], ids=["bypassed", "muted"])
def test_a_subgraph_that_is_switched_off(mode, arrives):
    graph = queued(with_subgraph(node(5, "inner", [("video", "VIDEO", 1)], [99], mode=mode)))
    assert set(graph) == {"1", "9"}
    assert graph["9"][1].get("video") == (Link("1", 0) if arrives else None)


def test_a_subgraph_that_contains_itself_is_an_error():
    loop = subgraph(nodes=[node(52, "inner", [("video", "VIDEO", 85)])])
    with pytest.raises(ValueError, match="contains itself"):
        queued(with_subgraph(node(5, "inner", [("video", "VIDEO", 1)]), loop))


def test_an_old_group_node_is_an_error_message():
    with pytest.raises(ValueError, match=r"node 5.* group node .* convert it to a subgraph"):
        queued(chain([node(5, "workflow>mine", [("video", "VIDEO", 1)])]))


def test_a_type_that_is_no_text_is_an_error_message():
    with pytest.raises(ValueError, match="a node or link of this graph is broken"):
        queued(chain([node(5, 5, [("video", "VIDEO", 1)])]))


def test_20000_reroutes_in_a_row():
    count = 20_000
    reroutes = [node(100 + i, "Reroute", [("", "*", 1 + i)]) for i in range(count)]
    data = chain(reroutes)
    ends = [1, *(100 + i for i in range(count)), 9]
    data["links"] = [wire(i, a, 0, b, 0, "V") for i, (a, b) in enumerate(pairwise(ends), 1)]
    data["nodes"][-1]["inputs"][0]["link"] = count + 1
    assert queued(data)["9"][1]["video"] == Link("1", 0)


def test_titles_are_those_of_the_front_end():
    data = with_subgraph(node(5, "inner", [("video", "VIDEO", 1)], title="My part"))
    data["nodes"][0]["title"] = "The clip"
    graph = parse(data, KINDS.get)
    assert [n.title for n in graph.nodes.values()] == ["The clip", "Work Hard", "Save It"]


@pytest.mark.comfyui
def test_every_template_that_comfyui_ships_is_read_and_ordered():
    import importlib.util
    import json
    from pathlib import Path

    if (spec := importlib.util.find_spec("comfyui_workflow_templates")) is None:
        pytest.skip("needs the package comfyui_workflow_templates")
    read = 0
    packages = Path(spec.origin).parents[1].glob("comfyui_workflow_templates*")  # newer ones are split up
    for path in sorted(path for package in packages for path in package.rglob("*.json")):
        data = json.loads(path.read_text())
        if isinstance(data, dict) and "nodes" in data:
            graph = parse(data, lambda kind: None, path.name)
            assert len(graph.order(graph.nodes)) == len(graph.nodes), path.name
            read += 1
    assert read > 100


@pytest.mark.parametrize(
    "broken",
    [
        {"nodes": [{"id": 1}], "links": []},
        {"nodes": [{"id": 1, "type": "LoadVideo"}], "links": [[1, 2]]},
        {"nodes": [3], "links": []},
    ],
    ids=["no type", "short link", "no node"],
)
def test_a_broken_graph_is_an_error_message(broken):
    with pytest.raises(ValueError, match=r"save it again in ComfyUI|LoadVideo"):
        parse(broken, lambda kind: None, "broken.json")
