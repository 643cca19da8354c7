"""Graphs that run without ComfyUI: the saved files, and error messages that name the node."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from reelbrush.nodes import sample
from reelbrush.nodes.common import pictures
from reelbrush.nodes.headless import core_nodes, out_file
from reelbrush.nodes.headless.catalog import local_catalog
from reelbrush.nodes.headless.read import parse
from reelbrush.nodes.headless.run import render
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

CLIP = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}},
    "2": {
        "class_type": "ReelBrushTrimVideo",
        "inputs": {"video": ["1", 0], "start": 1, "frames": 3, "every_nth": 1, "max_side": 0},
        "_meta": {"title": "The middle"},
    },
    "3": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["2", 0], "filename_prefix": "video/a", "format": "auto", "codec": "auto"},
    },
}


def changed(key):
    return lambda **values: {key: {"inputs": CLIP[key]["inputs"] | values}}


load, trim, save = changed("1"), changed("2"), changed("3")


@pytest.fixture
def graph(home):
    """Writes a graph file, `CLIP` with changes (None drops a node), and its input clip of 6 frames."""
    frames = torch.rand(6, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    LazyVideo.from_frames(frames, 12).save_to(str(home / "input" / "clip.mp4"))

    def write(changes=None, data=None):
        data = data or json.loads(json.dumps(CLIP))
        for key, node in (changes or {}).items():
            if node is None:
                del data[key]
            else:
                data.setdefault(key, {}).update(node)
        (home / "g.json").write_text(json.dumps(data))
        return home / "g.json"

    return write


def test_a_clip_goes_in_and_a_clip_comes_out(graph, home):
    (file,) = render(graph())
    assert file == home / "output" / "video" / "a_00001_.mp4"
    info = codec.probe(file, count=True)
    assert (info.width, info.height, info.frame_count, info.fps) == (48, 32, 3, 12)
    assert json.loads(info.metadata["prompt"])["3"]["class_type"] == "SaveVideo"
    assert render(graph())[0].name == "a_00002_.mp4"


def test_the_ui_format_runs_too_and_travels_in_the_metadata(graph, home):
    link = [[1, 1, 0, 3, 0, "VIDEO"]]
    saved = {"id": 3, "type": "SaveVideo", "inputs": [{"name": "video", "type": "VIDEO", "link": 1}]}
    data = {
        "nodes": [
            {"id": 1, "type": "LoadVideo", "widgets_values": ["clip.mp4", "image"]},
            {**saved, "widgets_values": ["v/b", "mp4", "h264"]},
            {"id": 4, "type": "MarkdownNote", "widgets_values": ["# Hello"]},
        ],
        "links": link,
    }
    (file,) = render(graph(data=data))
    assert file.parent == home / "output" / "v"
    assert json.loads(codec.probe(file).metadata["workflow"])["links"] == link


def test_out_takes_the_result_and_its_ending_chooses_the_format(graph, home, tmp_path):
    target = tmp_path / "far" / "result.webm"
    assert render(graph(), out=target) == [target]
    assert codec.probe(target, count=True).frame_count == 3
    assert not list((home / "output").rglob("*.webm")) and not list(target.parent.glob(".*"))


def test_set_reaches_any_file_that_the_command_line_names(graph, home, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    (home / "input" / "clip.mp4").rename(away / "other.mp4")
    (file,) = render(graph(), [f"Load Video.file={away / 'other.mp4'}", "The middle.frames=2"])
    assert codec.probe(file, count=True).frame_count == 2
    with pytest.raises(ValueError, match=r"Load Video \(node 1\): the clip .* leaves the input folder"):
        render(graph({"1": {"inputs": {"file": str(away / "other.mp4")}}}))


def test_pictures_are_saved_and_numbered_by_out(graph, home):
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
    data = {
        "1": CLIP["1"],
        "2": parts,
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "p"}},
    }
    assert [f.name for f in render(graph(data=data))] == [f"p_{i:05}_.png" for i in range(1, 7)]
    files = render(graph(data=data), out=home / "x.png")
    assert [f.name for f in files] == [f"x_{i:05}.png" for i in range(1, 7)]
    assert pictures.read(files[0])[0].shape == (32, 48, 3)


def test_a_float_from_a_clip_feeds_another_node(graph):
    data = {
        "1": CLIP["1"],
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": ["2", 2]}},
        "4": CLIP["3"] | {"inputs": CLIP["3"]["inputs"] | {"video": ["3", 0]}},
    }
    (file,) = render(graph(data=data))
    info = codec.probe(file, count=True)
    assert (info.fps, info.frame_count) == (12, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"2": {"class_type": "KSampler"}}, r"KSampler \(The middle \(node 2\)\): these nodes run in"),
        ({"2": {"class_type": "ReelBrushNix"}}, "no node ReelBrushNix; update it"),
        ({"3": None}, "saves and shows nothing"),
        (load(file="nix.mp4"), r"Load Video \(node 1\): the clip 'nix.mp4' is not in the input folder"),
        (load(file="../g.json"), r"\(node 1\): the clip '../g.json' leaves the input folder"),
        ({"1": {"class_type": "PrimitiveInt", "inputs": {"value": 1}}}, r"takes VIDEO, but Int \(node 1\)"),
        (trim(video=["1", 3]), "output 3 of Load Video .* has 1"),
        (trim(video=5), "video needs a connection of type VIDEO, not 5"),
        (trim(every_nth=0), "every_nth is 0, but the minimum is 1"),
        (trim(max_side=1e9), "the maximum is 16384"),
        (trim(start="soon"), "start is 'soon', which is no INT"),
        ({"2": {"inputs": {"video": ["1", 0]}}}, r"The middle \(node 2\): its input start is missing"),
        (trim(start=float("inf")), "start is inf, which is no INT"),
        (load(file=""), r"\(node 1\): the clip '' is not in the input folder"),
        (load(file="."), r"\(node 1\): the clip '.' is not in the input folder"),
        (load(file="a" * 300), r"\(node 1\): the clip name has 300 bytes"),
        (save(filename_prefix="a" * 300), r"node 3\): the filename_prefix name has 300 bytes"),
        (save(filename_prefix="a" * 240), r"node 3\): the filename_prefix name has 2.. bytes"),
        (save(filename_prefix="a\ud800"), r"node 3\): filename_prefix has characters that are not valid"),
        (save(format="vhs"), "format is 'vhs', but it can be auto, mp4"),
        (save(filename_prefix="../a"), r"node 3\).*leaves the output"),
        (save(video=["3", 0]), r"cycle: Save Video \(node 3\)"),
    ],
)
def test_what_cannot_run_is_one_sentence_that_names_the_node(graph, home, changes, words):
    with pytest.raises((ValueError, RuntimeError), match=words) as caught:
        render(graph(changes))
    assert "\n" not in str(caught.value)
    assert not list((home / "output").rglob("*.mp4"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_decimal_that_is_no_number_is_one_sentence(graph, number):
    data = {
        "1": CLIP["1"],
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": number}},
        "4": CLIP["3"] | {"inputs": CLIP["3"]["inputs"] | {"video": ["3", 0]}},
    }
    with pytest.raises(ValueError, match=r"node 3\): fps is (nan|inf), which is no FLOAT"):
        render(graph(data=data))


def test_set_with_an_empty_name_does_not_take_the_whole_input_folder(graph, home):
    pictures.write(home / "input" / "private.png", torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="the clip '' is not in the input folder"):
        render(graph(), ["1.file="])


def test_a_pipe_in_the_input_folder_is_not_waited_for(graph, home):
    for name in ("clip.mp4", "picture.png"):
        (home / "input" / name).unlink(missing_ok=True)
        os.mkfifo(home / "input" / name)
    with pytest.raises(ValueError, match=r"the clip 'clip.mp4' is not in the input folder"):
        render(graph())
    load = {"1": {"class_type": "LoadImage", "inputs": {"image": "picture.png"}}}
    show = {"2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with pytest.raises(ValueError, match=r"the picture 'picture.png' is not in the input folder"):
        render(graph(data=load | show))


def test_a_chain_of_3000_trims_runs(graph, home):
    chain = {
        f"t{i}": {
            "class_type": "ReelBrushTrimVideo",
            "inputs": CLIP["2"]["inputs"] | {"start": 0, "video": [f"t{i - 1}" if i else "1", 0]},
        }
        for i in range(3000)
    }
    last = {"3": {**CLIP["3"], "inputs": CLIP["3"]["inputs"] | {"video": ["t2999", 0]}}}
    (file,) = render(graph(data={"1": CLIP["1"]} | chain | last))
    assert codec.probe(file, count=True).frame_count == 3


@pytest.mark.parametrize(
    ("changes", "out", "words"),
    [
        ({}, "a.xyz", r"Save Video \(node 3\) writes .mp4, .mkv, .webm"),
        ({"4": CLIP["3"]}, "a.mp4", r"saves with Save Video \(node 3\), Save Video \(node 4\)"),
    ],
)
def test_a_wrong_out_is_an_error_before_anything_runs(graph, home, changes, out, words):
    with pytest.raises(ValueError, match=words):
        render(graph(changes), out=home / out)
    assert not list((home / "output").rglob("*.mp4"))


def test_declarations_are_read_once_per_run(graph, monkeypatch):
    calls = []
    load_video, _ = core_nodes.CORE_NODES["LoadVideo"]
    declare = load_video.INPUT_TYPES
    monkeypatch.setattr(load_video, "INPUT_TYPES", lambda: calls.append(1) or declare())
    render(graph())
    assert len(calls) == 1


def test_the_sample_is_copied_when_the_graph_names_it_and_it_is_missing(graph, home):
    (file,) = render(graph({"1": {"inputs": {"file": sample.CLIP}}}))
    copies = {p.name: p.read_bytes() for p in (home / "input").glob("reelbrush_*")}
    assert file.exists() and copies == {sample.CLIP: (sample.FOLDER / sample.CLIP).read_bytes()}


def test_nodes_run_in_inference_mode_with_their_hidden_inputs(graph, monkeypatch):
    seen = {}

    class Look:
        RETURN_TYPES, OUTPUT_NODE, FUNCTION = (), True, "look"

        @classmethod
        def INPUT_TYPES(cls):
            hidden = {"prompt": "PROMPT", "info": "EXTRA_PNGINFO", "me": "UNIQUE_ID"}
            return {"required": {"video": ("VIDEO",)}, "hidden": hidden}

        def look(self, video, prompt, info, me):
            seen.update(mode=torch.is_inference_mode_enabled(), prompt=prompt, info=info, me=me)
            return {}

    monkeypatch.setitem(core_nodes.CORE_NODES, "Look", (Look, "Look"))
    data = {"1": CLIP["1"], "7": {"class_type": "Look", "inputs": {"video": ["1", 0]}}}
    assert render(graph(data=data)) == []
    assert seen["mode"] and seen["me"] == "7" and seen["info"] == {}
    assert seen["prompt"]["7"]["inputs"]["video"] == ["1", 0]
    assert not torch.is_inference_mode_enabled()


def test_an_error_inside_a_node_names_it_and_an_interrupt_passes(graph, monkeypatch):
    def fail(error):
        def load(self, file):
            raise error

        monkeypatch.setattr(core_nodes.CORE_NODES["LoadVideo"][0], "run", load)

    fail(RuntimeError("no more film"))
    with pytest.raises(RuntimeError, match=r"^Load Video \(node 1\): no more film$"):
        render(graph())
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        render(graph())


@pytest.mark.parametrize(
    ("saved", "ending", "expected"),
    [
        (("auto", "auto"), "mp4", ("auto", "auto")),
        (("mp4", "h264"), "mp4", ("mp4", "h264")),
        (("webm", "av1"), "webm", ("webm", "av1")),
        (("mp4", "h264"), "webm", ("webm", "auto")),
        (("auto", "h264"), "mkv", ("mkv", "auto")),
    ],
)
def test_the_format_changes_only_where_the_ending_needs_it(graph, saved, ending, expected):
    data = json.loads(graph(save(format=saved[0], codec=saved[1])).read_text())
    catalog = local_catalog()
    nodes = list(parse(data, catalog).nodes.values())
    saver = out_file.redirect(nodes, Path(f"x.{ending}"), catalog)
    assert (saver.inputs["format"], saver.inputs["codec"]) == expected


def test_a_result_that_cannot_be_moved_stays_where_it_is(tmp_path):
    file, out = tmp_path / "a.mp4", tmp_path / "out.mp4"
    file.write_bytes(b"frames")
    (out / "full").mkdir(parents=True)
    with pytest.raises(ValueError, match=re.escape(f"{file} is saved, but not moved: {out} cannot be used")):
        out_file.deliver([file], out)
    assert file.read_bytes() == b"frames" and (out / "full").is_dir()
    (out / "full").rmdir()
    out.rmdir()
    assert out_file.deliver([file], out) == [out] and out.read_bytes() == b"frames" and not file.exists()
