"""What the allocator keeps for itself goes back to the system while a clip runs, and after it."""

import os
from pathlib import Path

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.host import memory
from reelbrush.nodes.video import run as run_module
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.operation import Operation, Worker

STATM = Path("/proc/self/statm")


class Unchanged(Operation, name="test.unchanged"):
    source: Operation
    costly = False

    def start(self):
        return Worker(lambda frames: frames)


def resident():
    """Megabytes of this process that are in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def trims(monkeypatch):
    """Counts the times that the heap is trimmed."""
    done = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: done.append)
    monkeypatch.setattr(memory, "_last_trim", -1e9)
    return done


@pytest.mark.skipif(memory._malloc_trim() is None or not STATM.exists(), reason="needs glibc on Linux")
def test_holes_between_what_is_in_use_go_back():
    large = torch.ones(24 << 20, dtype=torch.uint8)
    del large  # from now on glibc takes pieces of such a size from its heap
    blocks = [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(120)]
    full = resident()
    kept = blocks[::12]
    blocks.clear()
    held = resident()
    assert held > full - 60, "glibc gave holes back by itself: this test shows nothing"
    host.trim_heap()
    assert resident() < held - 60
    assert sum(int(block.sum()) for block in kept) == 10 << 20


def test_within_the_pause_nothing_is_trimmed(trims):
    host.trim_heap(pause=1000)
    host.trim_heap(pause=1000)
    assert len(trims) == 1
    host.trim_heap()
    assert len(trims) == 2


def test_a_run_trims_when_it_ends(home, trims, monkeypatch):
    monkeypatch.setattr(run_module, "_HEAP_TRIM_PAUSE", 1000.0)  # however slow this machine is
    clip = LazyVideo.from_frames(torch.rand(80, 8, 8, 3), 25).then(Unchanged)
    run = clip.chunks(16)
    next(run)
    assert len(trims) == 1  # the first of the pause
    for _ in run:
        pass
    assert len(trims) == 2


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    host.trim_heap()
