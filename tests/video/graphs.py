"""Small clips and operations for the tests of the video engine."""

import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.operation import Operation, Worker


class Blur(Operation, name="test.blur"):
    """The mean over a window of frames, which is wrong at once if a neighbour is missing."""

    source: Operation
    before: int = 1
    after: int = 1
    tensors: tuple = ()
    files: tuple = ()

    @property
    def neighbours(self):
        return self.before, self.after

    def start(self):
        return BlurWorker(self.before, self.after)


class BlurWorker(Worker):
    def __init__(self, before, after):
        self.before, self.after = before, after

    def __call__(self, frames, *, index, inner):
        return torch.stack(
            [
                frames[max(0, i - self.before) : i + self.after + 1].mean(0)
                for i in range(inner.start, inner.stop)
            ]
        )


class Trail(Operation, name="test.trail"):
    """A running mean that remembers all earlier frames, of a clip and optionally another one."""

    source: Operation
    other: Operation | None = None
    variant: int = 0

    sequential = True

    def start(self):
        return TrailWorker()


class TrailWorker(Worker):
    calls = 0  # frames computed by all workers

    def __init__(self):
        self.memory = None

    def __call__(self, *clips, **_):
        out = []
        for pictures in zip(*clips, strict=True):
            TrailWorker.calls += 1
            mixed = torch.stack(pictures).mean(0)
            self.memory = mixed if self.memory is None else 0.7 * self.memory + 0.3 * mixed
            out.append(self.memory)
        return torch.stack(out)

    def state(self):
        return {"memory": self.memory}

    def restore(self, state):
        self.memory = state["memory"]


def trailed(frames):
    """`Trail` over frames alone, literally."""
    memory, out = None, []
    for frame in frames:
        memory = frame if memory is None else 0.7 * memory + 0.3 * frame
        out.append(memory)
    return torch.stack(out)


def frames(count=40, size=(6, 10), seed=0):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def lazy(count=40, size=(6, 10), seed=0):
    return LazyVideo.from_frames(frames(count, size, seed), 12)


def costly(video, **fields):
    """Windows of frames, a sequential operation that reads the clip as well, windows of frames."""
    trail = video.then(Blur, 2, 1).then(Trail, video.operation, node="Trail", **fields)
    return trail.then(Blur, 1, 2)


def all_of(video):
    return video.get_components().images


def pixels(x):
    """What is left of floats after a file of 8 bits."""
    return (x * 255).round().clamp(0, 255) / 255


def saved(path):
    with codec.Reader(path) as reader:
        return torch.stack([frame for frame, _ in reader])
