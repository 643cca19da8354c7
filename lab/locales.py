"""Writes locales/<language>/nodeDefs.json, which ComfyUI reads for names, tooltips and descriptions of nodes.

    python lab/locales.py en                     # from the declarations
    python lab/locales.py zh --missing todo.json # English texts that have no translation yet: {english: ""}
    python lab/locales.py zh --add done.json     # with translations {english: translation}

A language keeps the translations it has; a text that changed in English needs a new one.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reelbrush import nodes

ROOT = Path(__file__).resolve().parents[1] / "locales"


def words(name: str) -> str:
    """An input's name as words: "max_side" is "max side"."""
    return name.replace("_", " ")


def english() -> dict[str, Any]:
    """All texts of all nodes, in ComfyUI's format."""
    texts = {}
    for key, cls in sorted(nodes.NODE_CLASS_MAPPINGS.items()):
        declared = cls.INPUT_TYPES()
        inputs = {
            name: {"name": words(name), "tooltip": options[0]["tooltip"]}
            for group in ("required", "optional")
            for name, (_, *options) in declared.get(group, {}).items()
        }
        outputs = {
            str(i): {"name": words(name), "tooltip": tooltip}
            for i, (name, tooltip) in enumerate(
                zip(getattr(cls, "RETURN_NAMES", ()), cls.OUTPUT_TOOLTIPS, strict=True)
            )
        }
        about = {"display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS[key], "description": cls.DESCRIPTION}
        texts[key] = about | {"inputs": inputs} | ({"outputs": outputs} if outputs else {})
    return texts


def texts_of(tree: Any) -> Iterator[str]:
    """Every text of a tree of dictionaries, in order."""
    for value in tree.values():
        if isinstance(value, str):
            yield value
        else:
            yield from texts_of(value)


def translated(tree: Any, table: Callable[[str], str]) -> Any:
    return {k: table(v) if isinstance(v, str) else translated(v, table) for k, v in tree.items()}


def file_of(language: str) -> Path:
    return ROOT / language / "nodeDefs.json"


def known(language: str) -> dict[str, str]:
    """The translations of a language by their English text, as it was when they were made."""
    old, new = (file_of(name) for name in ("en", language))
    if not new.is_file():
        return {}
    pairs = zip(texts_of(json.loads(old.read_text())), texts_of(json.loads(new.read_text())), strict=True)
    return dict(pairs)


def write(language: str, tree: dict[str, Any]) -> None:
    file_of(language).parent.mkdir(parents=True, exist_ok=True)
    file_of(language).write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("language")
    parser.add_argument("--missing", type=Path)
    parser.add_argument("--add", type=Path)
    args = parser.parse_args()
    tree = english()
    if args.language == "en":
        tables = {path.parent.name: known(path.parent.name) for path in ROOT.glob("*/nodeDefs.json")}
        for language, table in tables.items():  # the others keep what did not change
            write(language, translated(tree, lambda text, table=table: table.get(text, text)))
        write("en", tree)
        return
    table = known(args.language)
    if args.add:
        table |= json.loads(args.add.read_text())
        write(args.language, translated(tree, lambda text: table.get(text, text)))
    if args.missing:
        todo = {text: "" for text in texts_of(tree) if table.get(text, text) == text}
        args.missing.write_text(json.dumps(todo, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
