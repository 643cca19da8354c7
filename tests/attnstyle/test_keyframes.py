"""Key frames: every shot has one, long shots have more."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reelbrush.nodes.attnstyle.keyframes import pick, spread
from reelbrush.nodes.video.lazy_video import LazyVideo


@pytest.mark.parametrize(
    ("shots", "count", "expected"),
    [
        ([(0, 48)], 4, [6, 18, 30, 42]),
        ([(0, 48)], 1, [24]),
        ([(0, 10), (10, 50)], 3, [5, 20, 40]),
        ([(0, 4), (4, 8), (8, 12)], 1, [2, 6, 10]),
        ([(0, 2), (2, 3)], 9, [0, 1, 2]),
    ],
    ids=[
        "one shot",
        "one frame",
        "the longer shot has more",
        "more shots than frames",
        "fewer frames than asked",
    ],
)
def test_frames_are_spread(shots, count, expected):
    assert spread(shots, count) == expected


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20))
def test_every_shot_has_a_frame_and_none_is_taken_twice(lengths, count):
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    shots = list(zip([0, *ends[:-1]], ends, strict=True))
    numbers = spread(shots, count)
    assert numbers == sorted(set(numbers))
    assert all(any(a <= n < b for n in numbers) for a, b in shots)
    assert len(numbers) == min(max(count, len(shots)), ends[-1])


def test_a_cut_gives_both_shots_a_key_frame():
    pytest.importorskip("cv2")
    g = torch.Generator().manual_seed(0)
    rooms = [
        torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=g), (64, 64), mode="bicubic")
        for _ in range(2)
    ]
    still = [
        room[0].permute(1, 2, 0).clamp(0, 1).expand(n, -1, -1, -1)
        for room, n in zip(rooms, (9, 3), strict=True)
    ]
    frames, numbers = pick(LazyVideo.from_frames(torch.cat(still), Fraction(12)), 2)
    assert [n < 9 for n in numbers] == [True, False]
    torch.testing.assert_close(frames[0], still[0][0], atol=1 / 250, rtol=0)
    torch.testing.assert_close(frames[1], still[1][0], atol=1 / 250, rtol=0)
