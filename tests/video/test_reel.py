"""Lazy clips: chunk borders, shared sources, saving, resuming."""

import io
import threading
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.video import chain, codec, pipeline, reel, save, spool, streams, travel
from reelbrush.nodes.video.reel import LazyVideo, Operation, operation


@operation("test.blur")
class Blur(Operation):
    """The mean over a window of frames: wrong at once if a neighbour is missing."""

    def __init__(self, params, tensors, files):
        super().__init__(params, tensors, files)
        self.neighbours = (params["before"], params["after"])

    def run(self, frames, *others, window):
        b, a = self.neighbours
        out = []
        for i in range(window.before, window.before + window.count):
            out.append(frames[max(0, i - b) : i + a + 1].mean(0))
        return torch.stack(out)


@operation("test.trail")
class Trail(Operation):
    """A running mean of two clips that remembers all earlier frames."""

    sequential = True
    calls = 0

    def __init__(self, params, tensors, files):
        super().__init__(params, tensors, files)
        self.memory = None

    def run(self, frames, *others, window):
        out = []
        for i, frame in enumerate(frames):
            type(self).calls += 1
            if self.params.get("fail_at") == window.index + i:
                raise self.params_error
            mixed = torch.stack([frame, *(o[i] for o in others)]).mean(0)
            self.memory = mixed if self.memory is None else 0.7 * self.memory + 0.3 * mixed
            out.append(self.memory)
        return torch.stack(out)

    def state(self):
        return {"memory": self.memory}

    def restore(self, state):
        self.memory = state["memory"]


def frames(count=40, size=(6, 10), seed=0):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def lazy(count=40, size=(6, 10), seed=0):
    return LazyVideo.from_frames(frames(count, size, seed), 12)


def all_of(video):
    return video.get_components().images


def pixels(x):
    return (x * 255).round().clamp(0, 255) / 255


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Frames as small as these would all fit one batch: make borders."""
    monkeypatch.setattr(streams, "batch_size", lambda width, height: 3)
    monkeypatch.setattr(spool, "_CHUNK_BYTES", 0)  # four frames per chunk, the least
    Trail.calls = 0


# -- borders


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (2, 3), (7, 5), (60, 60)])
def test_chunk_borders_are_invisible_to_a_window(before, after):
    x = frames()
    expected = torch.stack([x[max(0, i - before) : i + after + 1].mean(0) for i in range(len(x))])
    got = all_of(LazyVideo.from_frames(x, 12).then("test.blur", {"before": before, "after": after}))
    torch.testing.assert_close(got, expected)


def test_windows_of_windows_and_a_sequential_step_between():
    x = frames()
    window = {"before": 2, "after": 1}
    video = LazyVideo.from_frames(x, 12)
    got = all_of(
        video.then("test.blur", window).then("test.trail", {}, others=(video,)).then("test.blur", window)
    )

    def blur(f):
        return torch.stack([f[max(0, i - 2) : i + 2].mean(0) for i in range(len(f))])

    memory, trail = None, []
    for mixed in (blur(x) + x) / 2:
        memory = mixed if memory is None else 0.7 * memory + 0.3 * mixed
        trail.append(memory)
    torch.testing.assert_close(got, blur(torch.stack(trail)))


@pytest.mark.parametrize(
    ("start", "count", "every"), [(0, 5, 1), (7, 0, 1), (3, 4, 5), (0, 0, 3), (39, 9, 2)]
)
def test_trim_takes_what_slicing_takes(start, count, every):
    x = frames()
    expected = x[start::every][: count or None]
    video = LazyVideo.from_frames(x, 12).trim(start, count, every)
    assert video.frame_count == len(expected)
    assert video.fps == Fraction(12, every)
    assert torch.equal(all_of(video), expected)
    assert torch.equal(torch.cat(list(video.chunks(7))), pixels(expected))


def test_trims_inside_a_chain_keep_branches_aligned():
    video = lazy()
    a = video.then("test.blur", {"before": 1, "after": 1}).trim(5, 20, 1)
    b = video.trim(5, 20, 1)
    for one, two in reel.lockstep([a, b], 6):
        assert one.shape == two.shape
    assert torch.equal(all_of(b), frames()[5:25])


def trailed(x):
    """The trail operation, literally, over frames alone."""
    memory, out = None, []
    for frame in x:
        memory = frame if memory is None else 0.7 * memory + 0.3 * frame
        out.append(memory)
    return torch.stack(out)


@pytest.mark.parametrize("beside", [False, True])
def test_a_trim_behind_a_sequential_step_shows_the_frames_of_the_whole_clip(home, beside):
    video = lazy()
    trail = video.then("test.trail", {})
    cut = trail.trim(10, 20)
    expected = trailed(frames())[10:30]
    torch.testing.assert_close(all_of(cut), expected)
    readers = [cut, trail.trim(0, 20)] if beside else [cut]
    seen_frames = torch.cat([parts[0] for parts in reel.lockstep(readers, 6)])
    torch.testing.assert_close(seen_frames, pixels(expected))
    interrupted = spool.Spool(cut.node)
    (interrupted.path / "done.json").unlink()
    for lost in sorted(interrupted.path.glob("0*.mkv"))[2:]:
        lost.unlink()
    torch.testing.assert_close(torch.cat(list(cut.chunks(6))), pixels(expected))


# -- one source, many readers


def test_a_diamond_decodes_its_source_once(tmp_path, monkeypatch):
    path = tmp_path / "clip.mkv"
    lazy(20, (16, 16)).save_to(path)
    opened = []
    reader = codec.Reader

    def counting(source, **options):
        opened.append(threading.current_thread().name)
        return reader(source, **options)

    monkeypatch.setattr(codec, "Reader", counting)
    source = LazyVideo.from_file(path)
    again = LazyVideo.from_file(path)  # another object, the same file
    stylized = source.then("test.blur", {"before": 1, "after": 2})
    assert all_of(stylized.then("test.trail", {}, others=(again,))).shape == (20, 16, 16, 3)
    assert len(opened) == 1
    for _ in reel.lockstep([stylized, source], 4):
        pass
    assert len(opened) == 2


def test_clips_of_different_lengths_are_refused_in_words():
    with pytest.raises(ValueError, match=r"9 and 12 frames.*Trim Video"):
        lazy(9).then("test.trail", {}, others=(lazy(12, seed=1),), node="Trail")


def test_a_late_error_names_its_node():
    @operation("test.broken")
    class Broken(Operation):
        def run(self, frames, *others, window):
            raise KeyError("weights")

    with pytest.raises(RuntimeError, match=r"^Stylize Video: "):
        all_of(lazy().then("test.broken", {}, node="Stylize Video"))


def test_memory_of_a_run_does_not_grow_with_the_clip():
    """No stream keeps more batches than its window needs."""
    video = lazy(300)
    chained = video.then("test.blur", {"before": 4, "after": 4}).then("test.trail", {}, others=(video,))
    with pipeline.Pipeline({chained.node: 0}) as run:
        most = 0
        while run.feeds[0].next() is not None:
            held = sum(len(f.queue) for s in run._streams.values() for f in s._feeds)
            held += sum(
                len(b._batches) for s in run._streams.values() for b in getattr(s.stream, "_inputs", ())
            )
            most = max(most, held)
    assert most < 20


# -- fingerprints


def test_a_fingerprint_changes_with_anything_that_changes_frames(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    video, other = lazy(), lazy(seed=1)
    style = torch.ones(3)

    def step(of=video, name="test.blur", params=None, tensors=None, files=None, others=()):
        params = {"before": 1, "after": 1} if params is None else params
        return of.then(
            name, params, tensors=tensors or {"s": style}, files=files or {"w": file}, others=others
        ).node.fingerprint

    base = step()
    assert base == step()
    changed = [
        step(of=other),
        step(name="test.trail"),
        step(params={"before": 1, "after": 2}),
        step(tensors={"s": style * 2}),
        step(tensors={"t": style}),
        step(others=(video,)),
        step(of=video.trim(1)),
    ]
    file.write_bytes(b"three")
    changed.append(step())
    monkeypatch.setattr(chain, "_code", lambda: "an updated pack")
    changed.append(step())
    assert len({base, *changed}) == len(changed) + 1


def test_a_chain_travels_as_data(tmp_path):
    path = tmp_path / "clip.mkv"
    lazy(12, (16, 16)).save_to(path)
    source = LazyVideo.from_file(path)
    made = source.trim(1, 9).then("test.blur", {"before": 1, "after": 1}, tensors={"k": torch.arange(4)})
    made = made.then("test.trail", {}, others=(source.trim(1, 9),))
    rows, tensors = travel.to_data(made.node)
    rebuilt = LazyVideo(travel.from_data(rows, tensors))
    assert rebuilt.node.fingerprint == made.node.fingerprint
    assert torch.equal(all_of(rebuilt), all_of(made))


# -- saving and resuming


def seen(path):
    with codec.Reader(path) as reader:
        return torch.stack([frame for frame, _ in reader])


def costly(video, **params):
    blurred = video.then("test.blur", {"before": 2, "after": 1})
    return blurred.then("test.trail", params, others=(video,), node="Trail").then(
        "test.blur", {"before": 1, "after": 2}
    )


def interrupt_at(monkeypatch, done):
    at = host.Progress.at

    def cancel(self, count, preview=None):
        if count >= done:
            raise KeyboardInterrupt
        at(self, count, preview)

    monkeypatch.setattr(host.Progress, "at", cancel)


@pytest.mark.parametrize("done", [1, 5, 17, 30, 40])
def test_an_interrupted_save_leaves_nothing_and_goes_on_exactly(home, monkeypatch, done):
    target, video = home / "output" / "clip.mkv", lazy()
    expected = pixels(all_of(costly(video)))  # in one go, without the spool
    with monkeypatch.context() as patch:
        interrupt_at(patch, done)
        with pytest.raises(KeyboardInterrupt):
            costly(video).save_to(target)
    assert [p.name for p in (home / "output").iterdir()] in ([], [".reelbrush"])
    kept = spool.Spool(costly(video).node).finished()
    Trail.calls = 0
    costly(video).save_to(target)
    assert Trail.calls <= 40 - kept + 4, "what was finished is not computed again"
    assert len(seen(target)) == 40
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), expected)


def test_a_finished_chain_is_read_and_a_changed_setting_starts_anew(home):
    video = lazy()
    costly(video).save_to(home / "output" / "a.mkv")
    Trail.calls = 0
    costly(video).save_to(home / "output" / "b.mkv")
    list(costly(video).chunks(5))
    assert Trail.calls == 0
    costly(video, other=1).save_to(home / "output" / "c.mkv")
    assert Trail.calls == 40


@pytest.mark.parametrize("lost", [0, 3, 9])
def test_a_lost_or_damaged_chunk_is_computed_again(home, lost):
    video = lazy()
    costly(video).save_to(home / "output" / "a.mkv")
    kept = spool.Spool(costly(video).node)
    (kept.path / f"{lost:05}.mkv").write_bytes(b"damaged")
    costly(video).save_to(home / "output" / "b.mkv")
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), pixels(all_of(costly(video))))
    assert codec.read_lossless(kept.path / f"{lost:05}.mkv").shape[0] == 4


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_a_damaged_state_begins_earlier_and_loses_nothing(home, monkeypatch, damage):
    video = lazy()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            costly(video).save_to(home / "output" / "a.mkv")
    states = list(spool.Spool(costly(video).node).path.glob("state-*"))
    assert states
    for state in states:
        state.write_bytes(damage)
    costly(video).save_to(home / "output" / "a.mkv")
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), pixels(all_of(costly(video))))


def test_a_run_that_ended_just_before_its_mark_is_whole(home):
    path = home / "clip.mkv"
    lazy(40, (16, 16)).save_to(path)
    video = LazyVideo.from_file(path)
    expected = torch.cat(list(costly(video).chunks(7)))
    (spool.Spool(costly(video).node).path / "done.json").unlink()
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), expected)
    assert spool.Spool(costly(video).node).total() == 40


def test_frames_that_cannot_be_kept_do_not_cost_the_render(home, monkeypatch):
    def full(path, frames):
        raise ValueError("ffv1 cannot write this")

    monkeypatch.setattr(codec, "write_lossless", full)
    costly(lazy()).save_to(home / "output" / "a.mkv")
    assert len(seen(home / "output" / "a.mkv")) == 40


def test_what_is_measured_does_not_depend_on_what_the_spool_holds(home):
    video = lazy()
    first = [torch.cat(part) for part in zip(*reel.lockstep([costly(video), video], 7), strict=True)]
    assert spool.Spool(costly(video).node).total() == 40, "a second consumer fills the spool as well"
    Trail.calls = 0
    second = [torch.cat(part) for part in zip(*reel.lockstep([costly(video), video], 7), strict=True)]
    assert Trail.calls == 0
    assert all(map(torch.equal, first, second))


def test_the_oldest_spools_go_when_the_budget_is_spent(home, monkeypatch):
    a, b = costly(lazy()), costly(lazy(seed=1))
    a.save_to(home / "output" / "a.mkv")
    size = sum(f.stat().st_size for f in spool.Spool(a.node).path.iterdir())
    monkeypatch.setenv("REELBRUSH_SPOOL_GB", str(1.5 * size / 2**30))
    b.save_to(home / "output" / "b.mkv")
    assert not spool.Spool(a.node).path.exists()
    assert spool.Spool(b.node).total() == 40
    monkeypatch.setenv("REELBRUSH_SPOOL_GB", str(0.5 * size / 2**30))
    a.save_to(home / "output" / "c.mkv")
    assert sum(f.stat().st_size for f in spool.root().rglob("*") if f.is_file()) < 0.8 * size
    monkeypatch.setenv("REELBRUSH_SPOOL_GB", "0")
    c = costly(lazy(seed=2))
    c.save_to(home / "output" / "d.mkv")
    assert not spool.Spool(c.node).path.exists()
    monkeypatch.setenv("REELBRUSH_SPOOL_GB", "8GB")
    with pytest.raises(ValueError, match=r"8GB.*gigabytes"):
        c.save_to(home / "output" / "e.mkv")


def test_saving_into_memory_and_other_formats(home):
    video = lazy(8, (32, 48)).then("test.blur", {"before": 1, "after": 0})
    buffer = io.BytesIO()
    video.save_to(buffer, format="mp4")
    buffer.seek(0)
    assert codec.probe(buffer).frame_count == 8
    for name in ("a.webm", "a.mov", "a.mkv"):
        video.save_to(home / "output" / name)
        assert codec.probe(home / "output" / name).frame_count == 8


def test_a_fault_while_encoding_is_raised_and_leaves_nothing(home, monkeypatch):
    def broken(self, frame, time=None):
        raise OSError("no space left on device")

    monkeypatch.setattr(codec.Writer, "write", broken)
    with pytest.raises(OSError, match="no space"):
        lazy().save_to(home / "output" / "a.mkv")
    assert not [p for p in (home / "output").iterdir() if p.name != ".reelbrush"]


def test_threads_end_with_the_run(home):
    before = threading.active_count()
    path = home / "clip.mkv"
    lazy(60, (16, 16)).save_to(path)
    for _ in range(3):
        LazyVideo.from_file(path).first_frame()
    run = reel.lockstep([LazyVideo.from_file(path)], 4)
    next(run)
    run.close()
    assert threading.active_count() <= before


# -- sound


def tone(seconds, rate=8000):
    t = torch.arange(int(seconds * rate)) / rate
    return {"waveform": torch.sin(t * 2 * torch.pi * (200 + 100 * t)).view(1, 1, -1), "sample_rate": rate}


def test_sound_comes_along_and_a_trim_cuts_it(tmp_path):
    video = LazyVideo.from_frames(frames(48, (16, 16)), 12, tone(4))
    path = tmp_path / "a.mkv"
    video.then("test.blur", {"before": 0, "after": 0}).save_to(path)
    loaded = LazyVideo.from_file(path)
    whole = loaded.get_components().audio
    assert whole["waveform"].shape[-1] == pytest.approx(32000, rel=0.05)
    part = loaded.trim(24, 12).get_components().audio
    assert part["waveform"].shape[-1] == pytest.approx(8000, rel=0.05)
    loaded.trim(24, 12).save_to(tmp_path / "b.mkv")
    video.trim(24, 12).save_to(tmp_path / "c.mkv")
    for name in ("b.mkv", "c.mkv"):
        saved = LazyVideo.from_file(tmp_path / name).get_components().audio
        assert saved["waveform"].shape[-1] / saved["sample_rate"] == pytest.approx(1.0, abs=0.1)


def beeps(seconds, rate=8000):
    """Second s sounds at 200 * (s + 1) Hz."""
    t = torch.arange(seconds * rate) / rate
    return {
        "waveform": torch.sin(t * 2 * torch.pi * 200 * (t.long() + 1)).view(1, 1, -1),
        "sample_rate": rate,
    }


def pitches(audio):
    """The strongest frequency of each second, in Hz."""
    wave, rate = audio["waveform"][0, 0], audio["sample_rate"]
    whole = round(len(wave) / rate) * rate
    seconds = torch.nn.functional.pad(wave, (0, max(0, whole - len(wave))))[:whole].view(-1, rate)
    return [round(second.abs().argmax().item() / 50) * 50 for second in torch.fft.rfft(seconds)]


def test_the_right_part_of_the_sound_is_heard(tmp_path):
    video = LazyVideo.from_frames(frames(48, (16, 16)), 12, beeps(4))
    video.save_to(tmp_path / "clip.mkv")
    loaded = LazyVideo.from_file(tmp_path / "clip.mkv")
    silent = LazyVideo.from_frames(frames(24, (16, 16)), 12)
    for source in (video, loaded):
        for part, heard in [
            (source, [200, 400, 600, 800]),
            (source.trim(24), [600, 800]),
            (source.trim(12, 12), [400]),
            (source.trim(12, 12, 2), [400, 600]),
        ]:
            assert pitches(part.get_components().audio) == heard
            part.save_to(tmp_path / "part.mkv")
            assert pitches(LazyVideo.from_file(tmp_path / "part.mkv").get_components().audio) == heard
        save.save(silent.node, tmp_path / "from.mkv", save.Format("mkv"), audio_from=source.trim(12).node)
        assert pitches(LazyVideo.from_file(tmp_path / "from.mkv").get_components().audio) == [400, 600]


def test_the_sound_of_a_clip_with_a_changing_rate_ends_with_its_picture(tmp_path):
    info = codec.VideoInfo(16, 16, Fraction(20), 100, True)
    pictures = [(f * 255).byte() for f in frames(100, (16, 16))]
    times = [Fraction(i, 10) for i in range(20)] + [2 + Fraction(i, 40) for i in range(80)]
    with codec.Writer(tmp_path / "vfr.mkv", info, container="mkv", audio=beeps(4)) as writer:
        for picture, time in zip(pictures, times, strict=True):
            writer.write(picture, time)
    loaded = LazyVideo.from_file(tmp_path / "vfr.mkv")
    loaded.trim(10, 10).save_to(tmp_path / "part.mkv")
    assert pitches(LazyVideo.from_file(tmp_path / "part.mkv").get_components().audio) == [400]


# -- the host's protocol


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
    video = cls(lazy(24, (32, 48)).node)
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

    assert LazyVideo.of(VideoFromFile()).node.source == str(path)
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


def test_a_clip_too_large_for_images_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(host, "free_memory", lambda where=None: 1000)
    with pytest.raises(RuntimeError, match=r"GB.*Trim Video"):
        lazy().get_components()


def test_the_same_module_is_used_for_saving(home):
    assert save.frames_of(lazy().node).__class__.__name__ == "_Owning", "a plain clip is not spooled"
