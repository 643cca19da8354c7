"""Scene cuts: found where places change, not where light or cameras do."""

import pytest
import torch

from reelbrush.nodes.flow.cuts import CutDetector, find_cuts

from .scenes import flickering, sample_scene, sliding, texture


def test_the_cut_of_the_sample_is_found():
    scene = sample_scene(8, "cut")
    assert find_cuts(scene.frames) == [4]
    assert find_cuts(flickering(scene.frames)) == [4]


@pytest.mark.parametrize("variant", ["main", "still"])
def test_one_shot_has_no_cut(variant):
    assert find_cuts(sample_scene(4, variant).frames) == []


def test_a_flash_is_no_cut():
    clip, _ = sliding(6, 60, 80, 1, 0)
    clip[3] = (clip[3] * 1.5 + 0.2).clamp(0, 1)
    assert find_cuts(clip) == []


def test_a_fast_pan_is_no_cut():
    clip, _ = sliding(5, 90, 160, 12, 3)
    assert find_cuts(clip) == []


def test_every_change_of_place_is_a_cut():
    places = [texture(60, 80, seed) ** power for seed, power in ((0, 1), (1, 3), (2, 0.4))]
    clip = torch.stack([place for place in places for _ in range(3)])
    assert find_cuts(clip) == [3, 6]


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (20, 9)])
def test_small_frames_do_not_matter(size):
    assert find_cuts(texture(*size).expand(3, -1, -1, -1)) == []


def test_pushing_frames_finds_what_the_batch_finds():
    frames, detector = sample_scene(8, "cut").frames, CutDetector()
    assert [t for t, frame in enumerate(frames) if detector.push(frame)] == [4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("bunny_640x360_24fps_audio.mp4", [235]),
        ("nasa_320x180_25fps_audio.mp4", [202]),
        ("bikes_640x272_25fps.mp4", [30, 76, 137, 187, 242]),
        ("truck_512x512_10fps.mp4", []),
    ],
)
def test_cuts_of_real_clips_as_a_person_sees_them(data, name, cuts):
    import av

    found, detector = [], CutDetector()
    with av.open(str(data / "clips" / name)) as file:
        for t, frame in enumerate(file.decode(video=0)):
            if detector.push(torch.from_numpy(frame.to_ndarray(format="rgb24")) / 255):
                found.append(t)
    assert found == cuts
