"""The `reelbrush` command: what it prints and how it ends."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from reelbrush import __main__ as command
from reelbrush.nodes import render


@pytest.fixture
def stub(monkeypatch):
    """A sub-command that does what the test says."""

    def install(run):
        module = SimpleNamespace(add_arguments=lambda p: p.add_argument("--n", type=int), run=run)
        monkeypatch.setattr(command, "_command", lambda name: module)

    return install


def test_without_arguments_it_says_what_it_can(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.COMMANDS)
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reelbrush 0.")


def test_a_sub_command_gets_its_arguments_and_gives_the_exit_code(stub):
    stub(lambda args: args.n)
    assert command.main(["sample", "--n", "3"]) == 3


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("a is b"), 1, "reelbrush: a is b\n"),
        (OSError(2, "No such file", "x"), 1, "reelbrush: [Errno 2] No such file: 'x'\n"),
        (TypeError("odd"), 1, "reelbrush: TypeError: odd (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_errors_are_a_sentence_and_a_code(stub, capsys, error, code, words):
    def run(args):
        raise error

    stub(run)
    assert command.main(["sample"]) == code
    assert capsys.readouterr().err == words


def test_debug_shows_where_an_error_comes_from(stub):
    def run(args):
        raise ValueError("here")

    stub(run)
    with pytest.raises(ValueError, match="here"):
        command.main(["sample", "--debug"])
    logging.getLogger().setLevel(logging.WARNING)


def test_render_prints_what_it_saved(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(render, "render", lambda graph, settings, out: [tmp_path / graph, *settings, out])
    assert command.main(["render", "g.json", "--set", "a.b=1", "--set", "c.d=2", "--out", "x.mp4"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "g.json"), "a.b=1", "c.d=2", "x.mp4"]


def test_nodes_are_listed(capsys):
    assert command.main(["nodes"]) == 0
    shown = capsys.readouterr().out
    assert "ReelBrushTrimVideo  (Trim Video)" in shown and "every_nth INT = 1" in shown
    assert command.main(["nodes", "--all", "--json"]) == 0
    listed = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["LoadVideo"]["outputs"] == ["VIDEO"]
    assert listed["ReelBrushSaveVideo"]["inputs"]["audio_from"] == {"type": "VIDEO", "required": False}


def test_asking_for_help_imports_no_torch():
    code = "import sys; from reelbrush.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_every_command_is_there():
    missing = []
    for name in command.COMMANDS:
        try:
            found = command._command(name)
        except ModuleNotFoundError:
            missing.append(name)
        else:
            assert callable(found.add_arguments) and callable(found.run)
    assert not missing
