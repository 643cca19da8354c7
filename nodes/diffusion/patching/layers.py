"""A UNet's layers and blocks by number, and parts of the sampling as ranges of noise levels.

*Layers* are self-attention layers in execution order (0..15 on SD1.x and SD2.x, 0..69 on SDXL). *Blocks* are
decoder blocks (0..11 on SD1.x and SD2.x, 0..8 on SDXL). Both are read from the network's modules, so that
any width and depth works.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ... import host

_FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}

# -- layers and blocks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention layer."""

    number: int  # in execution order
    block: str  # ComfyUI's address: "input", "middle" or "output",
    block_number: int  # the block's number there,
    block_index: int  # and the transformer block's number in it
    heads: int
    path: str  # of the attn1 module below diffusion_model

    @property
    def address(self) -> tuple[str, int, int]:
        return self.block, self.block_number, self.block_index


@dataclass(frozen=True)
class DecoderBlock:
    """One decoder block: a residual block, attention layers in most blocks, sometimes an upsampler."""

    number: int
    layers: tuple[AttentionLayer, ...]

    @property
    def path(self) -> str:
        """The residual block below diffusion_model."""
        return f"output_blocks.{self.number}.0"


def network(model: Any) -> torch.nn.Module:
    """The UNet of a MODEL, of a base model, or the UNet itself; other models raise an error."""
    base = getattr(model, "model", model)
    net = getattr(base, "diffusion_model", base)
    is_unet = all(hasattr(net, name) for name in ("input_blocks", "middle_block", "output_blocks"))
    if not is_unet or any(hasattr(m, "time_stack") for m in net.modules()):
        raise ValueError(
            f"this model ({type(base).__name__}) is not a Stable Diffusion 1.x, 2.x or XL image model, whose "
            "layers this node needs: load an SD1.x, SD2.x or SDXL checkpoint"
        )
    return net


def attention_layers(model: Any) -> list[AttentionLayer]:
    """Every self-attention layer in execution order."""
    net = network(model)
    blocks = [("input", i, b) for i, b in enumerate(net.input_blocks)]
    blocks += [("middle", 0, net.middle_block)] if net.middle_block is not None else []
    blocks += [("output", i, b) for i, b in enumerate(net.output_blocks)]
    layers: list[AttentionLayer] = []
    for kind, number, block in blocks:
        block_path = "middle_block" if kind == "middle" else f"{kind}_blocks.{number}"
        for position, module in enumerate(block):
            for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                if getattr(transformer, "disable_self_attn", False):
                    continue  # here attn1 is cross-attention
                path = f"{block_path}.{position}.transformer_blocks.{index}.attn1"
                heads = transformer.attn1.heads
                layers.append(AttentionLayer(len(layers), kind, number, index, heads, path))
    return layers


def decoder_blocks(model: Any) -> list[DecoderBlock]:
    """Every decoder block in execution order."""
    decoder = [layer for layer in attention_layers(model) if layer.block == "output"]
    return [
        DecoderBlock(i, tuple(layer for layer in decoder if layer.block_number == i))
        for i in range(len(network(model).output_blocks))
    ]


def family(model: Any) -> str:
    """ "sd1", "sd2", "sdxl" or "sdxl-refiner", from the width of the text embedding."""
    net = network(model)
    width = next(m.attn2.to_k.weight.shape[1] for m in net.modules() if getattr(m, "attn2", None) is not None)
    return family_of_width(width)


def family_of_width(width: int) -> str:
    """The family with this width of the text embedding; "" for width 0."""
    return _FAMILIES.get(width, f"text width {width}" if width else "")


# -- numbers from text -----------------------------------------------------------------------------


def pick(expression: str, count: int, what: str = "layer") -> list[int]:
    """Numbers of 0..count-1: "all", "none", "last 6", "first 2", "10-15" or "0, 3, 5-7"."""
    example = f'write "all", "none", "last 6", "first 2", "10-15" or "0, 3, 5-7" ({what}s are 0..{count - 1})'
    chosen: set[int] = set()
    words = expression.replace("–", "-").lower().strip()
    for item in words.split(",") if words else []:
        word, _, number = item.strip().partition(" ")
        if word in ("all", "none") and not number:
            chosen.update(range(count) if word == "all" else ())
        elif word in ("last", "first") and number.strip().isdigit():
            n = min(int(number), count)
            chosen.update(range(count - n, count) if word == "last" else range(n))
        else:
            ends = [end.strip() for end in item.split("-")]
            if len(ends) > 2 or not all(end.isdigit() for end in ends):
                raise ValueError(f"{item.strip()!r} names no {what}s: {example}")
            low, high = int(ends[0]), int(ends[-1])
            if high >= count or low > high:
                raise ValueError(f"there is no {what} {item.strip()} in this model: {example}")
            chosen.update(range(low, high + 1))
    if not words:
        raise ValueError(f"no {what}s are named: {example}")
    return sorted(chosen)


def pick_layers(model: Any, expression: str) -> list[AttentionLayer]:
    """The layers that an expression names."""
    layers = attention_layers(model)
    return [layers[i] for i in pick(expression, len(layers))]


def pick_blocks(model: Any, expression: str) -> list[DecoderBlock]:
    """The decoder blocks that an expression names."""
    blocks = decoder_blocks(model)
    return [blocks[i] for i in pick(expression, len(blocks), "block")]


def recomputable(model: Any, read: Iterable[AttentionLayer] = ()) -> list[str]:
    """Paths of the modules that are worth computing again in a backward pass: residual and transformer
    blocks. Of a transformer block whose attention is read, only the feed-forward part: a reading pass ends
    inside its attention, and what is read there must keep its graph."""
    read_blocks = {layer.path.rpartition(".")[0] for layer in read}
    paths = []
    for path, module in network(model).named_modules():
        residual, transformer = hasattr(module, "in_layers"), hasattr(module, "attn1")
        if residual or (transformer and path not in read_blocks):
            paths.append(path)
        elif transformer:
            paths.append(f"{path}.ff")
    return paths


def numbered(items: list, number: int, what: str) -> Any:
    """The layer or block with a number; another number raises an error."""
    if not 0 <= number < len(items):
        raise ValueError(f"there is no {what} {number} in this model: it has 0..{len(items) - 1}")
    return items[number]


# -- parts of the sampling -------------------------------------------------------------------------


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
    """From ComfyUI's percents; the same part of the sampling for every sampler, scheduler and step count."""
    return SigmaRange(host.percent_to_sigma(model, start_percent), host.percent_to_sigma(model, end_percent))
