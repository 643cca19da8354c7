"""Damaged weights: one tensor or the metadata of a file is changed, and the file is loaded and used."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from outcomes import Log, outcome
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reelbrush.nodes.attnstyle import style as attnstyle
from reelbrush.nodes.attnstyle.network import AttnStyleNet
from reelbrush.nodes.diffusion.inversion import trajectory
from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.flow import estimate, store
from reelbrush.nodes.stya2k import checkpoint

CASES = 50  # of each kind
SMALL = Path(checkpoint.__file__).parent / "weights" / "stya2k-small.safetensors"
TEXTS = (
    "", "x", "[]", "null", "5", "NaN", '{"attention": 5}', '{"halving": []}', '{"stride": "x"}', "[" * 5000,
    '{"cuts": 3}', '{"widths": "x"}', '{"widths": [8, 16, 10000000]}', '[[1]]', '{"lora_alpha": "x"}',
)  # fmt: skip


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    """A good file of each kind, and what reads and uses it."""
    torch.manual_seed(0)
    flow = estimate.estimate(torch.rand(3, 32, 48, 3), "dis-ultrafast")
    store.save(flow, folder / "flow.safetensors")
    attnstyle.save(attnstyle.TextStyle.of(AttnStyleNet((8, 16, 32))), folder / "attnstyle.safetensors")
    latents = {
        "latents": torch.rand(4, 2, 4, 8, 8),
        "sigmas": torch.arange(4.0),
        "text.0": torch.rand(1, 7, 16),
    }
    about = {
        "format": trajectory._FORMAT,
        "family": "sd1",
        "convention": "next timestep",
        "conditioning": "[{}]",
    }
    save_file(latents, folder / "trajectory.safetensors", about)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{name}.lora_down.weight": torch.rand(4, 320), f"{name}.lora_up.weight": torch.rand(320, 4)}
    about = {"lora_adapter_metadata": '{"lora_alpha": 4}'}
    save_file({**pair, f"{name}.alpha": torch.tensor(4.0)}, folder / "lora.safetensors", about)
    kinds = [
        (SMALL, checkpoint.load, lambda net: next(net.parameters())),
        (folder / "flow.safetensors", store.load, lambda flow: flow.forward * flow.forward_valid[:, None]),
        (folder / "attnstyle.safetensors", attnstyle.load, lambda s: s.network()(torch.rand(1, 3, 32, 32))),
        (folder / "trajectory.safetensors", trajectory.load, lambda t: t.latents * t.sigmas.mean()),
        (
            folder / "lora.safetensors",
            lora.load,
            lambda f: [w.up @ w.down * w.scale for w in f.weights.values()],
        ),
    ]
    return SimpleNamespace(folder=folder, kinds=kinds, log=Log())


def count(state: SimpleNamespace) -> int:
    return CASES * len(state.kinds)


CHANGES: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: torch.full_like(t.float(), torch.nan),
    lambda t: torch.full_like(t.float(), torch.inf),
    lambda t: t.float() * 1e30,
    lambda t: None,
    lambda t: t.T.contiguous() if t.ndim == 2 else t.flatten(),
    lambda t: t[:0].contiguous() if t.ndim else t[None][:0],
    lambda t: torch.zeros(()),
    lambda t: t.double(),
    lambda t: t.flatten()[None, None, None, None],
    lambda t: t.bool(),
)


def damaged(path: Path, target: Path, rng: random.Random) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata()
    if metadata and rng.random() < 0.3:
        metadata[rng.choice(sorted(metadata))] = rng.choice(TEXTS)
    else:
        name = rng.choice(sorted(tensors))
        changed = rng.choice(CHANGES)(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed
    save_file(tensors, target, metadata)
    if rng.random() < 0.15:
        data = bytearray(target.read_bytes())
        at = rng.randrange(min(len(data), 200))
        data[at : at + 8] = rng.choice((b"", bytes(8), b"\xff" * 8, b"[" * 8))
        target.write_bytes(data)


def case(state: SimpleNamespace, number: int) -> str:
    rng = random.Random(f"weights {number}")
    path, load, use = state.kinds[number // CASES]
    target = state.folder / "damaged.safetensors"
    damaged(path, target, rng)
    text, value = outcome(lambda: use(load(target)), state.log)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(tensor.isfinite().all() for tensor in found):
        return "failure: the result is not finite"
    return text.replace("failure: ", f"failure: {path.name}: ", 1)
