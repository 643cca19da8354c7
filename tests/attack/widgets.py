"""Odd values of every widget and connection of every node: what a link from another pack may bring."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from outcomes import Log, outcome
from tensors import recipes

NUMBERS = {"INT": (-1, 0, -(2**63)), "FLOAT": (-1.0, 0.0, -1e30, float("nan"), float("inf"))}
TEXTS = ("", ",", "-1", "nan", "../x", "a\0b", "é" * 300, "0-999999999", "1, 2, 3, x", "\ud800")


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    every = recipes()
    cases: list[tuple[str, str, Any]] = []
    for node in every.IDS:
        if every.RECIPES[node].needs:
            continue
        given = every.RECIPES[node].inputs(2, every.RECIPES[node].sizes[0])
        for name, (kind, options) in every.declared(every.nodes.NODE_CLASS_MAPPINGS[node]).items():
            if not isinstance(kind, str):
                cases += [(node, name, value) for value in ("nix", None)]
            elif kind in NUMBERS:
                ends = [options[end] for end in ("min",) if end in options]
                cases += [(node, name, value) for value in (*NUMBERS[kind], *ends)]
            elif kind == "STRING":
                cases += [(node, name, value) for value in TEXTS]
            elif kind not in ("IMAGE", "MASK", "LATENT", "BOOLEAN") and name in given:
                cases.append((node, name, None))
    return SimpleNamespace(every=every, cases=cases, log=Log())


def count(state: SimpleNamespace) -> int:
    return len(state.cases)


def case(state: SimpleNamespace, number: int) -> str:
    node, name, value = state.cases[number]
    every, recipe = state.every, state.every.RECIPES[node]
    given = recipe.inputs(2, recipe.sizes[0]) | {name: value}
    text, _ = outcome(lambda: every.settle(list(every.run(node, given))), state.log)
    return text.replace("failure: ", f"failure: {node}, {name}={str(value)[:30]!r}: ", 1)
