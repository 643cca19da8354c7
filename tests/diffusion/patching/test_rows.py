"""Rows of a call, and a clip that is sampled a few frames at a time."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall as Node
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.rows import FRAMES, FrameSplitter, frames_of, rows, select

from ..attention_tools import BOTH, INSIDE, counted, latents, levels, make, sample

WINDOW = SimpleNamespace(index_list=[4, 5, 6], dim=0)
ROWS = [
    pytest.param({}, 3, (0, 1, 2), ((0, 0, 0),), id="no sampler around it"),
    pytest.param(
        {"cond_or_uncond": [1, 0], "uuids": "ab"}, 4, (0, 1), ((1, "a", 0), (0, "b", 0)), id="unconds first"
    ),
    pytest.param({"cond_or_uncond": [0], "uuids": "b"}, 2, (0, 1), ((0, "b", 0),), id="low memory: one side"),
    pytest.param(
        {"cond_or_uncond": [0, 0], "uuids": "cc"}, 2, (0,), ((0, "c", 0), (0, "c", 1)), id="one text twice"
    ),
    pytest.param(
        {"cond_or_uncond": [1, 0], "uuids": "ab", FRAMES: [8, 9]}, 4, (8, 9), ((1, "a", 0), (0, "b", 0)),
        id="Frames per Call",
    ),
    pytest.param({"context_window": WINDOW}, 3, (4, 5, 6), ((0, 0, 0),), id="core Context Windows"),
    pytest.param({"context_window": WINDOW, FRAMES: [5, 6]}, 2, (5, 6), ((0, 0, 0),), id="both"),
    pytest.param({"context_window": WINDOW}, 2, (0, 1), ((0, 0, 0),), id="a window left over from before"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "batch", "frames", "sides"), ROWS)
def test_rows_of_a_call(options, batch, frames, sides):
    found = rows(options, batch)
    assert (found.frames, found.sides, found.count) == (frames, sides, len(frames))


def test_rows_that_do_not_divide_raise_an_error():
    with pytest.raises(RuntimeError, match="5 rows cannot be divided among 2"):
        rows({"cond_or_uncond": [0, 1]}, 5)


def test_per_frame_values_are_selected_and_one_serves_all():
    values = torch.arange(4)
    assert select(values, (2, 3), "mask").tolist() == [2, 3]
    assert select(values[:1], (2, 3), "mask").tolist() == [0]
    with pytest.raises(ValueError, match="the mask has 4 frames, but frame 4"):
        select(values, (3, 4), "mask")


@BOTH
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_the_split_clip_is_the_whole_clip(kind, size):
    """Whatever the split, each frame gets the result of one big batch, and no call is larger than asked."""
    model = make(kind)
    whole = sample(model, frames=5, cfg=2.0)
    (split,) = Node().patch(model, size)
    with counted(model) as seen:
        parts = sample(split, frames=5, cfg=2.0)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert max(seen) == 2 * min(size, 5)
    assert sum(seen) == 3 * 2 * 5


@BOTH
def test_every_call_knows_its_frames(kind):
    (model,) = Node().patch(make(kind), 2)
    seen = []

    def part(call):
        seen.append(rows(call.options, len(call.x)).frames)
        return call.run()

    unet.attach(model, "test", part)
    sample(model, frames=5, cfg=2.0, sigmas=levels(model, 1))
    assert seen == [(0, 1), (2, 3), (4,)]


def test_the_last_of_two_such_nodes_decides():
    model = Node().patch(Node().patch(make_any(), 2)[0], 3)[0]
    with counted(model) as seen:
        sample(model, frames=4, sigmas=levels(model, 1))
    assert seen == [3, 1]


def make_any():
    return make("comfy" if INSIDE else "tiny")


def test_zero_takes_as_many_frames_as_memory(monkeypatch):
    from reelbrush.nodes import host

    seen = []
    base = SimpleNamespace(memory_required=lambda shape: shape[0] * 100)
    splitter = FrameSplitter(0)
    run = lambda base, conds, x, sigma, options: seen.append(len(x)) or [x]  # noqa: E731
    x = latents(8)
    for free, expected in ((1e6, [8]), (1300, [4, 4]), (700, [2, 2, 2, 2]), (1, [1] * 8)):
        monkeypatch.setattr(host, "free_memory", lambda device, free=free: free)
        seen.clear()
        out = splitter.split(
            run, base, [[{"model_conds": {}}], [{"model_conds": {}}]], x, torch.ones(8), OPTIONS
        )
        assert seen == expected
        assert torch.equal(out[0], x)


OPTIONS = {"transformer_options": {}}


def test_memory_is_estimated_for_the_frames_of_one_call():
    shapes = []
    run = lambda model, shape, conds, model_options=None: shapes.append(shape)  # noqa: E731
    FrameSplitter(4).estimate(run, None, torch.Size([64, 4, 8, 8]), {}, model_options={})
    FrameSplitter(0).estimate(run, None, [64, 4, 8, 8], {})
    assert shapes == [[4, 4, 8, 8], [1, 4, 8, 8]]


@pytest.mark.comfyui
def test_core_context_windows_are_obeyed():
    """Windows of 4 with overlap 1 over 7 frames: patches get the window's frame numbers, also split by our
    node."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    model = make("comfy")
    settings = {"context_length": 4, "context_overlap": 1, "context_schedule": "standard_static"}
    settings |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 0}
    execute = ContextWindowsManualNode.execute
    known = inspect.signature(execute).parameters
    if "freenoise" in known:  # newer than 0.3.64
        settings["freenoise"] = False
    windowed = execute(model, **settings).args[0]
    seen = []

    def part(call):
        seen.append(rows(call.options, len(call.x)).frames)
        return call.run()

    unet.attach(windowed, "test", part)
    sample(windowed, frames=7, sigmas=levels(model, 6))
    # ComfyUI 0.33 also evaluates the frame before a window.
    anchored = "causal_window_fix" in known
    assert seen == [(0, 1, 2, 3), (2, 3, 4, 5, 6) if anchored else (3, 4, 5, 6)] * 6
    seen.clear()
    sample(Node().patch(windowed, 3)[0], frames=7, sigmas=levels(model, 6))
    assert seen == [(0, 1, 2), (3,), *([(2, 3, 4), (5, 6)] if anchored else [(3, 4, 5), (6,)])] * 6


def test_frames_of_falls_back_to_the_batch():
    assert frames_of({FRAMES: [1, 2, 3]}, 2) == [0, 1]
