"""The stylizers that can be loaded: first those of the pack, then those in models/stya2k."""

from importlib.resources import files
from pathlib import Path

from .. import host

KIND = "stya2k"
ENDINGS = (".safetensors", ".pth")


def _embedded() -> Path:
    return Path(str(files(__package__))) / "weights"


def embedded() -> list[str]:
    """Names of the models that come with the pack."""
    return sorted(p.name for p in _embedded().glob("*.safetensors"))


def names() -> list[str]:
    """The names that Load StyA2K lists: files, and folders of official files."""
    parts = ("_net_A2K.", "_net_transform.", "_net_decoder.", "vgg")
    found = host.model_names(KIND, ENDINGS, folders=True)
    whole = [n for n in found if not any(part in n for part in parts)]
    return list(dict.fromkeys([*embedded(), *whole]))


def path(name: str) -> Path:
    """The file or folder of a listed name; a name that comes with the pack wins."""
    if name in embedded():
        return _embedded() / name
    return host.model_path(KIND, name)
