"""A style LoRA: low-rank changes of attention projections, by ComfyUI's module paths below `diffusion_model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .layers import family, network

KIND = "loras"


@dataclass(frozen=True, eq=False)
class LowRank:
    """One layer's change: the weight [out, in] becomes weight + up @ down * scale."""

    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scale: float = 1.0  # alpha / r

    def delta(self) -> Tensor:
        """What is added to the weight, [out, in]."""
        return self.up @ self.down * self.scale


@dataclass(eq=False)
class StyleLoRA:
    """What Train Style LoRA makes and Load Style LoRA reads (REELBRUSH_LORA).

    `parts` is keyed by module path, "input_blocks.1.1.transformer_blocks.0.attn1.to_q" (to_k, to_v, to_out.0;
    attn1 and attn2). Tensors rest on the CPU, in float32.
    """

    name: str
    parts: dict[str, LowRank] = field(repr=False)

    def __deepcopy__(self, memo: dict) -> StyleLoRA:
        return self  # a clone of a MODEL copies what its patches hold: once is enough

    def check(self, model: Any) -> None:
        """One sentence where a part has no such module in this MODEL, or one of another shape."""
        net = network(model)
        modules = dict(net.named_modules())
        for path, part in self.parts.items():
            weight = getattr(modules.get(path), "weight", None)
            wanted = (part.up.shape[0], part.down.shape[1])
            if not isinstance(weight, (nn.Parameter, Tensor)):
                raise ValueError(
                    f"the LoRA {self.name!r} changes {path}, which this {family(model)} model does not have: "
                    "it was trained for another base, load one of this model's family"
                )
            if tuple(weight.shape[:2]) != wanted:
                raise ValueError(
                    f"the LoRA {self.name!r} fits {wanted[1]} to {wanted[0]} channels at {path}, where this "
                    f"{family(model)} model has {weight.shape[1]} to {weight.shape[0]}: it was trained for "
                    "another base, load one of this model's family"
                )
