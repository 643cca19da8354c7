import pytest

from reelbrush.nodes.video import frame_cache, run


@pytest.fixture
def small_batches(monkeypatch):
    """Borders within short clips of small frames: three frames per batch, four per cached chunk."""
    monkeypatch.setattr(run, "_BATCH_BYTES", 3 * 6 * 10 * 12)
    monkeypatch.setattr(frame_cache, "CHUNK", 4)
