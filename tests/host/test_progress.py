"""What a user sees of the progress: the text below the node, and previews. ComfyUI's server is replaced."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes import host

progress = importlib.import_module("reelbrush.nodes.host.progress")  # `host.progress` is its function


@pytest.fixture
def server(monkeypatch):
    """A server that records texts; node 7 of prompt "p" is running, with `settings` as its extra data."""
    settings: dict = {}
    texts: list[tuple[str, str]] = []
    queue = SimpleNamespace(currently_running={0: (0, "p", {}, settings, [])})
    instance = SimpleNamespace(
        prompt_queue=queue, send_progress_text=lambda text, node: texts.append((node, text))
    )
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    )
    monkeypatch.setattr(progress, "executing_node", lambda: SimpleNamespace(prompt_id="p", node_id="7"))
    return SimpleNamespace(settings=settings, texts=texts)


def test_text_goes_to_the_running_node(server):
    host.show_text("hello")
    assert server.texts == [("7", "hello")]


def test_previews_are_off_only_if_the_user_says_so(server):
    assert progress.previews_wanted()
    server.settings["preview_method"] = "auto"
    assert progress.previews_wanted()
    server.settings["preview_method"] = "none"
    assert not progress.previews_wanted()


def test_bar_sends_pace_and_preview(server, monkeypatch):
    clock = iter([100.0, 101.0, 105.0, 105.1, 112.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    sent = []
    bar = progress.Progress(10, "", "frames")
    bar._comfyui_bar = SimpleNamespace(update_absolute=lambda *values: sent.append(values))
    monkeypatch.setattr(progress, "check_interrupt", lambda: None)
    picture = torch.zeros(4, 6, 3)
    bar.step(2, picture)
    bar.step(2, picture)
    bar.step(1, picture)  # too soon for another text
    bar.at(10)
    assert [text for _, text in server.texts] == [
        "2 of 10 frames",
        "4 of 10 frames, 0.5 frames/s, 12 s left",
        "10 frames in 12 s",
    ]
    assert [(done, preview is not None) for done, _, preview in sent] == [
        (2, True),
        (4, True),
        (5, False),
        (10, False),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (12.4, "12 s"), (200, "3:20 min"), (3900, "1:05 h")]
)
def test_duration(seconds, text):
    assert host.duration(seconds) == text
