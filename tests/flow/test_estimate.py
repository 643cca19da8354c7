"""Estimated flow: right on scenes whose motion is known, safe on frames that methods choke on."""

import builtins
import importlib

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.flow import batch, estimate
from reelbrush.nodes.flow.charts import colour_wheel
from reelbrush.nodes.flow.estimate import METHODS, Flow

from .scenes import exact, occluder, sample_scene, sliding, texture, uniform

OPENCV = [method for method in METHODS if not method.startswith("raft")]


@pytest.mark.parametrize("method", OPENCV)
def test_a_sliding_texture_is_followed(method):
    clip, truth = sliding(3, 72, 96, 3, -2)
    flow = estimate.estimate(clip, method)
    middle = (..., slice(16, -16), slice(16, -16))
    off = (flow.forward - truth.forward).norm(dim=1)[middle].mean()
    back = (flow.backward - truth.backward).norm(dim=1)[middle].mean()
    assert off < 0.5 and back < 0.5
    assert flow.forward_valid[middle].float().mean() > 0.9


def test_dis_medium_on_the_sample_is_within_half_a_pixel():
    scene = sample_scene(4)
    truth, seen = exact(scene), ~scene.occluded_forward
    assert truth.forward.norm(dim=1)[seen].mean() >= 2
    flow = estimate.estimate(scene.frames, "dis-medium")
    assert (flow.forward - truth.forward).norm(dim=1)[seen].mean() < 0.5
    both, either = (flow.forward_valid & seen).sum(), (flow.forward_valid | seen).sum()
    assert both / either > 0.95


def test_what_an_occluder_uncovers_is_not_valid():
    clip, masks, _ = occluder(3, 64, 96, size=24, step=6)
    flow = estimate.estimate(clip, "dis-medium")
    uncovered = masks[:-1] & ~masks[1:]
    covered = masks[1:] & masks[:-1]
    assert flow.backward_valid[uncovered].float().mean() < 0.3
    assert flow.backward_valid[covered].float().mean() > 0.5


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (5, 7), (11, 40), (12, 12), (40, 11), (12, 700), (31, 33), (2, 90)],
    ids=lambda side: str(side),
)
def test_frames_of_any_size_are_taken(height, width):
    frames = texture(height, width).expand(2, -1, -1, -1)
    for method in ("dis-ultrafast", "dis-medium", "farneback"):
        flow = estimate.estimate(frames, method)
        assert flow.forward.shape == (1, 2, height, width) and flow.forward.isfinite().all()


def test_small_frames_are_estimated_like_their_surroundings():
    clip, _ = sliding(2, 24, 28, 1, 0)
    flow = estimate.estimate(clip, "dis-medium")
    assert (flow.forward[0, 0, 4:-4, 4:-4].mean() - 1).abs() < 0.3


def test_a_stride_compares_frames_that_far_apart():
    clip, _ = sliding(5, 64, 80, 1, 1)
    flow = estimate.estimate(clip, "dis-medium", 3)
    assert (flow.pairs, flow.frames, flow.stride) == (2, 5, 3)
    assert (flow.forward[:, :, 16:-16, 16:-16].mean(dim=(0, 2, 3)) - 3).abs().max() < 0.3


@pytest.mark.parametrize("stride", [1, 4])
def test_a_clip_without_a_pair_has_an_empty_flow(stride):
    flow = estimate.estimate(texture(20, 30)[None], "dis-fast", stride)
    assert flow.pairs == 0 and flow.frames == 1
    valid, picture = batch.looking_back(flow)
    assert valid.shape == (1, 20, 30) and valid.sum() == 0 and (picture == 1).all()


def test_thresholds_decide_what_is_valid():
    clip, _ = sliding(2, 48, 64, 3, 1)
    strict = estimate.estimate(clip, "dis-ultrafast", consistency=(1e-6, 0.0))
    loose = estimate.estimate(clip, "dis-ultrafast", consistency=(100.0, 1.0))
    assert strict.forward_valid.sum() < loose.forward_valid.sum()


def test_a_scaled_pair_points_to_the_same_place():
    flow = uniform(3, 24, 32, 2, 1).pair(0).at(48, 96)
    assert flow.forward.shape == (1, 2, 48, 96)
    torch.testing.assert_close(flow.forward[0, :, 5, 5], torch.tensor([6.0, 2.0]))
    assert flow.forward_valid[0, :40, :80].all() and not flow.forward_valid[0, :, -1].any()


@pytest.mark.parametrize("direction", batch.DIRECTIONS)
def test_warping_by_exact_flow_gives_the_neighbour(direction):
    clip, flow = sliding(4, 24, 32, 2, -1)
    out, valid = batch.warp_clip(clip, flow, direction)
    seen = valid.bool()
    assert torch.equal(out[seen], clip[seen])
    alone = 0 if direction == "previous to next" else 3
    assert torch.equal(out[alone], clip[alone]) and not seen[alone].any()
    assert seen.float().mean() > 0.6


def test_the_wheel_shows_direction_and_speed():
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0] = torch.tensor([4.0, -4.0, 0.0, 2.0])
    right, left, rest, slow = colour_wheel(flow)[0, 0]
    assert right.tolist() == [1, 0, 0] and rest.tolist() == [1, 1, 1]
    torch.testing.assert_close(left, torch.tensor([0.0, 1, 1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(slow, torch.tensor([1, 0.5, 0.5]), atol=1e-5, rtol=0)


def test_no_opencv_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name, *args, **kwargs)

    estimate.opencv.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match="install opencv-python"):
        estimate.estimator("dis-medium")


def test_two_distributions_of_opencv_are_named(monkeypatch, caplog):
    monkeypatch.setattr(estimate, "_is_installed", lambda name: not name.endswith("headless"))
    estimate.opencv.cache_clear()
    estimate.opencv()
    assert "opencv-python, opencv-contrib-python are installed together" in caplog.text


def test_raft_without_weights_says_where_they_go(home):
    with pytest.raises(RuntimeError, match=r"models/flow/.*choose a dis method"):
        estimate.estimator("raft-large")


def test_raft_runs_with_weights_in_place(home):
    try:  # some builds of torchvision need their own operators to import
        models = importlib.import_module("torchvision.models.optical_flow")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs torchvision ({error})")
    folder = host.model_folders("flow")[0]
    folder.mkdir(parents=True, exist_ok=True)
    frames = texture(40, 50).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    small, large = folder / "raft_small_C_T_V2-01064c6d.pth", folder / "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
    try:
        torch.save(models.raft_small(weights=None).state_dict(), small)
        torch.save({"conv.weight": torch.zeros(1)}, large)
        flow = estimate.estimate(frames, "raft-small")
        assert flow.forward.shape == (1, 2, 40, 50) and flow.forward.isfinite().all()
        with pytest.raises(ValueError, match="no torchvision raft-large checkpoint"):
            estimate.estimate(frames, "raft-large")
    finally:
        small.unlink(missing_ok=True)
        large.unlink(missing_ok=True)


def test_frames_of_another_clip_are_rejected():
    with pytest.raises(ValueError, match="belongs to 4 frames"):
        uniform(4, 8, 8, 1, 0).check_frames(5)
    assert isinstance(uniform(4, 8, 8, 1, 0), Flow)
