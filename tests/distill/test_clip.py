"""Clips: which frames share a call, where they start, what a cut does."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from reelbrush.kernels.flow import warp
from reelbrush.nodes.distill import clip
from reelbrush.nodes.distill.clip import (
    LatentFlow,
    Schedule,
    batches,
    move,
    predecessors,
    stylize,
    warm_start,
)
from reelbrush.nodes.distill.optimize import DistillRecipe, distill, falling, gradient
from reelbrush.nodes.flow.estimate import Flow

from .small import contents, latents, model, references, rows_seen, styles

CALLS = [
    pytest.param(5, (), 2, False, [(0, 5, False)], id="no warm starts: all at once"),
    pytest.param(5, (), 2, True, [(0, 1, False), (1, 3, True), (3, 5, True)], id="first frame alone"),
    pytest.param(
        6, (3,), 4, True, [(0, 1, False), (1, 3, True), (3, 4, False), (4, 6, True)], id="a cut starts afresh"
    ),
    pytest.param(3, (1, 2), 4, True, [(0, 1, False), (1, 2, False), (2, 3, False)], id="nothing but cuts"),
    pytest.param(2, (0, 2, 9), 1, True, [(0, 1, False), (1, 2, True)], id="cuts outside the clip"),
]


@pytest.mark.parametrize(("frames", "cuts", "per_call", "warm", "expected"), CALLS)
def test_a_clip_is_split_into_batches(frames, cuts, per_call, warm, expected):
    assert [
        (c.frames.start, c.frames.stop, c.warm) for c in batches(frames, cuts, per_call, warm)
    ] == expected


NO_LAG = torch.zeros(1, 2, 8, 12)


def shifting(frames, size=(64, 96), pixels=(8, 0), cuts=()):
    """The flow of a picture that moves by so many pixels a frame; what enters is not valid."""
    pairs = frames - 1
    forward = torch.zeros(pairs, 2, *size)
    forward[:, 0], forward[:, 1] = pixels
    valid = torch.ones(pairs, *size, dtype=torch.bool)
    back_valid = valid.clone()
    back_valid[..., : int(pixels[0])] = False
    return Flow(forward, -forward, valid, back_valid, cuts=cuts)


def test_a_change_goes_along_the_flow_onto_the_new_content():
    z, content = latents(1), contents(3)  # one pixel of 8x12 latents is eight pixels of the clip
    latent_flow = LatentFlow(shifting(3), content)
    start, _ = warm_start(z, content, latent_flow, 0, range(1, 3), NO_LAG)
    change = z[0] - content[0]
    torch.testing.assert_close(start[0, :, :, 1:], content[1, :, :, 1:] + change[:, :, :-1])
    torch.testing.assert_close(start[1, :, :, 2:], content[2, :, :, 2:] + change[:, :, :-2])
    # What came in from beyond the frame is changed as its place was.
    torch.testing.assert_close(start[0, :, :, :1], content[1, :, :, :1] + change[:, :, :1])
    torch.testing.assert_close(start[1, :, :, :2], content[2, :, :, :2] + change[:, :, :2])
    one, _ = warm_start(z, content[:1], latent_flow, 0, [1], NO_LAG)
    torch.testing.assert_close(one, start[:1] - content[1] + content[0])
    moved, _ = warm_start(z, None, latent_flow, 0, [1, 2], NO_LAG)
    assert torch.equal(moved[1:, ..., 2:], z[..., :-2])


@pytest.mark.parametrize("per_call", [1, 3])
@pytest.mark.parametrize("pixels", [0.5, 1, 3, 4, 5, 7.5, 8, 11, 12])
def test_a_change_stays_with_its_content_in_a_pan_of_any_speed(monkeypatch, pixels, per_call):
    """16 frames; one marked latent pixel stands for the change, and no optimization touches it."""
    frames, width = 17, 40
    flow = shifting(frames, (64, 8 * width), (pixels, 0))
    start = torch.zeros(frames, 4, 8, width)
    start[0, :, 4, 5] = 1
    monkeypatch.setattr(clip, "distill", lambda references, z, *_, **__: z)
    recipe = DistillRecipe(frames_per_call=per_call)
    out = stylize(SimpleNamespace(content=None), start, recipe, Schedule(5, 2), flow=flow)
    for frame in range(frames):
        x = int(out[frame, 0, 4].argmax())
        assert out[frame, 0, 4, x] == 1
        assert abs(x - (5 + frame * pixels / 8)) <= 0.5 + 1e-4


def test_an_unchanged_frame_hands_on_nothing_over_any_number_of_frames():
    content, latent_flow = contents(9), LatentFlow(shifting(9, pixels=(11, 5)), contents(9))
    start, lag = content[:1], NO_LAG
    for frame in range(1, 9):
        start, lag = warm_start(start, content, latent_flow, frame - 1, [frame], lag)
        torch.testing.assert_close(start, content[frame : frame + 1])


def test_moving_copies_and_never_mixes():
    """A flow of parts of pixels, against a loop over the pixels."""
    images, flow = latents(2), 2 * latents(2, seed=7)[:, :2]
    out, lag = move(images, flow, NO_LAG)
    for n, y, x in product(range(2), range(8), range(12)):
        to_x, to_y = x + round(float(flow[n, 0, y, x])), y + round(float(flow[n, 1, y, x]))
        if not (0 <= to_x < 12 and 0 <= to_y < 8):
            to_x, to_y = x, y
        assert torch.equal(out[n, :, y, x], images[n, :, to_y, to_x])
        if (to_x, to_y) != (x, y):
            expected = torch.tensor([to_x - x, to_y - y]) - flow[n, :, y, x]
            torch.testing.assert_close(lag[n, :, y, x], expected)


def test_a_warm_frame_takes_few_steps_and_a_frame_after_a_cut_all(monkeypatch):
    rows, content = rows_seen(monkeypatch), contents(4)
    with references(model(), styles(), content) as refs:
        refs.memory = 1 << 30
        out = stylize(refs, content, DistillRecipe(), Schedule(5, 2), flow=shifting(4, cuts=(2,)))
        first = distill(refs, content[2:3], falling(5), DistillRecipe(), frames=range(2, 3))
    assert sum(n for n, grad in rows if grad) == 5 + 2 + 5 + 2 + 5
    assert torch.equal(out[2], first[0])  # nothing crosses the cut
    styled = [n for n, grad in rows if not grad]
    assert len(styled) == (5 + 1 + 5 + 1 + 5) + len({*falling(5), *falling(1)})  # the style once per timestep


def test_a_warm_start_begins_nearer(monkeypatch):
    """On a clip that rests, the second frame's first loss is the first frame's last one or so."""
    seen, content = [], contents(1).expand(2, -1, -1, -1)
    with references(model(), styles(), content) as refs:
        stylize(
            refs,
            content,
            DistillRecipe(),
            Schedule(8, 8),
            flow=shifting(2, pixels=(0, 0)),
            report=seen.append,
        )
    style = [s.style for s in seen]
    assert abs(style[8] - style[0]) > 0.5 * abs(style[7] - style[0])


def test_a_chain_of_warm_frames_neither_drifts_nor_freezes():
    """Eight frames whose content jumps to a new one at the fourth, without a cut: every frame's style loss
    falls about as far as in all steps from its content, and its queries are nearer to its own content's."""
    content, recipe = contents(2)[[0, 0, 0, 1, 1, 1, 1, 1]], DistillRecipe()

    def losses(refs, z, of):
        each = [gradient(refs, refs.style_at(t), z, t, recipe, (of,))[0] for t in (201, 601)]
        return torch.stack(each).mean(dim=0)[:, 0].tolist()

    with references(model(), styles(), content) as refs:
        refs.memory = 1 << 30
        out = stylize(refs, content, recipe, Schedule(12, 4), flow=shifting(8, pixels=(0, 0)))
        cold = distill(refs, content[3:4], falling(12), recipe, frames=[3])
        for frame, other in ((2, 3), (3, 2), (7, 0)):
            begin = losses(refs, content[frame : frame + 1], frame)[0]
            alone = losses(refs, cold if frame > 2 else out[:1], frame)[0]
            style, near = losses(refs, out[frame : frame + 1], frame)
            assert begin - style > 0.8 * (begin - alone)
            assert near < 0.9 * losses(refs, out[frame : frame + 1], other)[1]


def test_the_temporal_term_pulls_towards_the_warped_frame_before():
    content, gaps = contents(2).double(), []
    flow = shifting(2)
    for weight in (0.0, 5.0):
        with references(model(dtype=torch.float64), content=content) as refs:
            out = stylize(refs, content, DistillRecipe(temporal_weight=weight), Schedule(4), flow=flow)
        gaps.append(float((out[1, :, :, 1:] - out[0, :, :, :-1]).abs().mean()))
    assert gaps[1] < 0.98 * gaps[0]


def test_anchors_are_warped_predecessors_and_stop_at_cuts():
    z, flow = latents(3), shifting(3, cuts=(2,))
    anchor = predecessors(z, None, LatentFlow(flow, z), range(3))
    assert anchor.weight[0].sum() == 0
    assert anchor.weight[2].sum() == 0
    back = torch.zeros(1, 2, 8, 12)
    back[:, 0] = -1
    torch.testing.assert_close(anchor.z[1:2], warp(z[:1], back))


def test_wrong_flows_raise_an_error():
    with references(model()) as refs:
        with pytest.raises(ValueError, match="connect a flow"):
            stylize(refs, contents(2), DistillRecipe(temporal_weight=1.0), Schedule(1))
        with pytest.raises(ValueError, match="the flow belongs to 3 frames"):
            stylize(refs, contents(2), DistillRecipe(), Schedule(1, 1), flow=shifting(3))
        strided = Flow(**{**vars(shifting(3)), "stride": 2})
        with pytest.raises(ValueError, match="stride 1"):
            clip.LatentFlow(strided, contents(4))
