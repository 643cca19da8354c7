"""What may come out of a case: a result, a result with a warning, or an error message of one sentence."""

import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
_ALLOWED = (ValueError, RuntimeError, OSError)
_OTHERS = (UnicodeError, RecursionError, NotImplementedError)  # subclasses of these
_PYTHON = re.compile(
    r"object has no attribute|object is not|unsupported operand|out of range|argument must|positional arg"
    r"|must be (str|int|real|a )|codec can't|Traceback|0x[0-9a-f]{6}|<class |NoneType|shapes? cannot|dtype"
    r"|\bat dim|expand|Expected |expected [a-z]+ (to|but)|recursion|\[Errno (?!28|122)|libav|cv2|\(-\d+:"
)


class Log(logging.Handler):
    """The warnings of the pack."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger("reelbrush").addHandler(self)
        logging.getLogger("reelbrush").propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def problem(text: str) -> str:
    """What is wrong with an error message; empty if nothing is."""
    if not text.strip() or "\n" in text or len(text) > 1100:
        return f"not one sentence: {text[:300]!r}"
    if _PYTHON.search(text):
        return f"a library's words: {text[:300]!r}"
    return ""


def outcome(call: Callable[[], Any], log: Log) -> tuple[str, Any]:
    """The outcome of a call as text, and what it returned."""
    log.texts.clear()
    try:
        value = call()
    except Exception as error:
        kind = f"{type(error).__module__}.{type(error).__name__}"
        if (
            not isinstance(error, _ALLOWED)
            or isinstance(error, _OTHERS)
            or not kind.startswith(("builtins.", "reelbrush."))
        ):
            return f"failure: {kind}: {str(error)[:300]!r}", None
        wrong = problem(str(error))
        return (f"failure: {wrong}" if wrong else f"message: {error}"), None
    return ("warning: " + log.texts[0] if log.texts else "result"), value


def load(*names: str) -> ModuleType:
    """A module of the tests, which are not a package."""
    path = TESTS.joinpath(*names).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"attack_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
