"""Numbers of output files: each is used once, and only by a file that was finished."""

import os
import subprocess
import sys
import time

import pytest

from reelbrush.nodes import host
from reelbrush.nodes.common.files import replacing
from reelbrush.nodes.host import output_names


def write(path, text="x"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_numbers_follow_what_is_there(home):
    assert host.numbered("a/b", ".txt") == (home / "output" / "a" / "b_00001_.txt", "a")
    (home / "output" / "c_00041_.png").touch()
    (home / "output" / "c_x_.png").touch()
    path, sub_folder = host.numbered("c", ".txt")
    assert path.name == "c_00042_.txt" and sub_folder == ""
    assert host.numbered("d_%width%x%height%", ".txt", (8, 4))[0].name == "d_8x4_00001_.txt"
    with pytest.raises(ValueError, match="filename_prefix is empty"):
        host.numbered("", ".txt")
    with pytest.raises(ValueError, match="leaves the output folder"):
        host.numbered("../a", ".txt")


def test_a_number_is_reserved_until_the_file_is_written(home):
    first, _ = host.numbered("a", ".txt")
    second, _ = host.numbered("a", ".txt")
    assert (first.name, second.name) == ("a_00001_.txt", "a_00002_.txt")
    write(first)
    write(second)
    visible = [p.name for p in (home / "output").iterdir() if not p.name.startswith(".")]
    assert sorted(visible) == ["a_00001_.txt", "a_00002_.txt"]
    assert not list((home / "output").glob("*.part"))


def test_a_cancelled_save_does_not_use_up_its_number(home):
    path, _ = host.numbered("a", ".txt")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert host.numbered("a", ".txt")[0] == path


def test_a_folder_is_reserved_too(home):
    path, _ = host.numbered("frames", "")
    assert host.numbered("frames", "")[0].name == "frames_00002_"
    with replacing(path) as temporary:
        temporary.mkdir(exist_ok=True)
        (temporary / "1.png").touch()
    assert [p.name for p in path.iterdir()] == ["1.png"]


RESERVE = """
import sys, time
from reelbrush.nodes import host
for _ in range(int(sys.argv[1])):
    print(host.numbered("a", ".txt")[0].name, flush=True)
time.sleep(60)
"""


def reserve(count):
    code = [sys.executable, "-c", RESERVE, str(count)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, text=True)


def test_a_killed_save_does_not_use_up_its_number(home):
    with reserve(1) as process:
        assert process.stdout.readline() == "a_00001_.txt\n"
        assert host.numbered("a", ".txt")[0].name == "a_00002_.txt"  # the other one is alive
        process.kill()
    for path in (home / "output").glob(".a_00002*"):
        path.unlink()
    assert host.numbered("a", ".txt")[0].name == "a_00001_.txt"


def temporary(folder, process, machine=output_names._MACHINE):
    path = folder / f".a_00009_.txt.{process}@{machine}.part"
    path.mkdir(parents=True)
    (path / "half").write_text("half of a result")
    return path


def test_what_killed_processes_left_is_removed_by_the_next_save_in_the_folder(home):
    with reserve(0) as other:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        folder = home / "output" / "b"
        week_ago = (time.time() - 8 * 24 * 3600,) * 2
        kept = [temporary(folder, other.pid), temporary(folder, 1, "elsewhere")]
        gone = [
            temporary(folder, dead.pid),
            temporary(folder, os.getpid()),
            temporary(folder, 2, "elsewhere"),
        ]
        for path in gone[1:]:  # the number of a process that began later; a machine that is away
            os.utime(path, week_ago)
        write(folder / "result.txt")
        assert not [p for p in gone if p.exists()] and all(p.exists() for p in kept)
        dead = temporary(folder, dead.pid)
        host.numbered("b/c", ".txt")
        assert not dead.exists()
        other.kill()


def test_processes_that_number_at_once_never_take_one_name(home):
    processes = [reserve(25) for _ in range(3)]
    try:
        names = [process.stdout.readline() for process in processes for _ in range(25)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert len(set(names)) == 75 and all(names)


def test_a_file_of_another_machine_counts(home):
    (home / "output" / ".a_00007_.txt.1@elsewhere.part").touch()
    assert host.numbered("a", ".txt")[0].name == "a_00008_.txt"
