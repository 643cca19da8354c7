"""Clips: which frames share a call, where they start, what a cut does."""

from itertools import pairwise

import pytest
import torch

from reelbrush.kernels.flow import warp
from reelbrush.nodes.distill import clip
from reelbrush.nodes.distill.clip import Motion, calls, carried, neighbours, stylize
from reelbrush.nodes.distill.optimize import Recipe, distill, falling
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
def test_a_clip_is_split_into_calls(frames, cuts, per_call, warm, expected):
    assert [(c.frames.start, c.frames.stop, c.warm) for c in calls(frames, cuts, per_call, warm)] == expected


def shifting(frames, size=(64, 96), pixels=(8, 0), cuts=()):
    """The flow of a picture that moves by so many pixels a frame; what enters is not valid."""
    pairs = frames - 1
    forward = torch.zeros(pairs, 2, *size)
    forward[:, 0], forward[:, 1] = pixels
    valid = torch.ones(pairs, *size, dtype=torch.bool)
    back_valid = valid.clone()
    back_valid[..., : pixels[0]] = False
    return Flow(forward, -forward, valid, back_valid, cuts=cuts)


def test_frames_of_a_call_start_where_the_last_result_went():
    z = latents(3)  # one pixel of 8x12 latents is eight pixels of the clip
    motion = Motion(shifting(3), z)
    start = carried(z[:1], z[1:], motion, range(1, 3))
    # A latent pixel that touches an invalid one is not valid: one more column than came in.
    torch.testing.assert_close(start[0, :, :, 2:], z[0, :, :, 1:-1])
    torch.testing.assert_close(start[1, :, :, 4:], z[0, :, :, 2:-2])
    new = start[1, :, :, :2]  # came into the picture: the content, in the result's colours
    assert not torch.equal(new, z[2, :, :, :2])
    wanted = (z[2] - z[2].mean((1, 2), True)) / z[2].std((1, 2), keepdim=True)
    wanted = wanted * z[0].std((1, 2), keepdim=True) + z[0].mean((1, 2), True)
    torch.testing.assert_close(new, wanted[:, :, :2], atol=1e-3, rtol=1e-3)


def test_a_warm_frame_takes_few_steps_and_a_frame_after_a_cut_all(monkeypatch):
    rows, content = rows_seen(monkeypatch), contents(4)
    with references(model(), styles(), content) as refs:
        refs.memory = 1 << 30
        out = stylize(refs, content, Recipe(), steps=5, warm_steps=2, flow=shifting(4, cuts=(2,)))
        first = distill(refs, content[2:3], falling(5), Recipe(), frames=range(2, 3))
    assert sum(n for n, grad in rows if grad) == 5 + 2 + 5 + 2 + 5
    assert torch.equal(out[2], first[0])  # nothing crosses the cut
    styled = [n for n, grad in rows if not grad]
    assert len(styled) == (5 + 2 + 5 + 2 + 5) + len({*falling(5), *falling(2)})  # the style once per timestep


def test_a_warm_start_begins_nearer(monkeypatch):
    """On a clip that rests, the second frame's first loss is the first frame's last one or so."""
    seen, content = [], contents(1).expand(2, -1, -1, -1)
    with references(model(), styles(), content) as refs:
        stylize(
            refs,
            content,
            Recipe(),
            steps=8,
            warm_steps=8,
            flow=shifting(2, pixels=(0, 0)),
            report=seen.append,
        )
    style = [s.style for s in seen]
    assert abs(style[8] - style[0]) > 0.5 * abs(style[7] - style[0])


def test_a_warm_frame_comes_to_rest():
    """Adam's steps are about as long as its rate: constant in a cold call, fading in a warm one."""
    content, z = contents(2), []
    with references(model(), styles(), content) as refs:
        stylize(
            refs,
            content,
            Recipe(),
            steps=12,
            warm_steps=12,
            flow=shifting(2, pixels=(0, 0)),
            report=lambda step: z.append(step.z.clone()),
        )
    moves = [float((b - a).abs().mean()) for a, b in pairwise(z)]
    cold, warm = moves[:11], moves[12:]
    assert cold[-1] > 0.2 * cold[0]
    assert warm[-1] < 0.2 * warm[0]


def test_the_temporal_term_pulls_towards_the_warped_frame_before():
    content, gaps = contents(2).double(), []
    flow = shifting(2)
    for weight in (0.0, 5.0):
        with references(model(dtype=torch.float64), content=content) as refs:
            out = stylize(refs, content, Recipe(temporal_weight=weight), steps=4, flow=flow)
        gaps.append(float((out[1, :, :, 1:] - out[0, :, :, :-1]).abs().mean()))
    assert gaps[1] < 0.98 * gaps[0]


def test_anchors_are_warped_predecessors_and_stop_at_cuts():
    z, flow = latents(3), shifting(3, cuts=(2,))
    anchor = neighbours(z, None, Motion(flow, z), range(3))
    assert anchor.weight[0].sum() == 0
    assert anchor.weight[2].sum() == 0
    back = torch.zeros(1, 2, 8, 12)
    back[:, 0] = -1
    torch.testing.assert_close(anchor.z[1:2], warp(z[:1], back))


def test_wrong_flows_are_refused_in_words():
    with references(model()) as refs:
        with pytest.raises(ValueError, match="connect a flow"):
            stylize(refs, contents(2), Recipe(temporal_weight=1.0), steps=1)
        with pytest.raises(ValueError, match="the flow is of 3 frames"):
            stylize(refs, contents(2), Recipe(), steps=1, warm_steps=1, flow=shifting(3))
        strided = Flow(**{**vars(shifting(3)), "stride": 2})
        with pytest.raises(ValueError, match="stride 1"):
            clip.Motion(strided, contents(4))
