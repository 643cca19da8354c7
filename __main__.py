"""The `reelbrush` command. A subcommand is a module in nodes/headless/commands, imported when it is called.

Exit codes: 0 success; 1 an error, with a message of one sentence; 130 interrupted.
"""

import argparse
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

COMMANDS = {
    "render": "run a saved workflow, here or on a running ComfyUI",
    "sample": "write the sample clip, its exact flow and the style pictures",
    "flow-error": "measure the optical-flow error of a stylized clip",
    "train": "train a StyA2K model",
    "convert-stya2k": "convert official StyA2K checkpoints to one safetensors file",
    "nodes": "list the nodes: ids, names, inputs",
    "bench": "list and run the benchmarks of a source checkout",
}
_LONGEST = 1000  # characters of an error message: it may quote a value of any length


def load_command(name: str) -> Any:
    """The module of a subcommand."""
    return importlib.import_module(f".nodes.headless.commands.{name.replace('-', '_')}", __package__)


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<15} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "reelbrush",
        description="Video stylization for ComfyUI and the terminal.",
        epilog=f"commands:\n{lines}\n\n`reelbrush COMMAND --help` shows the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    return parser


def _open_streams() -> None:
    """Give a process that was started with closed streams others, which write to nowhere.

    Otherwise a file that is opened later gets their numbers, and what libraries log goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
        elif number and isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # for names of files


def _check_folder() -> None:
    try:
        os.getcwd()
    except OSError:
        raise ValueError("the current folder does not exist any more: change to another one") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    debug = "--debug" in argv
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s")
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, stop)  # as Ctrl-C
    try:
        top = _parser().parse_args(argv[:1])
        if top.version:
            from . import __version__

            sys.stdout.write(f"reelbrush {__version__}\n")
        elif not top.command:
            _parser().print_help()
        if top.version or not top.command:
            return 0
        _check_folder()
        command = load_command(top.command)
        parser = argparse.ArgumentParser(f"reelbrush {top.command}", description=COMMANDS[top.command])
        parser.add_argument(
            "--debug", action="store_true", help="log more, and show the traceback of an error"
        )
        command.add_arguments(parser)
        code = int(command.run(parser.parse_args(argv[1:])) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    except BrokenPipeError:  # its reader has ended; Python writes what is left when it exits
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except Exception as error:
        if stopped:  # it was caught where the signal interrupted, and became another error
            sys.stderr.write("\ninterrupted\n")
            return 130
        if debug:
            raise
        if isinstance(error, MemoryError):
            error = RuntimeError("not enough memory: close other programs, or give a smaller clip")
        if isinstance(error, OSError):
            from .nodes.common.files import file_error

            error = file_error(error)
        expected = isinstance(error, ValueError | RuntimeError | OSError)
        text = (
            str(error)
            if expected and str(error)
            else f"{type(error).__name__}: {error} (--debug shows the traceback)"
        )
        text = "".join(c if c.isprintable() else " " for c in text)  # parts may come from a file or a server
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
        sys.stderr.write(f"reelbrush: {text}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
