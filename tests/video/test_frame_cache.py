"""The frame cache: resuming, damage, limits, two readers, two processes."""

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.video import codec, frame_cache
from reelbrush.nodes.video.batch import Batch
from reelbrush.nodes.video.frame_cache import FrameCache
from reelbrush.nodes.video.lazy_video import LazyVideo, in_step
from reelbrush.nodes.video.operation import Operation

from .graphs import Trail, TrailWorker, all_of, costly, frames, lazy, pixels, saved, trailed


@pytest.fixture(autouse=True)
def _small(small_batches):
    TrailWorker.calls = 0


@pytest.mark.parametrize("beside", [False, True])
def test_a_trim_after_a_sequential_operation_shows_the_frames_of_the_whole_clip(home, beside):
    trail = lazy().then(Trail)
    cut = trail.trim(10, 20)
    expected = trailed(frames())[10:30]
    torch.testing.assert_close(all_of(cut), expected)
    readers = [cut, trail.trim(0, 20)] if beside else [cut]
    read = torch.cat([row[0] for row in in_step(readers, 6)])
    torch.testing.assert_close(read, pixels(expected))
    interrupted = FrameCache(cut.operation)
    for lost in sorted(interrupted.path.glob("0*.mkv"))[2:]:
        lost.unlink()
    torch.testing.assert_close(torch.cat(list(cut.chunks(6))), pixels(expected))


def interrupt_at(monkeypatch, done):
    at = host.Progress.at

    def cancel(self, count, preview=None):
        if count >= done:
            raise KeyboardInterrupt
        at(self, count, preview)

    monkeypatch.setattr(host.Progress, "at", cancel)


@pytest.mark.parametrize("done", [1, 5, 17, 30, 40])
def test_a_cancelled_save_leaves_nothing_and_continues_exactly(home, monkeypatch, caplog, done):
    target, video = home / "output" / "clip.mkv", lazy()
    expected = pixels(all_of(costly(video)))  # in one go, without the cache
    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        interrupt_at(patch, done)
        with pytest.raises(KeyboardInterrupt):
            costly(video).save_to(target)
    assert [p.name for p in (home / "output").iterdir()] in ([], [".reelbrush"])
    cache = FrameCache(costly(video).operation)
    kept = len(list(cache.path.glob("*.mkv"))) * 4
    message = f": {kept} of 40 frames are kept, run it again to continue" if kept else "kept in groups of 8"
    assert caplog.messages[-1].endswith(message)
    TrailWorker.calls = 0
    costly(video).save_to(target)
    assert TrailWorker.calls <= 40 - kept + 4, "what was finished is not computed again"
    assert len(saved(target)) == 40
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), expected)


def test_a_finished_graph_is_read_and_a_changed_setting_restarts(home):
    video = lazy()
    costly(video).save_to(home / "output" / "a.mkv")
    TrailWorker.calls = 0
    costly(video).save_to(home / "output" / "b.mkv")
    list(costly(video).chunks(5))
    assert TrailWorker.calls == 0
    costly(video, variant=1).save_to(home / "output" / "c.mkv")
    assert TrailWorker.calls == 40


@pytest.mark.parametrize("lost", [0, 3, 9])
def test_a_lost_or_damaged_chunk_is_computed_again(home, lost):
    video = lazy()
    costly(video).save_to(home / "output" / "a.mkv")
    kept = FrameCache(costly(video).operation)
    (kept.path / f"{lost:05}.mkv").write_bytes(b"damaged")
    costly(video).save_to(home / "output" / "b.mkv")
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), pixels(all_of(costly(video))))
    assert (kept.path / f"{lost:05}.mkv").stat().st_size > 100 and kept.frames_kept() == 40


def test_a_chunk_in_the_place_of_another_is_computed_again(home):
    video = lazy()
    costly(video).save_to(home / "output" / "a.mkv")
    kept = FrameCache(costly(video).operation)
    (kept.path / "00003.mkv").replace(kept.path / "00002.mkv")
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), pixels(all_of(costly(video))))


def flipped(data):
    """The same file with other values in its tensors."""
    return data[:-40] + bytes(byte ^ 1 for byte in data[-40:])


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"damaged", flipped])
def test_a_damaged_state_is_not_used(home, monkeypatch, damage):
    video = lazy()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            costly(video).save_to(home / "output" / "a.mkv")
    states = list(FrameCache(costly(video).operation).path.glob("*.states"))
    assert states
    for state in states:
        state.write_bytes(damage(state.read_bytes()))
    costly(video).save_to(home / "output" / "a.mkv")
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), pixels(all_of(costly(video))))


@pytest.mark.parametrize("count", [38, 40])
def test_the_end_of_the_cached_frames_is_known(home, count):
    path = home / "clip.mkv"
    lazy(count, (16, 16)).save_to(path)
    video = LazyVideo.from_file(path)
    expected = torch.cat(list(costly(video).chunks(7)))
    TrailWorker.calls = 0
    assert torch.equal(torch.cat(list(costly(video).chunks(7))), expected)
    assert TrailWorker.calls == 0 and len(expected) == count


def test_the_former_name_of_the_limit_is_read(monkeypatch):
    monkeypatch.setenv("REELBRUSH_SPOOL_GB", "2")
    assert frame_cache.limit() == 2 << 30
    monkeypatch.setenv("REELBRUSH_CACHE_GB", "3")
    assert frame_cache.limit() == 3 << 30


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (codec, "write_lossless", ValueError("ffv1 cannot write this")),
        (codec, "write_lossless", OSError(errno.ENOSPC, "No space left on device")),
        (torch, "save", RuntimeError("I/O error: No space left on device")),
        (frame_cache, "prune", FileNotFoundError("another process removed it")),
    ],
)
def test_a_render_goes_on_when_its_frames_cannot_be_kept(home, monkeypatch, caplog, module, name, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(module, name, full)
    costly(lazy()).save_to(home / "output" / "a.mkv")
    assert len(saved(home / "output" / "a.mkv")) == 40
    assert caplog.messages == [f"frames are no longer kept for resuming: {error}"]


@pytest.mark.parametrize("place", [".reelbrush", ".reelbrush/lock", "chain"])
@pytest.mark.parametrize("what", ["file", "link to nothing", "link to itself"])
def test_a_render_goes_on_when_the_cache_cannot_be_used(home, place, what):
    """A file or a broken link is in the place of a folder, a folder in the place of the lock."""
    video = costly(lazy(20))
    path = FrameCache(video.operation).path if place == "chain" else home / "output" / place
    path.parent.mkdir(exist_ok=True)
    if place.endswith("lock"):
        path.mkdir()
    elif what == "file":
        path.touch()
    else:
        path.symlink_to("nothing" if what == "link to nothing" else path.name)
    target, _ = host.numbered("a", ".mkv")
    video.save_to(target, codec="ffv1")
    assert torch.equal(codec.to_float(saved(target)), pixels(all_of(video)))


def overwrite(path, other):
    path.write_bytes(other.read_bytes())


def cut(path, other):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [overwrite, cut, lambda path, other: os.replace(other, path)])
def test_frames_of_a_clip_that_changes_while_it_is_read_are_not_kept(home, monkeypatch, caplog, change):
    """They would be taken for frames of the clip as it was, when that is there again."""
    path, other, former = (home / "input" / name for name in ("a.mkv", "b.mkv", "c.mkv"))
    noise = torch.rand(2, 96, 96, 96, 3)
    for target, clip in ((path, noise[0]), (other, noise[1])):
        LazyVideo.from_frames(clip, 25).save_to(target, codec="ffv1")
    shutil.copy2(path, former)
    expected = pixels(all_of(costly(LazyVideo.from_file(path))))
    at, changes = host.Progress.at, [change]

    def change_once(self, done, preview=None):
        at(self, done, preview)
        if changes:
            changes.pop()(path, other)

    with monkeypatch.context() as patch:
        patch.setattr(host.Progress, "at", change_once)
        try:
            costly(LazyVideo.from_file(path)).save_to(home / "output" / "a.mkv", codec="ffv1")
            assert "'a.mkv' was changed while it was read: its frames may be wrong" in caplog.messages
        except ValueError as error:
            assert "'a.mkv' is cut short or damaged" in str(error)
    os.replace(former, path)
    costly(LazyVideo.from_file(path)).save_to(home / "output" / "b.mkv", codec="ffv1")
    found = codec.to_float(saved(home / "output" / "b.mkv"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1.1 / 255)


def test_frames_are_not_kept_when_the_disk_is_nearly_full(home, monkeypatch):
    usage = shutil.disk_usage(home)._replace(free=(1 << 30) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    costly(lazy()).save_to(home / "output" / "a.mkv")
    assert len(saved(home / "output" / "a.mkv")) == 40
    assert FrameCache(costly(lazy()).operation).frames_kept() == 0


def test_kept_frames_make_room_when_the_disk_is_full(home, monkeypatch, caplog):
    """What is kept is the first to go; the clip is computed again and saved."""
    video, write = costly(lazy()), codec.Writer.write

    def full_with_cache(self, *frame):
        if FrameCache(video.operation).frames_kept() > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *frame)

    monkeypatch.setattr(codec.Writer, "write", full_with_cache)
    video.save_to(home / "output" / "a.mkv")
    assert len(saved(home / "output" / "a.mkv")) == 40
    assert FrameCache(video.operation).frames_kept() == 0
    assert "the disk is full: the kept frames are removed" in caplog.text


def test_a_full_disk_without_kept_frames_is_one_sentence(home, monkeypatch, caplog):
    caplog.set_level("INFO")

    def full(*_):
        raise av.error.OSError(errno.ENOSPC, "No space left on device", ".a.mkv.part")

    monkeypatch.setattr(codec.muxer.FileSink, "write", full)
    with pytest.raises(OSError, match="the disk is full: make room, and save again"):
        lazy().save_to(home / "output" / "a.mkv")
    assert re.fullmatch(r"stopped after \d+ of 40 frames", *caplog.messages)  # and none are kept
    assert not [p for p in (home / "output").iterdir() if p.name != ".reelbrush"]


def test_results_do_not_depend_on_what_the_cache_holds(home):
    video = lazy()
    first = [torch.cat(part) for part in zip(*in_step([costly(video), video], 7), strict=True)]
    assert FrameCache(costly(video).operation).frames_kept() == 40, (
        "a second consumer fills the cache as well"
    )
    TrailWorker.calls = 0
    second = [torch.cat(part) for part in zip(*in_step([costly(video), video], 7), strict=True)]
    assert TrailWorker.calls == 0
    assert all(map(torch.equal, first, second))


def test_the_oldest_caches_are_removed_at_the_limit(home, monkeypatch):
    a, b = costly(lazy()), costly(lazy(seed=1))
    a.save_to(home / "output" / "a.mkv")
    size = sum(f.stat().st_size for f in FrameCache(a.operation).path.iterdir())
    monkeypatch.setenv("REELBRUSH_CACHE_GB", str(1.5 * size / 2**30))
    b.save_to(home / "output" / "b.mkv")
    assert not FrameCache(a.operation).path.exists()
    assert FrameCache(b.operation).frames_kept() == 40
    monkeypatch.setenv("REELBRUSH_CACHE_GB", str(0.5 * size / 2**30))
    a.save_to(home / "output" / "c.mkv")
    assert sum(f.stat().st_size for f in frame_cache.root().rglob("*") if f.is_file()) < 0.8 * size
    monkeypatch.setenv("REELBRUSH_CACHE_GB", "0")
    c = costly(lazy(seed=2))
    c.save_to(home / "output" / "d.mkv")
    assert not FrameCache(c.operation).path.exists()
    monkeypatch.setenv("REELBRUSH_CACHE_GB", "8GB")
    with pytest.raises(ValueError, match=r"8GB.*give a number"):
        c.save_to(home / "output" / "e.mkv")


PROCESS = """
import sys
sys.path[:0] = {paths!r}
from tests_video.graphs import TrailWorker, costly, lazy
from reelbrush.nodes.video import frame_cache
frame_cache.CHUNK = 4
costly(lazy(40, (48, 64))).save_to(sys.argv[1])
print(TrailWorker.calls)
"""


def test_two_processes_use_one_cache(home, tmp_path):
    """Both begin at once. Each frame is computed by one of them; both results and the cache are whole."""
    (tmp_path / "tests_video").symlink_to(__file__.rpartition("/")[0])
    code = PROCESS.format(paths=[str(tmp_path), *sys.path])
    targets = [home / "output" / f"{name}.mkv" for name in "ab"]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
        for target in targets
    ]
    computed = [int(process.communicate()[0]) for process in running]
    assert sum(computed) == 40
    op = costly(lazy(40, (48, 64))).operation
    assert torch.equal(saved(targets[0]), saved(targets[1]))
    assert FrameCache(op).frames_kept() == 40
    with (
        frame_cache.pixel_streams([op]) as (cached,),
        frame_cache.pixel_streams([op], resume=False) as (computed,),
    ):
        cached, computed = (torch.cat([batch.frames for batch in batches]) for batches in (cached, computed))
    assert torch.equal(cached, computed)
    assert not [p for p in (home / "output").rglob("*") if p.name.endswith(".part")]


class Announced(Operation, name="test.announced"):
    """A clip that announces another number of frames than it has."""

    source: Operation
    says: int
    has: int

    @property
    def clip(self):
        return replace(self.source.clip, frame_count=self.says)

    def frames(self, inputs, start, batch):
        if start > self.has:
            raise ValueError(f"there is no frame {start}")
        return (Batch(x[None], (Fraction(i, 12),)) for i, x in enumerate(frames(self.has)[start:], start))


@pytest.mark.parametrize(("says", "has"), [(48, 40), (40, 45), (41, 50), (40, 48), (40, 41)])
def test_a_clip_with_another_number_of_frames_than_announced_is_the_same_each_time(home, says, has):
    clip = lazy(says).then(Announced, says, has).then(Trail)
    first = torch.cat(list(clip.chunks(5)))
    assert len(first) == has
    for _ in range(2):
        torch.testing.assert_close(torch.cat(list(clip.chunks(5))), first)


@pytest.mark.parametrize("batch", [5, 16])
def test_what_a_reader_got_is_kept_when_it_stops(home, batch):
    clip = lazy(40).then(Trail)
    chunks = clip.chunks(batch)
    got = sum(len(next(chunks)) for _ in range(2))
    chunks.close()
    assert got - 8 < FrameCache(clip.operation).frames_kept() <= got + 16


def test_a_render_that_waits_for_another_process_says_so(home, monkeypatch, caplog):
    caplog.set_level("INFO")
    cache = FrameCache(costly(lazy(20)).operation)
    with host.locked(cache.path / "lock"):
        ticks = iter(range(3))
        monkeypatch.setattr(frame_cache, "_PAUSE", 0.001)
        monkeypatch.setattr(host, "check_interrupt", lambda: next(ticks))
        with pytest.raises((StopIteration, RuntimeError)):
            next(cache.batches(None, None, wait=True))
    assert caplog.messages == ["another process computes this clip: waiting for its frames"]
