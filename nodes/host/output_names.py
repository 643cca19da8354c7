"""Numbered names for output files, and the temporary names that they are written under."""

import errno
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from .folders import folder, inside, output_path

_MACHINE = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:20]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)@(?P<machine>[A-Za-z0-9]*)\.part")
_FORGOTTEN = 7 * 24 * 3600  # seconds
_LOCK = ".reelbrush/lock"  # beside the frame cache


def temporary_path(path: Path) -> Path:
    """The hidden sibling of `path` that this process, and no other, writes before it renames it."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_MACHINE}.part")


def numbered(prefix: str, suffix: str, size: tuple[int, int] = (0, 0)) -> tuple[Path, str]:
    """The next free `prefix_00001_suffix` below `output/`, numbered as ComfyUI does, and its sub-folder.

    `prefix` may contain %year%, %month%, %day%, %hour%, %minute%, %second%, %width% and %height%.
    The number is reserved by an empty file (a folder, without a suffix) under the temporary name. It is
    free again when that is removed or when the process has ended.
    """
    prefix = _with_values(prefix, size)
    first = output_path(prefix, "filename_prefix")
    stem = first.name + "_"
    with locked(folder("output") / _LOCK):
        remove_leftovers(first.parent)
        written = ((_TEMPORARY.fullmatch(p.name), p.name) for p in first.parent.iterdir())
        names = (match["name"] if match else name for match, name in written)
        numbers = (n.removeprefix(stem).split("_")[0] for n in names if n.startswith(stem))
        number = max((int(n) for n in numbers if n.isdecimal()), default=0) + 1
        path = first.parent / f"{stem}{number:05}_{suffix}"
        reserved = inside(path.parent, temporary_path(path).name, "filename_prefix")
        if suffix:
            reserved.touch()
        else:
            reserved.mkdir(exist_ok=True)
    sub_folder = Path(prefix).parent.as_posix()
    return path, "" if sub_folder == "." else sub_folder


def _with_values(prefix: str, size: tuple[int, int]) -> str:
    now = time.localtime()
    values = {
        "width": str(size[0]),
        "height": str(size[1]),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    for key, value in values.items():
        prefix = prefix.replace(f"%{key}%", value)
    if not Path(prefix).name:
        raise ValueError("filename_prefix is empty: give the file a name")
    return prefix


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder under temporary names."""
    for path in folder.glob(".*.part"):
        match = _TEMPORARY.fullmatch(path.name)
        with suppress(OSError):
            if match and _is_left(path.stat().st_mtime, int(match["process"]), match["machine"]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_left(changed: float, process: int, machine: str) -> bool:
    """Whether nobody writes a file any more that was changed at that time."""
    if machine != _MACHINE:  # the folder is on a shared disk, or this is a new container
        return changed < time.time() - _FORGOTTEN
    try:
        return psutil.Process(process).create_time() > changed + 1  # another process with the same number
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; without `wait`, False if it is held already.

    The system releases the lock of a process that is killed. Where there can be no lock, the result is True.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    except OSError:
        yield True
        return
    with opened as file:
        held = True
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            held = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield held
