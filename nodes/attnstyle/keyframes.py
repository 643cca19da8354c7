"""Key frames for training: spread over the clip, at least one per shot."""

from torch import Tensor

from .. import host
from ..flow.cuts import CutDetector
from ..video.lazy_video import LazyVideo

CHUNK = 8


def find_shots(video: LazyVideo) -> list[tuple[int, int]]:
    """The first frame and the end of every shot, in one pass over the clip."""
    detector, first, number = CutDetector(), 0, 0
    shots: list[tuple[int, int]] = []
    with host.progress(video.frame_count, "Looking for cuts") as bar:
        for chunk in video.chunks(CHUNK):
            for frame in chunk:
                if detector.push(frame) and number:
                    shots.append((first, number))
                    first = number
                number += 1
            bar.step(len(chunk))
    return [*shots, (first, number)]


def spread(shots: list[tuple[int, int]], count: int) -> list[int]:
    """Frame numbers: one in the middle of every shot, and more in long shots, up to `count` in total.

    If there are more shots than `count`, every shot still gets one: the style of a shot that is not in the
    training would be arbitrary.
    """
    keys = [1] * len(shots)
    lengths = [end - first for first, end in shots]
    for _ in range(count - len(shots)):
        roomy = [i for i, n in enumerate(lengths) if keys[i] < n]
        if not roomy:
            break
        longest = max(roomy, key=lambda i: lengths[i] / keys[i])
        keys[longest] += 1
    return [
        first + int((k + 0.5) * (end - first) / n)
        for (first, end), n in zip(shots, keys, strict=True)
        for k in range(n)
    ]


def pick(video: LazyVideo, count: int) -> tuple[Tensor, list[int]]:
    """The key frames [n, H, W, 3] and their numbers."""
    numbers = spread(find_shots(video), count)
    return video.frames_at(numbers), numbers
