"""Writing files so that an incomplete file never has the final name, and fingerprints of files."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import host


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """`with replacing(path) as temporary: ...` writes a file or a folder under a temporary name.

    The temporary name is a hidden sibling of `path` that contains the process number, so two processes
    never write to the same one. It becomes `path` when the block ends; after an error it is removed.
    An empty file or folder may already be there: it reserves the number of an output file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host.remove_leftovers(path.parent)
    temporary = host.temporary_path(path)
    if not _is_empty(temporary):
        _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def file_error(error: Exception) -> Exception:
    """An error of the system about a file as one sentence; others as they are."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return error
    name = os.fsdecode(error.filename2 or error.filename)
    return RuntimeError(f"{name} cannot be used ({error.strerror}): check it and its folder")


def _is_empty(path: Path) -> bool:
    if path.is_dir():
        return not any(path.iterdir())
    return not path.exists() or path.stat().st_size == 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(*paths: str | os.PathLike) -> str:
    """A hash of the path, modification time and size of each file; of a folder, of all files in it."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for member in members:
            about = member.stat()
            digest.update(f"{os.path.abspath(member)}\0{about.st_mtime_ns}\0{about.st_size}\n".encode())
    return digest.hexdigest()


def changed(find: Callable[..., Path], *names: str) -> str:
    """The IS_CHANGED value of a node that loads `find(*names)`; a missing file gives the error message."""
    try:
        return fingerprint(find(*names))
    except (ValueError, OSError) as error:
        return str(error)
