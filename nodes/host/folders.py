"""Input, output and model folders, and the checks that a name from a graph stays inside them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from .comfyui import comfy, inside_comfyui

_KINDS = ("input", "output", "temp", "user")
_LONGEST_NAME = 255  # bytes, on all common file systems
_trusted: ContextVar[tuple[Path, ...]] = ContextVar("trusted paths", default=())


def home() -> Path:
    """Outside ComfyUI: the folder that holds models/, input/ and output/."""
    return Path(os.environ.get("REELBRUSH_HOME") or Path.cwd())


def folder(kind: str) -> Path:
    """The `input`, `output`, `temp` or `user` folder."""
    if kind not in _KINDS:
        raise ValueError(f"there is no folder {kind!r}: choose one of {', '.join(_KINDS)}")
    if inside_comfyui():
        return Path(getattr(comfy("folder_paths"), f"get_{kind}_directory")())
    return home() / kind


def limit_from(variable: str, default: float) -> float:
    """A limit that an environment variable sets: a number, not negative; "inf" is no limit."""
    text = os.environ.get(variable, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:  # also NaN
        raise ValueError(f"{variable} is {text!r}: give a number such as {default:g}")
    return number


@contextmanager
def trusting(paths: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Allow these paths in `inside`: arguments of the command line, never names from a graph."""
    token = _trusted.set(_trusted.get() + tuple(Path(p).resolve() for p in paths))
    try:
        yield
    finally:
        _trusted.reset(token)


def inside(base: Path, name: str, what: str = "file") -> Path:
    """`base / name`, or an error when that is outside `base` (`..`, absolute, a link that leads out)."""
    if "\0" in str(name):
        raise ValueError(f"the {what} name contains a null character")
    try:
        longest = max(map(len, map(os.fsencode, Path(name).parts)), default=0)
    except UnicodeEncodeError:
        raise ValueError(f"the {what} name {str(name)!r} is not valid text: choose another name") from None
    if longest > _LONGEST_NAME:
        raise ValueError(f"the {what} name has {longest} bytes, and at most {_LONGEST_NAME} are possible")
    path = (base / name).resolve()
    if path in _trusted.get() or any(p in path.parents for p in _trusted.get() if p.is_dir()):
        return path
    if not path.is_relative_to(base.resolve()):
        raise ValueError(
            f"the {what} {str(name)!r} leaves the {base.name} folder: give a name inside {base.name}/"
        )
    return base / name


def input_path(name: str, what: str = "file") -> Path:
    """An existing file or folder below `input/`; the name comes from a graph and is not trusted."""
    name = name.removesuffix(" [input]")
    path = inside(folder("input"), name, what)
    if not (path.is_file() or path.is_dir()) or path.samefile(folder("input")):  # "" and "." are no choice
        raise ValueError(f"the {what} {name!r} is not in the input folder: copy it there, or choose another")
    return path


def _is_hidden(path: Path, base: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(base).parts)


def input_names(extensions: Iterable[str] = (), *, folders: bool = False) -> list[str]:
    """Names below `input/`: files with one of these extensions, or (folders=True) sub-folders."""
    base = folder("input")
    if not base.is_dir():
        return []
    endings = tuple(extensions)
    paths = (p for p in base.rglob("*") if p.is_dir() == folders and not _is_hidden(p, base))
    return sorted(
        p.relative_to(base).as_posix()
        for p in paths
        if folders or not endings or p.name.lower().endswith(endings)
    )


def output_path(name: str, what: str = "file") -> Path:
    """A path below `output/`; its folder is created. An error when it is outside the output folder."""
    path = inside(folder("output"), name, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def model_folders(kind: str) -> list[Path]:
    """The folders with models of a kind, ComfyUI's first; `output/<kind>` holds what was trained here."""
    trained = folder("output") / kind
    if not inside_comfyui():
        return [home() / "models" / kind, trained]
    paths = comfy("folder_paths")
    if kind not in paths.folder_names_and_paths:
        paths.add_model_folder_path(kind, os.path.join(paths.models_dir, kind))
        paths.add_model_folder_path(kind, str(trained))
    folders = [Path(p) for p in paths.get_folder_paths(kind)]
    return folders if trained in folders else [*folders, trained]


def model_names(
    kind: str, extensions: Iterable[str] = (".safetensors",), *, folders: bool = False
) -> list[str]:
    """The files of a kind of model, and the sub-folders when asked for."""
    endings = tuple(extensions)
    names: list[str] = []
    for base in model_folders(kind):
        for path in sorted(base.rglob("*")) if base.is_dir() else ():
            if _is_hidden(path, base):
                continue
            if (path.is_dir() and folders) or (path.is_file() and path.name.lower().endswith(endings)):
                names.append(path.relative_to(base).as_posix())
    return list(dict.fromkeys(names))


def model_path(kind: str, name: str) -> Path:
    """The model `name` in the first folder of its kind that has it."""
    bases = model_folders(kind)
    for base in bases:
        link = Path(os.path.normpath(base / name))  # a model may be a link to another disk
        path = link if link.is_relative_to(base) else inside(base, name, f"{kind} model")
        if path.is_file() or path.is_dir():
            return path
    raise ValueError(f"the {kind} model {name!r} was not found: put it into {bases[0].parent.name}/{kind}/")


def trained_path(kind: str, name: str, what: str = "save_as") -> Path:
    """A file below `output/<kind>/`, which ComfyUI's own loaders of that kind then list."""
    base = folder("output") / kind
    if inside_comfyui():
        comfy("folder_paths").add_model_folder_path(kind, str(base))
    return inside(base, name, what)


def workflow_metadata(prompt: dict | None = None, extra_pnginfo: dict | None = None) -> dict:
    """The workflow for an output file; empty if ComfyUI was started with --disable-metadata."""
    if inside_comfyui() and comfy("comfy.cli_args").args.disable_metadata:
        return {}
    return {**(extra_pnginfo or {}), **({"prompt": prompt} if prompt else {})}
