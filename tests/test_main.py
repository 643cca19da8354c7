"""The `reelbrush` command: its output and its exit codes."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from reelbrush import __main__ as command
from reelbrush.nodes.video.lazy_video import LazyVideo


@pytest.fixture
def subcommand(monkeypatch):
    """Adds a subcommand `extra` that calls a function of the test."""

    def add(run):
        module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--n", type=int), run=run)
        monkeypatch.setitem(command.COMMANDS, "extra", "for a test")
        monkeypatch.setitem(sys.modules, "reelbrush.nodes.headless.commands.extra", module)

    return add


def test_without_arguments_the_commands_are_listed(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.COMMANDS)
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reelbrush 0.")


def test_a_subcommand_gets_its_arguments_and_returns_the_exit_code(subcommand):
    subcommand(lambda args: args.n)
    assert command.main(["extra", "--n", "3"]) == 3


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("a is b"), 1, "reelbrush: a is b\n"),
        (
            OSError(2, "No such file", "x"),
            1,
            "reelbrush: x cannot be used (No such file): check it and its folder\n",
        ),
        (TypeError("odd"), 1, "reelbrush: TypeError: odd (--debug shows the traceback)\n"),
        (ValueError("x" * 5000), 1, "reelbrush: " + "x" * 1000 + " ...\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(subcommand, capsys, error, code, message):
    def run(args):
        raise error

    subcommand(run)
    assert command.main(["extra"]) == code
    assert capsys.readouterr().err == message


TERMINATED = """
import os, signal, sys, types
from reelbrush import __main__ as command
from reelbrush.nodes.common.files import replacing

def run(args):
    with replacing(args.file) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

parse = lambda parser: parser.add_argument("file")
command.load_command = lambda name: types.SimpleNamespace(add_arguments=parse, run=run)
sys.exit(command.main(["render", sys.argv[1]]))
"""


@pytest.mark.parametrize("becomes_an_error", [False, True])
def test_sigterm_is_handled_like_ctrl_c(tmp_path, becomes_an_error):
    kill = "        os.kill(os.getpid(), signal.SIGTERM)\n"
    caught = f"""        try:
    {kill}        except KeyboardInterrupt:
            raise RuntimeError("a library makes an error of it")
"""
    code = TERMINATED.replace(kill, caught) if becomes_an_error else TERMINATED
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(subcommand):
    def run(args):
        raise ValueError("here")

    subcommand(run)
    with pytest.raises(ValueError, match="here"):
        command.main(["extra", "--debug"])
    logging.getLogger().setLevel(logging.WARNING)


def test_render_prints_the_files_that_it_saved(home, capsys):
    LazyVideo.from_frames(torch.rand(4, 16, 16, 3), 12).save_to(str(home / "input" / "a.mp4"))
    save = {"video": ["1", 0], "filename_prefix": "b", "format": "auto", "codec": "auto"}
    graph = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "nothing.mp4"}},
        "2": {"class_type": "SaveVideo", "inputs": save},
    }
    (home / "g.json").write_text(json.dumps(graph))
    arguments = ["render", str(home / "g.json"), "--set", "Load Video.file=a.mp4"]
    assert command.main([*arguments, "--set", "2.filename_prefix=c/d"]) == 0
    assert capsys.readouterr().out == f"{home / 'output' / 'c' / 'd_00001_.mp4'}\n"
    assert command.main([*arguments, "--out", str(home / "x.mkv")]) == 0
    assert capsys.readouterr().out == f"{home / 'x.mkv'}\n" and (home / "x.mkv").exists()


def test_render_of_a_missing_file_is_one_sentence(home, capsys):
    assert command.main(["render", "nothing.json"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("reelbrush: there is no graph file nothing.json") and message.count("\n") == 1


def test_nodes_are_listed(capsys):
    assert command.main(["nodes"]) == 0
    shown = capsys.readouterr().out
    assert "ReelBrushTrimVideo  (Trim Video (Streaming))" in shown and "every_nth INT = 1" in shown
    assert command.main(["nodes", "--all", "--json"]) == 0
    listed = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["LoadVideo"]["outputs"] == ["VIDEO"]
    assert listed["ReelBrushSaveVideo"]["inputs"]["audio_from"] == {"type": "VIDEO", "required": False}


def test_asking_for_help_imports_no_torch():
    code = "import sys; from reelbrush.__main__ import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_every_command_has_a_module():
    for name in command.COMMANDS:
        module = command.load_command(name)
        assert callable(module.add_arguments) and callable(module.run)


STREAMS = """
import sys
from types import SimpleNamespace
from reelbrush import __main__ as command

def run(args):
    sys.stderr.write("log")
    with open("a", "wb", 0) as file:
        file.write(b"data")
        assert file.fileno() > 2
    print("caf\\xe9")

command.load_command = lambda name: SimpleNamespace(add_arguments=lambda parser: None, run=run)
sys.exit(command.main(["render"]))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_stop_a_command(tmp_path, closed):
    shell = ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, STREAMS]
    assert subprocess.run(shell, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a").read_bytes() == b"data"


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", STREAMS], cwd=tmp_path, env=ascii_only, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"caf\\xe9\n")


def test_a_folder_that_was_removed_is_one_sentence(tmp_path):
    shell = ["bash", "-c", 'rmdir "$PWD"; "$0" -c "$1"', sys.executable, STREAMS]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(shell, cwd=tmp_path / "gone", capture_output=True, text=True)
    message = "reelbrush: the current folder does not exist any more: change to another one\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_a_reader_that_ends_early_is_no_error(tmp_path):
    code = STREAMS.replace('print("caf', 'import time; time.sleep(0.5); print("caf')
    shell = ["bash", "-c", '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}', sys.executable, code]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "log")


def test_too_little_memory_is_one_sentence(subcommand, capsys):
    def run(args):
        raise MemoryError

    subcommand(run)
    assert command.main(["extra"]) == 1
    message = "reelbrush: not enough memory: close other programs, or give a smaller clip\n"
    assert capsys.readouterr().err == message
