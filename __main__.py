"""The `reelbrush` command. Every sub-command lives in its wing and is imported when it is called.

A wing's command is a module (or an object in one, after a colon) with `add_arguments(parser)` and
`run(args) -> int`. Exit codes: 0 done; 1 an error, as one sentence; 130 interrupted.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "render": ("nodes.render", "run a saved workflow, here or on a running ComfyUI"),
    "sample": ("nodes.video.command", "write the sample clip, its exact flow and the style pictures"),
    "flow-error": ("nodes.flow.command", "optical-flow error of a stylized clip"),
    "train": ("nodes.stya2k.command:train", "train a StyA2K model"),
    "convert-stya2k": ("nodes.stya2k.command:convert", "official StyA2K checkpoints to one safetensors file"),
    "nodes": ("nodes.listing", "list the nodes: ids, names, inputs"),
    "bench": ("nodes.bench", "measure this machine"),
}


def _command(name: str) -> Any:
    """The module or object that implements a sub-command."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = importlib.import_module(f".{module}", __package__)
    return getattr(found, attribute) if attribute else found


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<15} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "reelbrush",
        description="Video stylization for ComfyUI and the terminal.",
        epilog=f"commands:\n{lines}\n\n`reelbrush COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    top = _parser().parse_args(argv[:1])
    if top.version:
        from . import __version__

        sys.stdout.write(f"reelbrush {__version__}\n")
        return 0
    if not top.command:
        _parser().print_help()
        return 0
    debug = "--debug" in argv
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s")
    try:
        command = _command(top.command)
        parser = argparse.ArgumentParser(f"reelbrush {top.command}", description=COMMANDS[top.command][1])
        parser.add_argument(
            "--debug", action="store_true", help="log more, and show where an error comes from"
        )
        command.add_arguments(parser)
        return int(command.run(parser.parse_args(argv[1:])) or 0)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, ValueError | RuntimeError | OSError)
        text = (
            str(error)
            if expected and str(error)
            else f"{type(error).__name__}: {error} (--debug shows where)"
        )
        sys.stderr.write(f"reelbrush: {text}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
