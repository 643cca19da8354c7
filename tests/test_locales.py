"""The texts of nodes in other languages: none is missing, none is of another node."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = sorted(path.parent.name for path in (ROOT / "locales").glob("*/nodeDefs.json"))

spec = importlib.util.spec_from_file_location("reelbrush_locales", ROOT / "lab" / "locales.py")
locales = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locales)


def shape(tree):
    return {k: None if isinstance(v, str) else shape(v) for k, v in tree.items()}


def test_english_texts_are_those_of_the_declarations():
    assert json.loads(locales.file_of("en").read_text()) == locales.english()


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_no_translation_is_missing(language):
    tree = json.loads(locales.file_of(language).read_text())
    assert shape(tree) == shape(locales.english())
    pairs = zip(locales.texts_of(locales.english()), locales.texts_of(tree), strict=True)
    # Short texts may be names that no language translates, such as "VAE" or "StyA2K Style".
    missing = {english for english, text in pairs if english == text and len(english) > 20}
    assert not missing, f"python lab/locales.py {language} --missing todo.json lists them"
