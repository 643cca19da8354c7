"""`LazyVideo` as ComfyUI's VIDEO: the calls of old and new versions, and other packs' VIDEO objects."""

import random
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

from .graphs import all_of, frames, lazy


def newer_base():
    """A VIDEO base with the abstract methods and the calls of newer hosts."""
    from abc import ABC, abstractmethod

    class Base(ABC):
        @abstractmethod
        def get_components(self): ...

        @abstractmethod
        def save_to(self, path, format="auto", codec="auto", metadata=None, **options): ...

        @abstractmethod
        def as_trimmed(self, start_time=None, duration=None, strict_duration=False): ...

    return Base


def test_the_newer_protocol(home):
    cls = type("Hosted", (LazyVideo, newer_base()), {})
    video = cls(lazy(24, (32, 48)).operation)
    assert video.get_dimensions() == (48, 32) == video.get_display_dimensions()
    assert (video.get_frame_rate(), video.get_frame_count(), video.get_duration()) == (12, 24, 2.0)
    assert (video.get_bit_depth(), video.get_color_space()) == (8, "auto")
    assert video.get_active_trim_window() == (0.0, 0.0)
    assert video.has_pending_frame_edits()
    assert video.as_trimmed(0.5, 1.0).get_frame_count() == 12
    assert video.as_trimmed(0, 0.01).get_frame_count() == 1
    assert video.as_trimmed(2.5, 1.0) is None
    assert video.as_trimmed(1.5, 1.0, True) is None
    assert video.as_cropped(4, 2, 16, 12).get_dimensions() == (16, 12)
    assert torch.equal(all_of(video.as_cropped(4, 2, 16, 12)), all_of(video)[:, 2:14, 4:20])
    assert video.as_resized(24, 16, "area").get_dimensions() == (24, 16)
    video.save_to(
        str(home / "a.mp4"),
        "mp4",
        "h264",
        {"prompt": {"1": {}}},
        bit_depth=8,
        crf=18,
        color_space="sRGB",
        preset="fast",
    )
    assert codec.probe(home / "a.mp4").frame_count == 24
    source = LazyVideo.from_file(home / "a.mp4")
    assert source.get_stream_source() == str(home / "a.mp4")
    assert not source.has_pending_frame_edits()


def cut_by_hand(pictures, start, frames, every):
    cut = pictures[start::every]
    return cut[:frames] if frames else cut


def test_trims_in_a_row_are_one_trim(home):
    """Against slices."""
    rng = random.Random(0)
    for _ in range(60):
        expected, cut = frames(40), lazy(40)
        for _ in range(rng.randint(2, 4)):
            window = rng.randint(0, 9), rng.choice((0, 0, 3, 20)), rng.randint(1, 3)
            if window[0] >= len(expected):
                with pytest.raises(ValueError, match="cannot start at frame"):
                    all_of(cut.trim(*window))
                break
            expected, cut = cut_by_hand(expected, *window), cut.trim(*window)
        assert torch.equal(all_of(cut), expected)
        assert cut.operation.depth <= 2
        assert cut.frame_count == len(expected)


def test_a_chain_that_is_too_long_is_one_sentence():
    video = lazy(2)
    with pytest.raises(ValueError, match=r"^Resize: more than 150 operations in a row: save the clip"):
        for i in range(200):
            video = video.resize(10 + 2 * (i % 2), 6)
    assert all_of(video).shape == (2, 6, video.width, 3)


def test_someone_elses_video_is_taken(home):
    path = home / "a.mkv"
    lazy(24, (16, 16)).save_to(path)

    class VideoFromFile:
        def __init__(self, edits=False, window=(0.0, 0.0)):
            self.edits, self.window = edits, window

        def get_stream_source(self):
            return str(path)

        def has_pending_frame_edits(self):
            return self.edits

        def get_active_trim_window(self):
            return self.window

        def get_components(self):
            return host.video_components(frames(5), Fraction(7), None)

    assert LazyVideo.of(VideoFromFile()).operation.source == path
    assert LazyVideo.of(VideoFromFile(window=(0.5, 1.0))).frame_count == 12
    assert LazyVideo.of(VideoFromFile(edits=True)).frame_count == 5
    with pytest.raises(ValueError, match="after the end"):
        LazyVideo.of(VideoFromFile(window=(10.0, 1.0)))

    class VideoFromComponents(VideoFromFile):
        def get_stream_source(self):
            raise AssertionError("an H.264 round trip")

    assert torch.equal(all_of(LazyVideo.of(VideoFromComponents())), frames(5))
    with pytest.raises(ValueError, match="VIDEO is needed"):
        LazyVideo.of("clip.mp4")


def test_a_clip_too_large_for_images_is_rejected(monkeypatch):
    monkeypatch.setattr(host, "free_memory", lambda where=None: 1000)
    with pytest.raises(RuntimeError, match=r"GB.*Trim Video"):
        lazy().get_components()
