"""Rows of a call, and a clip that is sampled a few frames at a time."""

from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes.diffusion import unet
from reelbrush.nodes.diffusion.clip_nodes import FramesPerCall as Node
from reelbrush.nodes.diffusion.rows import FRAMES, Chunk, FramesPerCall, frames_of, rows, select

from .attention_tools import BOTH, INSIDE, counted, latents, levels, make, sample

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


def test_rows_that_do_not_divide_are_refused_in_words():
    with pytest.raises(RuntimeError, match="5 rows do not divide among 2"):
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
    splitter = FramesPerCall(0)
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
    FramesPerCall(4).estimate(run, None, torch.Size([64, 4, 8, 8]), {}, model_options={})
    FramesPerCall(0).estimate(run, None, [64, 4, 8, 8], {})
    assert shapes == [[4, 4, 8, 8], [1, 4, 8, 8]]


class Control:
    """What core's ControlBase keeps."""

    def __init__(self, frames, previous=None):
        self.cond_hint_original = torch.arange(frames * 1.0).view(frames, 1, 1, 1)
        self.cond_hint = torch.full((1,), 99.0)
        self.extra_concat_orig, self.extra_concat = [self.cond_hint_original * 10], None
        self.previous_controlnet, self.network, self.timestep_range = previous, object(), (5, 1)


def test_hints_stay_with_their_frames():
    control = Control(6, previous=Control(1))
    shared = {}
    first, second = (Chunk([a, a + 1], [a, a + 1], 6, shared) for a in (0, 2))
    positive = first.cond({"model_conds": {}, "control": control})
    negative = first.cond({"model_conds": {}, "control": control})
    other = second.cond({"model_conds": {}, "control": control})["control"]
    mine = positive["control"]
    assert mine is negative["control"]  # or conds and unconds would not share a call
    assert mine.cond_hint_original.flatten().tolist() == [0, 1]
    assert other.cond_hint_original.flatten().tolist() == [2, 3]
    assert other.extra_concat_orig[0].flatten().tolist() == [20, 30]
    assert other.previous_controlnet.cond_hint_original.flatten().tolist() == [0]
    assert mine.cond_hint is None and mine.network is control.network and mine.timestep_range == (5, 1)
    assert control.cond_hint_original.shape[0] == 6 and control.cond_hint is not None  # theirs is untouched
    again = Chunk([0, 1], [0, 1], 6, shared).control(control)
    assert again is mine  # scaled hints are kept from step to step


def test_hints_in_a_window_are_those_of_the_clip():
    """Core Context Windows hand the whole hint to every window."""
    control = Control(8)
    chunk = Chunk([0, 1], [5, 6], 3, {})
    assert chunk.control(control).cond_hint_original.flatten().tolist() == [5, 6]


def test_a_control_that_slices_for_itself_is_told_its_frames():
    control = Control(6)
    control.sub_idxs = None
    new = Chunk([2, 3], [2, 3], 6, {}).control(control)
    assert (new.sub_idxs, new.full_latent_length, new.context_length) == ([2, 3], 6, 2)
    assert len(new.cond_hint_original) == 6 and control.sub_idxs is None


def test_conditioning_of_every_shape_is_cut_to_the_chunk():
    class Cond:
        def __init__(self, cond):
            self.cond = cond

        def _copy_with(self, cond):
            return Cond(cond)

    per_frame, single = Cond(torch.arange(5.0)), Cond(torch.zeros(1, 3))
    cycling, number = Cond(torch.arange(2.0)), Cond(7)
    entry = {
        "model_conds": {"per_frame": per_frame, "single": single, "cycling": cycling, "number": number},
        "mask": torch.arange(5.0)[:, None, None],
        "strength": 0.5,
    }
    new = Chunk([3, 4], [3, 4], 5, {}).cond(entry)
    assert new["model_conds"]["per_frame"].cond.tolist() == [3, 4]
    assert new["model_conds"]["single"] is single and new["model_conds"]["number"] is number
    assert new["model_conds"]["cycling"].cond.tolist() == [1, 0]  # as core repeats short ones
    assert new["mask"].flatten().tolist() == [3, 4] and new["strength"] == 0.5
    assert entry["model_conds"]["per_frame"].cond.tolist() == [0, 1, 2, 3, 4]


def test_copies_of_controls_are_dropped_after_the_run():
    splitter, control = FramesPerCall(1), Control(2)
    copy = Chunk([0], [0], 2, splitter._controls).control(control)
    copy.cond_hint = torch.ones(1)
    splitter.cleanup()
    assert not splitter._controls and copy.cond_hint is None and control.cond_hint is not None


@pytest.mark.comfyui
def test_core_context_windows_are_obeyed():
    """Windows of 4 with overlap 1 over 7 frames: parts see the window's clip frames, split by our node "
    "too."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    model = make("comfy")
    windowed = ContextWindowsManualNode.execute(model, 4, 1, "standard_static", 1, False, "pyramid", 0).args[
        0
    ]
    seen = []

    def part(call):
        seen.append(rows(call.options, len(call.x)).frames)
        return call.run()

    unet.attach(windowed, "test", part)
    sample(windowed, frames=7, sigmas=levels(model, 6))
    assert seen == [(0, 1, 2, 3), (3, 4, 5, 6)] * 6
    seen.clear()
    sample(Node().patch(windowed, 3)[0], frames=7, sigmas=levels(model, 6))
    assert seen == [(0, 1, 2), (3,), (3, 4, 5), (6,)] * 6


def test_frames_of_falls_back_to_the_batch():
    assert frames_of({FRAMES: [1, 2, 3]}, 2) == [0, 1]
