"""What every node keeps true, checked over the node list.

Each package describes in tests/recipes/<package>.py how to run its nodes. A node without a recipe fails.
"""

import copy
import importlib.util
import inspect
import json
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import reelbrush
from reelbrush import nodes
from reelbrush.nodes import host
from reelbrush.nodes.video.lazy_video import LazyVideo

HERE = Path(__file__).parent
ROOT = HERE.parent
IDS = sorted(nodes.NODE_CLASS_MAPPINGS)


MEASURES, LOADS, SAVES, MAKES = "measures", "loads", "saves", "makes something else of its input"
NEVER_OFF = {
    "ReelBrushSaveVideo": SAVES,
    "ReelBrushPreviewVideo": MAKES,
    "ReelBrushEncodeVideo": MAKES,
    "ReelBrushDecodeVideo": MAKES,
    "ReelBrushOpticalFlow": MEASURES,
    "ReelBrushSaveFlow": SAVES,
    "ReelBrushLoadFlow": LOADS,
    "ReelBrushFlowWarp": MAKES,
    "ReelBrushFlowError": MEASURES,
    "ReelBrushFlowErrorVideo": MEASURES,
    "ReelBrushStabilityReport": MEASURES,
    "ReelBrushCompareVideo": MEASURES,
    "ReelBrushLoadStyA2K": LOADS,
    "ReelBrushStyA2KStyle": MAKES,
    "ReelBrushTrainStyA2K": MAKES,
    "ReelBrushInvert": MAKES,
    "ReelBrushSaveTrajectory": SAVES,
    "ReelBrushLoadTrajectory": LOADS,
    "ReelBrushReconstruct": MEASURES,
    "ReelBrushReferenceNoise": MAKES,
    "ReelBrushFramesPerCall": "splits the work; the result is the same at any setting",
    "ReelBrushSampleVideo": MAKES,
    "ReelBrushAttentionView": MEASURES,
    "ReelBrushPromptMask": MEASURES,
    "ReelBrushTrainStyleLoRA": MAKES,
    "ReelBrushLoadStyleLoRA": LOADS,
    "ReelBrushADSampler": "makes a sampler; tests/distill checks its empty range",
    "ReelBrushADVideo": MAKES,
    "ReelBrushTextureInit": MAKES,
    "ReelBrushTextureExpand": MAKES,
    "ReelBrushStyleJudge": LOADS,
    "ReelBrushLoadStyleJudge": LOADS,
    "ReelBrushDiffusionJudge": LOADS,
    "ReelBrushKeyFrames": MAKES,
    "ReelBrushAttnStyle": MAKES,
    "ReelBrushSaveAttnStyle": SAVES,
    "ReelBrushLoadAttnStyle": LOADS,
}
"""Nodes that no setting can turn off, and why. Every other node's recipe says what off is."""


PATCHES = "patches a model: the sampler is cancelled"
READS, WRITES, COMBINES = "reads one file", "writes one file", "combines values"
INSTANT = {
    "ReelBrushSaveFlow": WRITES,
    "ReelBrushLoadFlow": READS,
    "ReelBrushLoadStyA2K": READS,
    "ReelBrushStyA2KStyle": COMBINES,
    "ReelBrushStyA2KMix": COMBINES,
    "ReelBrushSaveTrajectory": WRITES,
    "ReelBrushLoadTrajectory": READS,
    "ReelBrushReferenceNoise": COMBINES,
    "ReelBrushMatchLatent": COMBINES,
    "ReelBrushZStar": PATCHES,
    "ReelBrushReferenceAttention": PATCHES,
    "ReelBrushTemporalAttention": PATCHES,
    "ReelBrushFramesPerCall": PATCHES,
    "ReelBrushInject": PATCHES,
    "ReelBrushApplyStyleLoRA": PATCHES,
    "ReelBrushSeamless": PATCHES,
    "ReelBrushLoadStyleLoRA": READS,
    "ReelBrushADSampler": "makes a sampler, which is cancelled when it runs",
    "ReelBrushTextureInit": COMBINES,
    "ReelBrushStyleJudge": COMBINES,
    "ReelBrushLoadStyleJudge": READS,
    "ReelBrushDiffusionJudge": COMBINES,
    "ReelBrushSaveAttnStyle": WRITES,
    "ReelBrushLoadAttnStyle": READS,
}
"""Nodes that do no long work, and why. A cancel must reach every other node."""


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


every_node = _load(HERE / "recipes" / "every_node.py")
RECIPES = {}
for file in sorted((HERE / "recipes").glob("*.py")):
    if file.stem != "every_node":
        RECIPES |= _load(file).RECIPES


def declared(node):
    """name -> (type, options) of all inputs a person sees."""
    groups = node.INPUT_TYPES()
    found = {**groups.get("required", {}), **groups.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in found.items()}


def run(node_id, arguments):
    cls = nodes.NODE_CLASS_MAPPINGS[node_id]
    with torch.inference_mode():
        out = getattr(cls(), cls.FUNCTION)(**arguments)
    return out["result"] if isinstance(out, dict) else out


def settle(value, seen=()):
    """A value as plain data that can be compared: videos are rendered, objects become their attributes."""
    if isinstance(value, LazyVideo):
        return torch.cat(list(value.chunks(8)))
    if isinstance(value, torch.Tensor | str | int | float | bool | Path | None):
        return value
    for recognize, probe in every_node.PROBES:
        if recognize(value):
            return settle(probe(value))
    if isinstance(value, Mapping):
        return {str(key): settle(v, seen) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [settle(v, seen) for v in value]
    if isinstance(value, torch.nn.Module):
        return settle(value.state_dict())
    if id(value) in seen or not hasattr(value, "__dict__") or isinstance(value, type):
        return getattr(value, "__qualname__", str(type(value)))
    return {"": str(type(value))} | settle(vars(value), (*seen, id(value)))


def same(a, b):
    """Equal plain data; in tensors NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and torch.equal(a.isnan(), b.isnan())
            and (torch.equal(a.nan_to_num(), b.nan_to_num()))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def frame_count(value):
    value = value["samples"] if isinstance(value, dict) and "samples" in value else value
    return len(settle(value))


@pytest.fixture(params=IDS)
def node_id(request, home):
    return request.param


@pytest.fixture
def recipe(node_id):
    assert node_id in RECIPES, f"{node_id} has no recipe: add one to tests/recipes/"
    found = RECIPES[node_id]
    if found.needs == "comfyui" and not host.inside_comfyui():
        pytest.skip("needs a ComfyUI checkout: set COMFYUI_PATH")
    if found.needs and found.needs != "comfyui":
        pytest.importorskip(found.needs)
    return found


# -- words -----------------------------------------------------------------------------------------


def test_the_static_list_is_what_the_packages_declare():
    packages = [m for m in vars(nodes).values() if inspect.ismodule(m) and hasattr(m, "NODES")]
    declared_nodes = {key: value for package in packages for key, value in package.NODES.items()}
    assert {key: cls for key, (cls, _) in declared_nodes.items()} == nodes.NODE_CLASS_MAPPINGS
    assert {key: name for key, (_, name) in declared_nodes.items()} == nodes.NODE_DISPLAY_NAME_MAPPINGS
    assert reelbrush.NODE_CLASS_MAPPINGS is nodes.NODE_CLASS_MAPPINGS


def test_every_recipe_is_for_a_node():
    assert set(RECIPES) <= set(IDS)


def test_words_for_people(node_id):
    cls = nodes.NODE_CLASS_MAPPINGS[node_id]
    assert node_id.startswith("ReelBrush")
    assert cls.CATEGORY.split("/")[0] == "ReelBrush"
    assert cls.DESCRIPTION.strip().endswith((".", ")"))
    assert cls.SEARCH_ALIASES
    assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)
    if cls.RETURN_TYPES:  # words, not the front end's fallback, which is the type's id
        assert len(cls.RETURN_NAMES) == len(cls.RETURN_TYPES)
        assert all(name == name.lower() for name in cls.RETURN_NAMES)
    assert all(cls.OUTPUT_TOOLTIPS)
    assert len(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)) == len(cls.RETURN_TYPES)
    for name, (_, options) in declared(cls).items():
        assert options.get("tooltip"), f"{node_id}.{name} has no tooltip"
    assert (ROOT / "web" / "docs" / f"{node_id}.md").exists(), f"{node_id} has no help page"


def test_declared_inputs_are_sensible(node_id):
    cls = nodes.NODE_CLASS_MAPPINGS[node_id]
    takes = inspect.signature(getattr(cls, cls.FUNCTION)).parameters
    takes_others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    for name, (kind, options) in declared(cls).items():
        assert name in takes or takes_others, f"{node_id}.{name} is declared and not taken"
        if isinstance(kind, list):
            assert kind, f"{node_id}.{name}: a combo needs an option"
            assert options.get("default", kind[0]) in kind
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], f"{node_id}.{name}"
    optional = cls.INPUT_TYPES().get("optional", {})
    required = {name for name, p in takes.items() if p.default is inspect.Parameter.empty}
    assert not required & optional.keys(), f"{node_id}: optional inputs need a default"
    json.dumps({name: options for name, (_, options) in declared(cls).items()})


# -- behaviour -------------------------------------------------------------------------------------


def test_frames_in_frames_out(node_id, recipe):
    for size in recipe.sizes:
        for count in recipe.counts:
            out = run(node_id, recipe.inputs(count, size))
            if recipe.frames is not None:
                assert frame_count(out[recipe.frames]) == count, (size, count)
                if recipe.same_size:
                    assert settle(out[recipe.frames]).shape[1:3] == (size[1], size[0])


def test_queued_twice_gives_the_same_and_changes_no_input(node_id, recipe):
    arguments = recipe.inputs(3, recipe.sizes[0])
    before = copy.deepcopy(settle(arguments))
    names = getattr(nodes.NODE_CLASS_MAPPINGS[node_id], "RETURN_NAMES", ())
    first, second = (settle(list(run(node_id, arguments))) for _ in range(2))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if i >= len(names) or names[i] not in recipe.changes:
            assert same(a, b), f"output {i} differs"
    after = settle(arguments)
    for name in arguments:
        assert same(before[name], after[name]), f"the input {name} was changed"


def test_off_is_exactly_the_input(node_id, recipe):
    assert (recipe.off is None) == (node_id in NEVER_OFF), f"{node_id}: say what off is, or why there is none"
    if recipe.off is None:
        pytest.skip(f"cannot be off: it {NEVER_OFF[node_id]}")
    changed, name, number = recipe.off
    arguments = {**recipe.inputs(3, recipe.sizes[0]), **changed}
    expected, got = settle(arguments[name]), settle(run(node_id, arguments)[number])
    if isinstance(expected, dict) and "samples" in expected:
        expected, got = expected["samples"], got["samples"]
    assert same(expected, got)


def test_wrong_inputs_get_one_sentence(node_id, recipe):
    assert recipe.wrong, f"{node_id}: the recipe says nothing about wrong inputs"
    for changed, words in recipe.wrong:
        with pytest.raises((ValueError, RuntimeError)) as caught:
            settle(list(run(node_id, {**recipe.inputs(3, recipe.sizes[0]), **changed})))
        said = str(caught.value)
        assert words in said, said
        assert "\n" not in said and len(said) < 400, said


TENSORS = {"IMAGE": every_node.picture(3, (33, 21)), "MASK": torch.rand(3, 21, 33), "LATENT": None}


def tensor_inputs(node_id, recipe):
    """(name, type, a good tensor) of the IMAGE, MASK and LATENT inputs, and how to pass such a tensor."""
    given = recipe.inputs(3, recipe.sizes[0])
    for name, (kind, _) in declared(nodes.NODE_CLASS_MAPPINGS[node_id]).items():
        if isinstance(kind, str) and kind in TENSORS:
            value = given.get(name, TENSORS[kind])
            if kind == "LATENT":
                value = torch.rand(1, 4, 8, 8) if value is None else value["samples"]
            yield name, kind, value.clone(), given


def spoiled(tensor, value):
    tensor.view(-1)[tensor.numel() // 2] = value
    return tensor


REJECTED = {
    "NaN": lambda t: spoiled(t, torch.nan),
    "Inf": lambda t: spoiled(t, torch.inf),
    "huge": lambda t: spoiled(t, 1e30),
    "no frames": lambda t: t[:0],
    "no pixels": lambda t: t[..., :0, :],
    "integers": lambda t: (t * 255).to(torch.uint8),
    "no batch": lambda t: t[0, 0],
    "not a tensor": lambda t: "picture",
}


@pytest.mark.parametrize("row", REJECTED)
def test_bad_pictures_masks_and_latents_get_one_sentence_that_names_the_input(node_id, recipe, row):
    for name, kind, good, given in tensor_inputs(node_id, recipe):
        bad = REJECTED[row](good)
        with pytest.raises(ValueError, match=name) as caught:
            run(node_id, given | {name: {"samples": bad} if kind == "LATENT" else bad})
        assert str(caught.value).startswith(f"{name} ") and "\n" not in str(caught.value)


def test_a_number_beyond_its_limits_and_a_missing_connection_get_one_sentence(node_id, recipe):
    """The front end keeps what is typed within its limits, but not what is connected."""
    given = recipe.inputs(3, recipe.sizes[0])
    required = nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
    for name, (kind, options) in declared(nodes.NODE_CLASS_MAPPINGS[node_id]).items():
        if name in required:
            wanted = f"connect a node that gives {kind}" if isinstance(kind, str) else "choose a value"
            with pytest.raises(ValueError, match=f"^{name} is empty: {wanted}$"):
                run(node_id, given | {name: None})
        beyond = (options.get("min", 0) - 1, options.get("max", 0) + 1, float("nan"), float("-inf"))
        for value in beyond if kind in ("INT", "FLOAT") else ():
            with pytest.raises(ValueError, match=f"^{name} is {re.escape(str(value))}: give a number from"):
                run(node_id, given | {name: value})


def outcome(node_id, arguments):
    """The results as plain data, or the error message."""
    try:
        return settle(list(run(node_id, arguments)))
    except ValueError as error:
        return [str(error)]


CONVERTED = {
    "fp16": lambda t: t.half(),
    "bf16": lambda t: t.bfloat16(),
    "fp64": lambda t: t.double(),
    "one channel": lambda t: t[..., :1],
    "one mask without a batch": lambda t: t[0],
    "a channel of its own": lambda t: t[:, None],
}
ONLY_FOR = {"one channel": "IMAGE", "one mask without a batch": "MASK", "a channel of its own": "MASK"}


@pytest.mark.parametrize("row", CONVERTED)
def test_other_precisions_and_layouts_give_what_the_same_values_give(node_id, recipe, row):
    for name, kind, good, given in tensor_inputs(node_id, recipe):
        if name not in given or ONLY_FOR.get(row, kind) != kind:
            continue
        other = CONVERTED[row](good)
        plain = other.float()
        if row == "one channel":
            plain = torch.cat([plain] * 3, -1)
        elif kind == "MASK":
            plain = plain.reshape(-1, *good.shape[-2:])
        wrap = (lambda x: {"samples": x}) if kind == "LATENT" else (lambda x: x)
        first, second = (outcome(node_id, given | {name: wrap(x)}) for x in (plain, other))
        names = getattr(nodes.NODE_CLASS_MAPPINGS[node_id], "RETURN_NAMES", ())
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert (i < len(names) and names[i] in recipe.changes) or same(a, b), (name, i)


def test_a_batch_is_its_frames_one_by_one(node_id, recipe):
    if recipe.alone is None:
        pytest.skip("looks at more than one frame")
    arguments = recipe.inputs(3, recipe.sizes[0])
    together = settle(run(node_id, arguments)[recipe.frames])
    batch = arguments[recipe.alone]
    alone = []
    for i in range(3):
        one = batch.trim(i, 1) if isinstance(batch, LazyVideo) else batch[i : i + 1]
        alone.append(settle(run(node_id, {**arguments, recipe.alone: one})[recipe.frames]))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-4)


def test_nothing_reaches_for_the_network(node_id, recipe, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a node tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    settle(list(run(node_id, recipe.inputs(1, recipe.sizes[0]))))


def test_a_cancelled_run_leaves_nothing_under_a_final_name(node_id, recipe, monkeypatch, home):
    """Everything that takes long can be cancelled at its first step, and then leaves no file."""

    def cancel(*_, **__):
        raise KeyboardInterrupt

    arguments = recipe.inputs(3, recipe.sizes[0])
    before = {p for p in (home / "output").rglob("*") if p.is_file()}
    monkeypatch.setattr(host.Progress, "at", cancel)
    monkeypatch.setattr(host, "check_interrupt", cancel)
    try:
        settle(list(run(node_id, arguments)))
    except KeyboardInterrupt:
        assert node_id not in INSTANT, f"{node_id} can be cancelled: take it out of INSTANT"
        new = {p for p in (home / "output").rglob("*") if p.is_file()} - before
        visible = [p for p in new if not any(part.startswith(".") for part in p.relative_to(home).parts)]
        assert not visible
    else:
        assert node_id in INSTANT, f"{node_id} was not cancelled: show progress, or say in INSTANT why not"
