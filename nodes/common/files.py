"""Writing files that are never half-written, and fingerprints of files."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """`with replacing(path) as temporary: ...` writes a file or a folder under a temporary name.

    The temporary name is a hidden sibling of `path` that contains the process number, so two processes
    never write to the same one. It becomes `path` when the block ends; after an error it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(path: str | os.PathLike) -> str:
    """Changes when a file, or any file in a folder, gets another path, time of change or size."""
    path = Path(path)
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = [str(path.resolve())]
    for member in members:
        about = member.stat()
        lines.append(f"{member.relative_to(path).as_posix()}:{about.st_mtime_ns}:{about.st_size}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def changed(find: Callable[..., Path], *args: str) -> str:
    """The IS_CHANGED value of a node that loads `find(*args)`; a missing file gives the error message."""
    try:
        return fingerprint(find(*args))
    except (ValueError, OSError) as error:
        return str(error)
