"""Training data: folders of pictures and clips, what is held out, and what a step draws."""

from fractions import Fraction

import cv2
import numpy
import pytest
import torch
from torch.nn import functional

from reelbrush.nodes.stya2k import losses
from reelbrush.nodes.stya2k.clips import ClipPairs
from reelbrush.nodes.stya2k.data import Pictures, crop, recolor, step_rng
from reelbrush.nodes.video.lazy_video import LazyVideo

from .training_data import sources


def test_corrupt_pictures_are_skipped_and_counted(folders):
    contents, styles = sources(folders)
    assert len(contents.names) == 6
    assert contents.skipped == ["broken.jpg", "empty.png"]
    assert styles.skipped == []


def test_a_packed_folder_is_read_again_without_its_pictures(folders):
    (contents, _) = sources(folders)
    packed = Pictures(folders / "cache" / "content-72.safetensors", folders, 72)
    assert torch.equal(packed.get("0.png"), contents.get("0.png"))
    assert min(packed.get("0.png").shape[1:]) == 72


def test_folders_too_large_to_pack_are_read_as_they_are_drawn(folders):
    packed = Pictures(folders / "content", folders / "cache", 72)
    loose = Pictures(folders / "content", folders / "elsewhere", 72, limit=0)
    assert not (folders / "elsewhere").exists()
    assert all(torch.equal(loose.get(n), packed.get(n)) for n in packed.names)
    for i in range(20):
        assert loose.draw(loose.names, step_rng(0, i)).shape[0] == 3
    assert sorted(loose.skipped) == ["broken.jpg", "empty.png"]  # each once
    with pytest.raises(ValueError, match="no readable picture"):
        loose.draw(["empty.png"], step_rng(0, 0))


def test_a_small_folder_is_not_held_out_whole(folders):
    """Five styles of a user's own: the default of 15 must leave something to train on."""
    _, styles = sources(folders)
    held = styles.hold_out(15, 0)
    assert (len(styles.apart(held)), len(held)) == (4, 1)


def test_a_folder_without_pictures_gets_one_sentence(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no readable picture"):
        Pictures(tmp_path / "none", tmp_path, 64)


def test_held_out_pictures_are_not_trained_on(folders):
    contents, _ = sources(folders)
    held = contents.hold_out(2, seed=3)
    kept = contents.apart(held)
    assert (len(held), len(kept)) == (2, len(contents.names) - 2)
    assert not set(kept) & set(held)
    assert contents.hold_out(2, seed=3) == held


def test_a_held_out_picture_is_not_trained_on_at_another_size_either(tmp_path):
    rng = numpy.random.default_rng(0)
    for i in range(6):
        rough = rng.integers(0, 255, (9, 12, 3), numpy.uint8)
        for size, kind in (((160, 120), "large.png"), ((88, 66), "small.jpg")):
            image = cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / f"{i}-{kind}"), image)
    pictures = Pictures(tmp_path, tmp_path / "cache", 64)
    held = pictures.hold_out(4, seed=1)
    shown = {name[0] for name in held}
    kept = pictures.apart(held)
    assert kept and sorted(kept) == sorted(n for n in pictures.names if n[0] not in shown)


def test_crops_and_colours_depend_on_the_step_alone():
    picture = torch.rand(3, 70, 90)
    a, b = (crop(picture, 32, step_rng(5, 7)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, crop(picture, 32, step_rng(5, 8)))
    assert torch.equal(recolor(picture, step_rng(0, 0), 0.0), picture)
    assert not torch.equal(recolor(picture, step_rng(0, 3), 1.0), recolor(picture, step_rng(0, 4), 1.0))


def test_clips_give_pairs_with_motion(tmp_path):
    g = torch.Generator().manual_seed(0)
    wide = functional.interpolate(torch.rand(1, 3, 10, 16, generator=g), (80, 128), mode="bicubic").clamp(
        0, 1
    )
    frames = torch.stack([wide[0, :, :, 2 * t : 2 * t + 96].permute(1, 2, 0) for t in range(4)])
    (tmp_path / "clips").mkdir()
    LazyVideo.from_frames(frames, Fraction(12)).save_to(str(tmp_path / "clips" / "pan.mp4"))
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no clip")
    pairs = ClipPairs(tmp_path / "clips", tmp_path, 64)
    assert pairs.count == 3
    pair = pairs.draw(48, step_rng(0, 0))
    assert pair.first.shape == (3, 48, 48)
    motion = losses.MovedFrame(pair.second[None], pair.flow[None], pair.valid[None])
    still = losses.MovedFrame(pair.second[None], torch.zeros_like(pair.flow)[None], pair.valid[None])
    moved = losses.temporal_loss(pair.first[None], pair.second[None], motion)
    assert moved < 0.5 * losses.temporal_loss(pair.first[None], pair.second[None], still)


def test_a_folder_of_broken_clips_gets_one_sentence(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no clip")
    with pytest.raises(ValueError, match="none of the 1 clips"):
        ClipPairs(tmp_path / "clips", tmp_path, 64)


def test_a_damaged_packed_folder_is_packed_again(folders):
    (contents, _) = sources(folders)
    expected = contents.get("0.png")
    del contents
    packed = folders / "cache" / "content-72.safetensors"
    for data in (packed.read_bytes()[:100], b"x"):
        packed.unlink()  # it may be mapped to memory
        packed.write_bytes(data)
        (contents, _) = sources(folders)
        assert torch.equal(contents.get("0.png"), expected)
    packed.unlink()
    packed.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"content-72\.safetensors is damaged or no file of packed pictures"):
        Pictures(packed, folders, 72)
