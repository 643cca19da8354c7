"""Running graphs: borders of batches, batch sizes, shared inputs, errors, threads, memory."""

import threading
import weakref
from contextlib import closing
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo, in_step
from reelbrush.nodes.video.operation import Operation, Worker
from reelbrush.nodes.video.run import Run

from .graphs import Blur, Trail, all_of, frames, lazy, pixels, trailed


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (2, 3), (7, 5), (60, 60)])
def test_batch_borders_do_not_show_in_windows_of_frames(before, after):
    x = frames()
    expected = torch.stack([x[max(0, i - before) : i + after + 1].mean(0) for i in range(len(x))])
    torch.testing.assert_close(all_of(LazyVideo.from_frames(x, 12).then(Blur, before, after)), expected)


@pytest.mark.usefixtures("small_batches")
def test_windows_of_windows_and_a_sequential_operation_between():
    x = frames()
    video = LazyVideo.from_frames(x, 12)
    made = all_of(video.then(Blur, 2, 1).then(Trail, video.operation).then(Blur, 2, 1))

    def blur(f):
        return torch.stack([f[max(0, i - 2) : i + 2].mean(0) for i in range(len(f))])

    torch.testing.assert_close(made, blur(trailed((blur(x) + x) / 2)))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("start", "count", "every"), [(0, 5, 1), (7, 0, 1), (3, 4, 5), (0, 0, 3), (39, 9, 2), (1, 7, 7)]
)
def test_trim_takes_what_slicing_takes(start, count, every):
    x = frames()
    expected = x[start::every][: count or None]
    video = LazyVideo.from_frames(x, 12).trim(start, count, every)
    assert video.frame_count == len(expected)
    assert video.fps == Fraction(12, every)
    assert torch.equal(all_of(video), expected)
    assert torch.equal(torch.cat(list(video.chunks(7))), pixels(expected))


@pytest.mark.usefixtures("small_batches")
def test_trims_inside_a_graph_keep_branches_aligned():
    video = lazy()
    a, b = video.then(Blur).trim(5, 20, 1), video.trim(5, 20, 1)
    rows = list(in_step([a, b], 6))
    assert [len(one) for one, _ in rows] == [6, 6, 6, 2] == [len(two) for _, two in rows]
    assert torch.equal(all_of(b), frames()[5:25])


# -- batch sizes


class Recorder(Worker):
    """Records how many frames each call gets."""

    def __init__(self, batch, calls):
        self.batch, self.calls = batch, calls

    def __call__(self, *clips, index, inner):
        assert index == sum(self.calls) and inner == slice(0, len(clips[0]))
        self.calls.append(len(clips[0]))
        return clips[0]


CALLS: dict[str, list[int]] = {}


class Record(Operation, name="test.record"):
    source: Operation
    wanted: int
    name_of_calls: str = "calls"

    costly = False

    def start(self):
        return Recorder(self.wanted, CALLS.setdefault(self.name_of_calls, []))


@pytest.fixture(scope="module")
def large_clips(tmp_path_factory):
    """40 frames of a file at two sizes."""
    folder, clips = tmp_path_factory.mktemp("large"), {}
    for width, height in ((512, 288), (1920, 1080)):
        path = clips[width, height] = folder / f"{width}.mkv"
        info = codec.VideoInfo(width, height, Fraction(25), 40, True)
        with codec.Writer(path, info, container="mkv", preset="ultrafast") as writer:
            for number in range(40):
                writer.write(torch.full((height, width, 3), number * 6, dtype=torch.uint8))
    return clips


@pytest.mark.parametrize("size", [(512, 288), (1920, 1080)])
@pytest.mark.parametrize("wanted", [16, 5])
def test_an_operation_gets_as_many_frames_as_it_asks_for(large_clips, size, wanted):
    CALLS.clear()
    video = LazyVideo.from_file(large_clips[size])
    before = video.then(Record, 0, "before")  # takes what the next operation asks for
    after = before.then(Record, wanted, "wanted").then(Record, 0, "after")
    with closing(Run([after.operation])) as run:
        count = sum(len(batch) for batch in run.outputs[0])
    assert count == 40
    full, rest = divmod(40, wanted)
    expected = [wanted] * full + [rest] * (rest > 0)
    assert CALLS["wanted"] == expected == CALLS["before"]
    assert sum(CALLS["after"]) == 40


def test_frames_are_converted_once_where_consecutive_operations_run_on_one_device():
    seen = []

    class Half(Worker):
        dtype = torch.float16

        def __call__(self, frames, **_):
            seen.append((frames.dtype, frames.data_ptr()))
            out = frames + 0
            seen.append((out.dtype, out.data_ptr()))
            return out

    class HalfPrecision(Operation, name="test.half"):
        source: Operation
        number: int

        def start(self):
            return Half()

    video = lazy(4).then(HalfPrecision, 0).then(HalfPrecision, 1)
    with closing(Run([video.operation], batch=4)) as run:
        (batch,) = run.outputs[0]
    assert {dtype for dtype, _ in seen} == {torch.float16}
    assert seen[1][1] == seen[2][1], "the second operation reads the tensor that the first one made"
    assert batch.frames.dtype == torch.float16
    assert batch.as_pixels(8).frames.dtype == torch.uint8


def test_frames_that_nothing_computes_with_stay_integers(large_clips):
    video = LazyVideo.from_file(large_clips[512, 288]).trim(3, 9)
    with closing(Run([video.operation])) as run:
        assert {batch.frames.dtype for batch in run.outputs[0]} == {torch.uint8}


# -- one source, many readers


def test_a_source_that_two_branches_share_is_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "clip.mkv"
    lazy(20, (16, 16)).save_to(path)
    opened = []
    reader = codec.Reader

    def counting(source, **options):
        opened.append(threading.current_thread().name)
        return reader(source, **options)

    monkeypatch.setattr(codec, "Reader", counting)
    source, again = LazyVideo.from_file(path), LazyVideo.from_file(path)  # two objects, one file
    blurred = source.then(Blur, 1, 2)
    assert all_of(blurred.then(Trail, again.operation)).shape == (20, 16, 16, 3)
    assert len(opened) == 1


def test_what_two_outputs_share_is_computed_once():
    CALLS.clear()
    shared = lazy().then(Record, 4, "shared")
    for _ in in_step([shared.then(Record, 4, "a"), shared.then(Record, 4, "b"), shared], 8):
        pass
    assert sum(CALLS["shared"]) == sum(CALLS["a"]) == sum(CALLS["b"]) == 40


def test_clips_of_different_lengths_are_rejected_while_they_run(home):
    class UnknownLength(Operation, name="test.unknown_length"):
        source: Operation
        missing: int = 3
        costly = False

        @property
        def clip(self):
            return codec.VideoInfo(10, 6, self.source.clip.fps, 40)

        def frames(self, inputs, start, batch):
            (source,) = inputs
            source.fill(40)
            yield source.take(start, 40 - self.missing)

    video = lazy()
    short = video.then(UnknownLength)
    with pytest.raises(ValueError, match=r"Trail: one clip ends after 37 frames.*Trim Video"):
        all_of(video.then(Trail, short.operation, node="Trail"))
    with pytest.raises(ValueError, match=r"^the clips: one clip ends after 37 frames"):
        list(in_step([video, short]))


# -- errors, threads, memory


@pytest.mark.parametrize("error", [KeyError("weights"), ValueError("too small")])
@pytest.mark.parametrize("where", ["start", "call"])
def test_a_late_error_names_its_node(error, where):
    class Broken(Operation, name="test.broken"):
        source: Operation

        def start(self):
            if where == "start":
                raise error

            def fail(frames):
                raise error

            return Worker(fail)

    kind = ValueError if isinstance(error, ValueError) else RuntimeError
    with pytest.raises(kind, match=rf"^Stylize Video: .*{error.args[0]}"):
        all_of(lazy().then(Broken, node="Stylize Video"))


def test_threads_end_with_the_run(home):
    before = threading.active_count()
    path = home / "clip.mkv"
    lazy(60, (16, 16)).save_to(path)
    for _ in range(3):
        LazyVideo.from_file(path).then(Blur).frames_at([0])
    reading = in_step([LazyVideo.from_file(path).then(Blur)], 4)
    next(reading)
    reading.close()
    assert threading.active_count() <= before


@pytest.mark.usefixtures("small_batches")
def test_a_run_holds_few_frames_however_long_the_clip_is():
    """Frames alive at once, counted by the tensors that the source made."""
    alive: weakref.WeakSet = weakref.WeakSet()

    class Counting(Operation, name="test.source"):
        source: Operation
        costly = False

        def start(self):
            def copy(frames):
                made = frames.clone()
                alive.add(made)
                return made

            return Worker(copy)

    most = {}
    for count in (60, 300):
        video = lazy(count).then(Counting)
        made = video.then(Blur, 4, 4).then(Trail, video.operation)
        most[count] = 0
        with closing(Run([made.operation])) as run:
            for _ in run.outputs[0]:
                most[count] = max(most[count], len(alive))
    assert most[300] <= most[60] < 12


def test_a_cancel_between_two_batches_stops_the_run(monkeypatch):
    def cancel():
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "check_interrupt", cancel)
    with pytest.raises(KeyboardInterrupt):
        all_of(lazy().then(Blur))
