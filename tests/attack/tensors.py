"""Bad pictures, masks and latents for every node that takes them."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from outcomes import TESTS, Log, load, outcome
from torch import Tensor


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[x.numel() // 3] = value
        return x

    return spoil


ROWS: dict[str, Callable[[Tensor], Any]] = {
    "NaN": spoiled(torch.nan),
    "Inf": spoiled(torch.inf),
    "-Inf": spoiled(-torch.inf),
    "all NaN": lambda x: torch.full_like(x, torch.nan),
    "1e30": spoiled(1e30),
    "negative": lambda x: -x,
    "0 to 255": lambda x: x * 255,
    "constant": torch.zeros_like,
    "fp16": Tensor.half,
    "bf16": Tensor.bfloat16,
    "fp64": Tensor.double,
    "fp16 Inf": lambda x: (x * 1e6).half(),
    "uint8": lambda x: (x * 255).byte(),
    "int64": lambda x: (x * 255).long(),
    "bool": lambda x: x > 0.5,
    "complex": lambda x: x.to(torch.complex64),
    "1 channel": lambda x: x[..., :1],
    "2 channels": lambda x: x[..., :2],
    "4 channels": lambda x: torch.cat([x, x[..., :1]], -1),
    "5 channels": lambda x: torch.cat([x, x[..., :2]], -1),
    "channels first": lambda x: x.movedim(-1, 1),
    "0 frames": lambda x: x[:0],
    "0 rows": lambda x: x[:, :0],
    "0 columns": lambda x: x[:, :, :0],
    "0 channels": lambda x: x[..., :0],
    "1 frame": lambda x: x[:1],
    "2 frames": lambda x: x[:2],
    "1 pixel": lambda x: x[:, :1, :1],
    "1 row": lambda x: x[:, :1],
    "1 column": lambda x: x[:, :, :1],
    "odd size": lambda x: x[:, :-1, :-3],
    "no batch": lambda x: x[0],
    "one number": lambda x: x.sum(),
    "one more dimension": lambda x: x[None],
    "transposed memory": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded memory": lambda x: x[:1].expand(x.shape),
    "needs a gradient": lambda x: x.clone().requires_grad_(),
    "None": lambda x: None,
    "a text": lambda x: "picture",
    "a list": lambda x: list(x),
    "a number": lambda x: 5,
    "a dictionary": lambda x: {"samples": None},
    "an empty dictionary": lambda x: {},
    "an array": lambda x: x.numpy(),
}


def recipes() -> ModuleType:
    """The test of every node, which knows how to call them."""
    sys.path.insert(0, str(TESTS / "recipes"))
    torch.manual_seed(0)
    return load("test_every_node")


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    every = recipes()
    cases = []
    for node in every.IDS:
        recipe = every.RECIPES[node]
        if not recipe.needs:
            inputs = [name for name, *_ in every.tensor_inputs(node, recipe)]
            cases += [(node, name, row) for name in inputs for row in ROWS]
    return SimpleNamespace(every=every, cases=cases, log=Log())


def count(state: SimpleNamespace) -> int:
    return len(state.cases)


def case(state: SimpleNamespace, number: int) -> str:
    node, name, row = state.cases[number]
    every = state.every
    recipe = every.RECIPES[node]
    (kind, good, given), *_ = (rest for found, *rest in every.tensor_inputs(node, recipe) if found == name)
    with torch.inference_mode(row != "needs a gradient"):
        bad = ROWS[row](good)
    if kind == "LATENT" and not isinstance(bad, dict):
        bad = {"samples": bad}
    text, results = outcome(lambda: every.settle(list(every.run(node, given | {name: bad}))), state.log)
    for result in results or ():
        if isinstance(result, Tensor) and result.is_floating_point() and not result.isfinite().all():
            return f"failure: {node}, {name}, {row}: the result is not finite"
    return text.replace("failure: ", f"failure: {node}, {name}, {row}: ", 1)
