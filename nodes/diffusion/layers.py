"""A UNet's layers and blocks by number, and parts of the sampling by noise level.

*Layers* are self-attention layers in execution order (0..15 on SD1.x and SD2.x, 0..69 on SDXL); *blocks* are
decoder blocks (0..11 on SD1.x). Read from the modules themselves, so that any width and depth will do.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}

# -- what is there ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One self-attention layer."""

    number: int  # in execution order
    block: str  # ComfyUI's address: "input", "middle" or "output",
    block_number: int  # the block's number there,
    block_index: int  # and the transformer block's in it
    heads: int
    channels: int
    path: str  # of the attn1 module below diffusion_model

    @property
    def address(self) -> tuple[str, int, int]:
        return self.block, self.block_number, self.block_index


@dataclass(frozen=True)
class Block:
    """One decoder block: a residual block, attention at most levels, at the level's end an upsampler."""

    number: int
    channels: int
    layers: tuple[int, ...]  # numbers of the self-attention layers in it

    @property
    def path(self) -> str:
        """The residual block below diffusion_model."""
        return f"output_blocks.{self.number}.0"


def network(model: Any) -> torch.nn.Module:
    """The UNet of a MODEL (a patcher, its base model or the UNet itself); a sentence for anything else."""
    base = getattr(model, "model", model)
    net = getattr(base, "diffusion_model", base)
    known = all(hasattr(net, part) for part in ("input_blocks", "middle_block", "output_blocks"))
    if not known or any(hasattr(m, "time_stack") for m in net.modules()):
        raise ValueError(
            f"this model ({type(base).__name__}) is not a Stable Diffusion 1.x, 2.x or XL image model: "
            "load such a checkpoint, the diffusion nodes open up its UNet"
        )
    return net


def layers(model: Any) -> list[Layer]:
    """Every self-attention layer in execution order."""
    net = network(model)
    parts = [("input", i, b) for i, b in enumerate(net.input_blocks)]
    parts += [("middle", 0, net.middle_block)] if net.middle_block is not None else []
    parts += [("output", i, b) for i, b in enumerate(net.output_blocks)]
    found: list[Layer] = []
    for kind, number, block in parts:
        base = "middle_block" if kind == "middle" else f"{kind}_blocks.{number}"
        for at, module in enumerate(block):
            for index, inner in enumerate(getattr(module, "transformer_blocks", ())):
                if getattr(inner, "disable_self_attn", False):
                    continue  # attn1 reads the text here
                attn = inner.attn1
                path = f"{base}.{at}.transformer_blocks.{index}.attn1"
                width = attn.to_q.weight.shape[0]
                found.append(Layer(len(found), kind, number, index, attn.heads, width, path))
    return found


def blocks(model: Any) -> list[Block]:
    """Every decoder block in execution order."""
    net, owners = network(model), {}
    for layer in layers(model):
        if layer.block == "output":
            owners.setdefault(layer.block_number, []).append(layer.number)
    return [
        Block(i, block[0].out_layers[3].weight.shape[0], tuple(owners.get(i, ())))
        for i, block in enumerate(net.output_blocks)
    ]


def family(model: Any) -> str:
    """ "sd1", "sd2", "sdxl" or "sdxl-refiner", from the width of the text conditioning."""
    net = network(model)
    width = next(m.attn2.to_k.weight.shape[1] for m in net.modules() if getattr(m, "attn2", None) is not None)
    return family_of_width(width)


def family_of_width(width: int) -> str:
    """The family whose text conditioning is so wide; "" for no width."""
    return _FAMILIES.get(width, f"text width {width}" if width else "")


def pick(expression: str, count: int, what: str = "layer") -> list[int]:
    """Numbers that "all", "none", "last 6", "first 2", "10-15" or "0, 3, 5-7" mean, of 0..count-1."""
    example = f'write "all", "none", "last 6", "first 2", "10-15" or "0, 3, 5-7" ({what}s are 0..{count - 1})'
    chosen: set[int] = set()
    words = expression.replace("–", "-").lower().strip()
    for part in words.split(",") if words else []:
        word, _, number = part.strip().partition(" ")
        if word in ("all", "none") and not number:
            chosen.update(range(count) if word == "all" else ())
        elif word in ("last", "first") and number.strip().isdigit():
            n = min(int(number), count)
            chosen.update(range(count - n, count) if word == "last" else range(n))
        else:
            ends = [end.strip() for end in part.split("-")]
            if len(ends) > 2 or not all(end.isdigit() for end in ends):
                raise ValueError(f"{part.strip()!r} names no {what}s: {example}")
            low, high = int(ends[0]), int(ends[-1])
            if high >= count or low > high:
                raise ValueError(f"there is no {what} {part.strip()} in this model: {example}")
            chosen.update(range(low, high + 1))
    if not words:
        raise ValueError(f"no {what}s are named: {example}")
    return sorted(chosen)


def pick_layers(model: Any, expression: str) -> list[Layer]:
    """The layers that an expression names."""
    every = layers(model)
    return [every[i] for i in pick(expression, len(every))]


# -- when ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigmaRange:
    """A part of the sampling, in noise levels; `sigma in range`."""

    high: float
    low: float

    def __contains__(self, sigma: float) -> bool:
        return self.low <= sigma <= self.high

    @property
    def empty(self) -> bool:
        return self.low >= self.high


def sigma_range(model: Any, start_percent: float, end_percent: float) -> SigmaRange:
    """From ComfyUI's percents; the same part of the sampling under any sampler, scheduler and step count."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    return SigmaRange(float(to_sigma(start_percent)), float(to_sigma(end_percent)))


def step_of(sigma: float, sample_sigmas: Tensor) -> int:
    """The step whose interval holds `sigma`: sigmas[i] >= sigma > sigmas[i + 1] (calls are not steps)."""
    above = (sample_sigmas.double().cpu() >= sigma * (1 - 1e-5)).sum().item()
    return min(max(int(above) - 1, 0), max(len(sample_sigmas) - 2, 0))
