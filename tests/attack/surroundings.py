"""Renders in odd surroundings: closed streams, limits of the system, files in the place of folders.

Every render is a fork of this process. It ends with the right frames, or with one sentence about the error.
"""

import io
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from outcomes import problem
from processes import clear, finish, fork, graph, leftovers, same, wanted, write_clips

from reelbrush import __main__ as command


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    command.load_command("render")
    if finish(fork(lambda: write_clips(folder))):
        raise RuntimeError("the clips cannot be written")
    right = wanted(folder, 0.8)
    return SimpleNamespace(folder=folder, right=right, graph=graph(folder, 0.8), cases=list(CASES.items()))


def count(state: SimpleNamespace) -> int:
    return len(state.cases)


Setup = Callable[[Path], None]


def close(*numbers: int) -> Setup:
    """Close streams, as a shell does with `>&-`."""

    def setup(folder: Path) -> None:
        for number in numbers:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)

    return setup


def limit(kind: int, value: int) -> Setup:
    return lambda folder: resource.setrlimit(kind, (value, value))


def ascii_only(folder: Path) -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "ascii")


def full(folder: Path) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def removed(folder: Path) -> None:
    (folder / "output" / "gone").mkdir()
    os.chdir(folder / "output" / "gone")
    (folder / "output" / "gone").rmdir()


def file_at(name: str) -> Setup:
    """A file in the place of a folder."""

    def setup(folder: Path) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).touch()

    return setup


def link_at(name: str, target: str) -> Setup:
    def setup(folder: Path) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(target)

    return setup


def folder_at(name: str) -> Setup:
    """A folder with content in the place of a file."""
    return lambda folder: (folder / name / "full").mkdir(parents=True)


CASES: dict[str, tuple[Setup, list[str]]] = {
    "stdin closed": (close(0), []),
    "stdout closed": (close(1), []),
    "stderr closed": (close(2), []),
    "all streams closed": (close(0, 1, 2), []),
    "an ASCII terminal": (ascii_only, ["--set", "6.filename_prefix=v\xe9"]),
    "stdout on a full disk": (full, []),
    "the current folder is removed": (removed, []),
    "16 open files": (limit(resource.RLIMIT_NOFILE, 16), []),
    "files of 60 kB": (limit(resource.RLIMIT_FSIZE, 60_000), []),
    "files of 600 kB": (limit(resource.RLIMIT_FSIZE, 600_000), []),
    "no memory": (limit(resource.RLIMIT_AS, 1 << 29), []),
    "the cache is a file": (file_at("output/.reelbrush"), []),
    "the cache is a broken link": (link_at("output/.reelbrush", "nothing"), []),
    "the cache is a circle of links": (link_at("output/.reelbrush", ".reelbrush"), []),
    "the lock is a folder": (folder_at("output/.reelbrush/lock"), []),
    "the output folder is a file": (file_at("output"), []),
    "the output folder is a broken link": (link_at("output", "nothing"), []),
    "the temp folder is a file": (file_at("temp"), []),
    "the input folder is a file": (file_at("input"), []),
    "a picture of the preview is a folder": (folder_at("temp/preview_5_00002_.png"), []),
    "the result is a folder": (folder_at("output/v_00001_.mkv"), []),
    "--out is a folder": (folder_at("out.mkv"), ["--out", "out.mkv"]),
    "--out is below a file": (file_at("out"), ["--out", "out/a.mkv"]),
    "--set with the home of nobody": (lambda folder: None, ["--set", "1.file=~nobody-here/x"]),
    "--set with a null character": (lambda folder: None, ["--set", "1.file=a\0b"]),
    "--set with a long name": (lambda folder: None, ["--set", "1.file=" + "a" * 5000]),
}


def render(state: SimpleNamespace, home: Path, setup: Setup, arguments: list[str]) -> int:
    process = os.fork()
    if not process:
        code = 70
        try:
            for number, name in ((1, "out.txt"), (2, "error.txt")):
                os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(home)
            os.environ["REELBRUSH_HOME"] = str(home)
            setup(home)
            code = command.main(["render", str(state.graph), *arguments])
        finally:
            os._exit(code)
    return finish(process)


def case(state: SimpleNamespace, number: int) -> str:
    name, (setup, arguments) = state.cases[number]
    home = state.folder / "home"
    home.mkdir()
    for kind in ("output", "temp"):
        (home / kind).mkdir()
    shutil.copytree(state.folder / "input", home / "input")
    try:
        code = render(state, home, setup, arguments)
        said = (home / "error.txt").read_text().splitlines()
        message = next((line for line in said if line.startswith("reelbrush: ")), "")
        if code not in (0, 1) or (code and not message):
            return f"failure: {name}: exit code {code}: {said[-1:]}"
        results = [p for p in home.rglob("v*.mkv") if p.is_file()]
        if (home / "output").is_dir() and leftovers(home):
            return f"failure: {name}: left {leftovers(home)}"
        if results and not same(state.right, *results):
            return f"failure: {name}: other frames"
        if code == 0:
            return "result" if results else f"failure: {name}: no result"
        wrong = "Traceback" in str(said) or problem(message.removeprefix("reelbrush: "))
        return f"failure: {name}: {wrong}: {message}" if wrong else f"message: {message}"
    finally:
        clear(home)
        shutil.rmtree(home)
