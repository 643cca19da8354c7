"""Stabilising: flicker goes, detail stays, nothing drifts, nothing haunts."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes.flow import measure
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.stabilize import StabilizeFrames, Stabilizer, stabilize, stabilize_with_flow
from reelbrush.nodes.video.lazy_video import LazyVideo

from .scenes import exact, flickering, occluder, sample_scene, texture


def painted(frames):
    """A style that depends on nothing but the colour."""
    return (frames.flip(-1) * 0.6 + (frames * 6).round() / 15).clamp(0, 1)


def halved(frames):
    return torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def planted():
    """The sample at half its size, with the flow of the whole one."""
    scene = sample_scene(6)
    scene = replace(scene, frames=halved(scene.frames))
    return scene, flickering(painted(scene.frames))


def error(clip, scene, cuts=()):
    return measure.batch(clip, None, exact(scene, cuts), convention(), "").error


@pytest.mark.parametrize("source", ["content", "flow", "both"])
def test_planted_flicker_is_at_least_halved(planted, source):
    scene, stylized = planted
    if source == "content":
        out = stabilize(stylized, scene.frames, 0.8, "dis-medium")
    else:
        content = scene.frames if source == "both" else None
        out = stabilize_with_flow(stylized, exact(scene), content, 0.8)
    assert error(out, scene) < 0.5 * error(stylized, scene)


def test_more_strength_is_calmer_and_none_is_the_input(planted):
    scene, stylized = planted
    off = stabilize(stylized, scene.frames, 0.0, "dis-medium")
    assert torch.equal(off, stylized)
    barely = stabilize(stylized, scene.frames, 1e-4, "dis-fast")
    assert (barely - stylized).abs().max() < 1e-3  # continuous at 0
    errors = [
        error(stabilize(stylized, scene.frames, strength, "dis-fast"), scene) for strength in (0.2, 0.5, 0.9)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_calm_clip_stays_sharp():
    fine = torch.stack([texture(72, 200 + 12, 3, soft=1)[:, 12 - t : 212 - t] for t in range(12)])
    moving = fine.unflatten(2, (100, 2)).mean(3)  # half a pixel per frame
    out = stabilize(moving, moving, 0.8, "dis-medium")
    detail = lambda x: (x[-1, 8:-8, 9:-8] - x[-1, 8:-8, 8:-9]).square().mean()  # noqa: E731
    assert detail(out) > 0.8 * detail(moving)  # resampled bilinearly, half of it is lost


def test_the_resting_background_does_not_drift_in_300_frames():
    frames = 300
    back, front = texture(48, 64, 1), texture(12, 12, 2).flip(-1) * 0.6
    run = Stabilizer(0.8, "dis-medium")
    for t in range(frames):
        left = 4 + abs((t * 2) % 80 - 40)
        content = back.clone()
        content[4:16, left : left + 12] = front
        noisy = (
            content + 0.004 * torch.randn(content.shape, generator=torch.Generator().manual_seed(t))
        ).clamp(0, 1)
        out = run.push(painted(content), noisy)
    rest = out[20:] - painted(back)[20:]
    assert rest.abs().mean() < 0.5 / 255


def test_there_is_no_ghost_where_the_occluder_was():
    content, masks, _ = occluder(10, 64, 96, 20, 5)
    stylized = painted(content)
    out = stabilize(stylized, content, 0.8, "dis-medium")
    uncovered = masks[:-1] & ~masks[1:]
    ghost = (out - stylized)[1:][uncovered].abs().mean()
    without_care = (stylized[:-1] - stylized[1:])[uncovered].abs().mean() * 0.8
    assert ghost < 0.1 * without_care


@pytest.mark.parametrize("with_flow", [False, True])
def test_nothing_comes_across_a_cut(with_flow):
    scene = sample_scene(8, "cut")
    scene = replace(scene, frames=halved(scene.frames))
    stylized = flickering(painted(scene.frames))
    if with_flow:
        everywhere = exact(scene, cuts=(4,))
        everywhere.backward_valid.fill_(True)  # even a flow that trusts everything
        out = stabilize_with_flow(stylized, everywhere, None, 0.8)
    else:
        out = stabilize(stylized, scene.frames, 0.8, "dis-fast")
    assert torch.equal(out[4], stylized[4]) and torch.equal(out[0], stylized[0])
    assert not torch.equal(out[5], stylized[5])


def test_the_stylized_clip_may_have_another_size(planted):
    scene, stylized = planted
    out = stabilize(stylized, halved(scene.frames), 0.8, "dis-medium")
    assert out.shape == stylized.shape and error(out, scene) < 0.5 * error(stylized, scene)


# -- streaming -------------------------------------------------------------------------------------


def videos(planted):
    scene, stylized = planted
    eight = lambda x: x[:, ::2, ::2].mul(255).round().div(255).contiguous()  # noqa: E731
    return eight(stylized), eight(scene.frames)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_a_stream_is_the_batch_whatever_its_chunks(planted, chunk, home):
    stylized, content = videos(planted)
    batch = stabilize(stylized, content, 0.8, "dis-fast")
    clips = [LazyVideo.from_frames(x, Fraction(24)) for x in (stylized, content)]
    lazy = clips[0].then(StabilizeFrames, clips[1].operation, 0.8, "dis-fast")
    out = torch.cat(list(lazy.chunks(chunk)))
    torch.testing.assert_close(out, batch, atol=0.5 / 255 + 1e-6, rtol=0)  # frames between nodes are 8 bits


def test_a_restored_state_goes_on_as_if_nothing_had_happened(planted):
    stylized, content = videos(planted)
    whole, first = Stabilizer(0.8, "dis-fast"), Stabilizer(0.8, "dis-fast")
    expected = [whole.push(*pair) for pair in zip(stylized, content, strict=True)]
    for pair in zip(stylized[:3], content[:3], strict=True):
        first.push(*pair)
    kept = {key: tensor.clone() for key, tensor in first.state().items()}
    second = Stabilizer(0.8, "dis-fast")
    second.restore(kept)
    for t in range(3, len(stylized)):
        assert torch.equal(second.push(stylized[t], content[t]), expected[t])
    fresh = Stabilizer(0.8, "dis-fast")
    fresh.restore(fresh.state())
    assert torch.equal(fresh.push(stylized[0], content[0]), expected[0])


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_alpha_stays_with_its_frames(strength):
    content = torch.rand(3, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(3, 24, 32, 1, generator=torch.Generator().manual_seed(1))
    out = stabilize(torch.cat([content, alpha], -1), content, strength, "dis-fast")
    assert torch.equal(out[..., 3:], alpha)
