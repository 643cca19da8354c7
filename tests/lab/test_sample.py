"""The flow of the sample is exact: checked by moving pixels along it."""

import pytest
import torch
from torch.nn.functional import grid_sample

from reelbrush.lab.sample import camera, draw, scene, scenery, style_pictures
from reelbrush.nodes import sample
from reelbrush.nodes.common import pictures
from reelbrush.nodes.video import codec

SMALL = (192, 108)


@pytest.fixture(scope="module")
def main():
    return scene.scene(4, SMALL)


@pytest.fixture(scope="module")
def still():
    return scene.scene(12, SMALL, "still")


def moved(frame, flow):
    """The frame looked up where the flow points, bilinear: an oracle of its own."""
    h, w = flow.shape[:2]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([(x + flow[..., 0]) * 2 / (w - 1) - 1, (y + flow[..., 1]) * 2 / (h - 1) - 1], -1)
    planes = frame.permute(2, 0, 1)[None].float()
    return grid_sample(planes, at[None].float(), align_corners=True)[0].permute(1, 2, 0)


def test_frames_are_pictures_and_the_same_every_time(main):
    assert main.frames.shape == (4, 108, 192, 3) and main.frames.dtype == torch.float32
    assert main.frames.min() >= 0 and main.frames.max() <= 1 and main.frames.std() > 0.15
    assert torch.equal(main.frames[:2], scene.scene(2, SMALL, flow=False).frames)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_flow_takes_visible_pixels_to_where_they_are_and_hidden_ones_to_something_else(main, way):
    ahead = way == "forward"
    for i in range(3):
        start, end = (main.frames[i], main.frames[i + 1]) if ahead else (main.frames[i + 1], main.frames[i])
        flow, hidden = getattr(main, way)[i], getattr(main, f"occluded_{way}")[i]
        wrong = (moved(end, flow) - start).abs().amax(-1)
        inside = ~hidden
        inside[:2] = inside[-2:] = inside[:, :2] = inside[:, -2:] = False
        assert wrong[inside].mean() < 0.03
        assert wrong[inside].mean() < 0.25 * (start - end).abs().amax(-1)[inside].mean()
        assert 0.01 < hidden.float().mean() < 0.15


def test_visible_pixels_come_back_to_where_they_started(main):
    for i in range(3):
        back = moved(main.backward[i], main.forward[i])
        gap = (main.forward[i] + back).norm(dim=-1)[~main.occluded_forward[i]]
        assert (gap < 0.1).float().mean() > 0.93  # the rest are neighbours of an edge, mixed by the look-up


def test_the_camera_moves_and_the_near_moves_more(main):
    size = main.forward[0].norm(dim=-1)
    assert size[-8:].mean() > 1.5 * size[:8, -20:].mean() > 0.5


def test_a_still_camera_leaves_the_background_as_it_is_bit_for_bit(still):
    resting = (still.forward.abs().amax(-1) == 0).all(0) & (still.backward.abs().amax(-1) == 0).all(0)
    assert resting.float().mean() > 0.85
    change = (still.frames - still.frames[0]).abs().amax((0, 3))
    calm = -torch.nn.functional.max_pool2d((~resting).float()[None], 15, 1, 7)[0] + 1 > 0
    assert change[calm].max() == 0
    assert change[~resting].max() > 0.3


def test_nothing_is_seen_across_the_cut():
    cut = scene.scene(4, SMALL, "cut")
    assert cut.occluded_forward[1].all() and cut.occluded_backward[1].all()
    assert not cut.occluded_forward[0].all() and not cut.occluded_forward[2].all()
    within, across = ((cut.frames[i] - cut.frames[i + 1]).abs().mean() for i in (0, 1))
    assert across > 2 * within


def test_a_long_clip_stays_inside_the_painted_world():
    late = scene.scene(1, SMALL, flow=False)
    view = camera.Camera(SMALL, scenery.NOON, 7, scene.pan)
    assert torch.equal(late.frames[0], torch.from_numpy(view.frame(0)))
    for t in (47, 95, 200, 299):
        assert view.frame(t).min(-1).mean() > 0.05  # no black holes at the sides
        assert (view.frame(t).max(-1) == 0).mean() == 0


def test_dis_finds_the_motion_of_the_full_sample():
    cv2 = pytest.importorskip("cv2")
    full = scene.scene(2)
    grey = [cv2.cvtColor((f.numpy() * 255).astype("uint8"), cv2.COLOR_RGB2GRAY) for f in full.frames]
    estimate = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    visible = ~full.occluded_forward[0]
    assert full.forward[0].norm(dim=-1)[visible].mean() > 2
    assert (torch.from_numpy(estimate) - full.forward[0]).norm(dim=-1)[visible].mean() < 0.5


def test_wrong_requests_are_error_messages():
    with pytest.raises(ValueError, match="no variant 'night'"):
        scene.scene(variant="night")
    with pytest.raises(ValueError, match="1 frame and 16 pixels or more"):
        scene.scene(0)
    with pytest.raises(ValueError, match="no style picture 'cubes'"):
        scene.style("cubes")


def test_the_tune_moves_from_left_to_right():
    left, right = scene.tune(2.0, 22050)
    assert left.shape == (44100,) and max(abs(left).max(), abs(right).max()) <= 1
    half = len(left) // 2
    balance = [
        (right[part] ** 2).sum() / (left[part] ** 2).sum() for part in (slice(0, half), slice(half, None))
    ]
    assert balance[1] > 2 * balance[0]


@pytest.mark.parametrize("name", style_pictures.NAMES)
def test_style_pictures_are_rich_and_the_same_every_time(name):
    size = (64, 48)
    picture = scene.style(name, size)
    assert picture.shape == (48, 64, 3) and picture.min() >= 0 and picture.max() <= 1
    assert picture.std(dim=(0, 1)).min() > 0.08
    assert name == "swirls" or torch.equal(picture, scene.style(name, size))  # 8000 strokes: once is enough


@pytest.mark.slow
def test_the_shipped_clips_are_what_is_drawn():
    names = set()
    for name, drawn in draw.clips():
        with codec.Reader(sample.FOLDER / name) as reader:
            shipped = torch.stack([codec.to_float(frame) for frame, _ in reader])
        assert shipped.shape == drawn.shape
        wrong = (shipped - drawn).square().mean((1, 2, 3))
        change = (shipped[1:] - drawn[:-1]).square().mean((1, 2, 3))
        assert wrong.max() < 1e-3 and wrong.max() < change.min() / 4, name
        names.add(name)
    assert names == {sample.CLIP, sample.CLIP_CUT, sample.CLIP_STYLIZED, sample.MASK_FAR, sample.MASK_NEAR}


@pytest.mark.slow
def test_the_shipped_style_pictures_are_what_is_drawn():
    drawn = dict(draw.styles())
    assert tuple(drawn) == sample.STYLES
    for name, picture in drawn.items():
        shipped, _ = pictures.read(sample.FOLDER / name)
        assert (shipped - picture).abs().max() < 0.51 / 255, name
    for name, picture in zip(sample.CONTENTS, scene.views(), strict=True):
        shipped, _ = pictures.read(sample.FOLDER / name)
        assert (shipped - picture).square().mean() < 1e-3, name


def test_a_drawn_clip_has_its_sound(tmp_path, main):
    draw.write_clip(tmp_path / "clip.mp4", main.frames)
    info = codec.probe(tmp_path / "clip.mp4", count=True)
    assert (info.width, info.height, info.frame_count, info.fps) == (*SMALL, 4, scene.FPS)
    assert info.has_audio
