"""Cases and methods are functions. Their arguments with defaults are the settings of the command line."""

import ast
import importlib
import inspect
import os
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


def documented(folder: str) -> dict[str, str]:
    """The public functions of the modules in a folder, "module.function", and what each does."""
    lines = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                lines[f"{path.stem}.{node.name}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return lines


def listing(folder: str) -> str:
    """The functions of a folder with their settings, as text."""
    return "".join(f"{name:<24} {line}\n" for name, line in documented(folder).items())


def function(folder: str, name: str) -> Callable[..., Any]:
    """A function by its name. With COMFYUI_PATH set, ComfyUI is imported first, as in the tests."""
    known = documented(folder)
    if name not in known:
        raise SystemExit(f"{name!r} is not known: choose one of {', '.join(known)}")
    if os.environ.get("COMFYUI_PATH"):
        importlib.import_module("reelbrush.tests.conftest")
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(f"reelbrush.benchmarks.{folder}.{module}"), attribute)


def defaults(of: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(of).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def combinations(of: Callable[..., Any], texts: Iterable[str]) -> list[dict[str, Any]]:
    """Settings for each combination of the values in "name=a,b" texts."""
    known, lists = defaults(of), {}
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in known or not equals:
            about = ", ".join(f"{key}={value}" for key, value in known.items())
            raise SystemExit(f"{text!r} is not a setting: give name=value[,value...] of {about}")
        lists[name] = [_value(value, known[name]) for value in values.split(",")]
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def _value(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return text.lower() in ("1", "true", "yes", "on")
    return type(default)(text)


def words(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
