"""Prepared conditioning and ControlNet hints, cut to some frames of a clip."""

import torch

from reelbrush.nodes.host import FrameSlice, drop_controls


class Control:
    """The attributes of ComfyUI's ControlBase."""

    def __init__(self, frames, previous=None):
        self.cond_hint_original = torch.arange(frames * 1.0).view(frames, 1, 1, 1)
        self.cond_hint = torch.full((1,), 99.0)
        self.extra_concat_orig, self.extra_concat = [self.cond_hint_original * 10], None
        self.previous_controlnet, self.network, self.timestep_range = previous, object(), (5, 1)


def test_hints_stay_with_their_frames():
    control = Control(6, previous=Control(1))
    shared = {}
    first, second = (FrameSlice([a, a + 1], [a, a + 1], 6, shared) for a in (0, 2))
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
    assert (
        control.cond_hint_original.shape[0] == 6 and control.cond_hint is not None
    )  # the original is unchanged
    again = FrameSlice([0, 1], [0, 1], 6, shared).control(control)
    assert again is mine  # scaled hints are kept from step to step


def test_hints_in_a_window_are_those_of_the_clip():
    """ComfyUI's Context Windows give the whole hint to every window."""
    control = Control(8)
    chunk = FrameSlice([0, 1], [5, 6], 3, {})
    assert chunk.control(control).cond_hint_original.flatten().tolist() == [5, 6]


def test_a_control_that_slices_for_itself_is_told_its_frames():
    control = Control(6)
    control.sub_idxs = None
    new = FrameSlice([2, 3], [2, 3], 6, {}).control(control)
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
    new = FrameSlice([3, 4], [3, 4], 5, {}).cond(entry)
    assert new["model_conds"]["per_frame"].cond.tolist() == [3, 4]
    assert new["model_conds"]["single"] is single and new["model_conds"]["number"] is number
    assert new["model_conds"]["cycling"].cond.tolist() == [1, 0]  # as core repeats short ones
    assert new["mask"].flatten().tolist() == [3, 4] and new["strength"] == 0.5
    assert entry["model_conds"]["per_frame"].cond.tolist() == [0, 1, 2, 3, 4]


def test_copies_of_controls_are_dropped_after_the_run():
    controls, control = {}, Control(2)
    copy = FrameSlice([0], [0], 2, controls).control(control)
    copy.cond_hint = torch.ones(1)
    drop_controls(controls)
    assert not controls and copy.cond_hint is None and control.cond_hint is not None
