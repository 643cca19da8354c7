"""A style LoRA: low-rank changes of weights, by ComfyUI's module paths below `diffusion_model`.

    lora = load(path)             # kohya, diffusers, PEFT, attention-processor files, and ComfyUI's own
    lora.check(model)             # one sentence where it was trained for another base
    lora.parts["input_blocks.1.1.transformer_blocks.0.attn1.to_q"].delta()
    save(lora, path, naming)      # kohya's names, which core loaders and other tools read

What a name in a file means is in lora_names.py. What is no low-rank change of a linear layer in a UNet's
transformer blocks (text encoders, residual blocks, biases) is left out, and the log says so.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .layers import family, family_of_width, network
from .lora_names import Name, is_dora, looks_like, names_of, written

log = logging.getLogger("reelbrush")

KIND = "loras"
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_KOHYA_BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


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
    attn1 and attn2; files of others may also hold ff.net.0.proj, ff.net.2, and a transformer's proj_in and
    proj_out, which are 1x1 convolutions on SD1.x). Tensors rest on the CPU, in float32.
    """

    name: str
    parts: dict[str, LowRank] = field(repr=False)

    def __deepcopy__(self, memo: dict) -> StyleLoRA:
        return self  # a clone of a MODEL copies what its patches hold: once is enough

    @property
    def family(self) -> str:
        """The base it was trained for, from the width of the text; "" where nothing that reads it changes."""
        reads = (".attn2.to_k", ".attn2.to_v")
        widths = (p.down.shape[1] for path, p in self.parts.items() if path.endswith(reads))
        return family_of_width(next(widths, 0))

    def check(self, model: Any) -> None:
        """One sentence where a part has no such module in this MODEL, or one of another shape."""
        modules, here = dict(network(model).named_modules()), family(model)
        made_for = f" (it looks like one for {self.family})" if self.family not in ("", here) else ""
        mend = f"it was trained for another base{made_for}, load a LoRA for {here}"
        for path, part in self.parts.items():
            weight = getattr(modules.get(path), "weight", None)
            wanted = (part.up.shape[0], part.down.shape[1])
            if not isinstance(weight, Tensor):
                raise ValueError(
                    f"the LoRA {self.name!r} changes {path}, which this {here} model does not have: {mend}"
                )
            if tuple(weight.shape[:2]) != wanted:
                raise ValueError(
                    f"the LoRA {self.name!r} maps {wanted[1]} channels to {wanted[0]} at {path}, this {here} "
                    f"model {weight.shape[1]} to {weight.shape[0]}: {mend}"
                )


# -- writing ---------------------------------------------------------------------------------------


def save(lora: StyleLoRA, path: Path, naming: str, about: dict[str, Any] | None = None) -> None:
    """One safetensors file under kohya's names, "diffusers" or "sgm" (lora_names.naming)."""
    tensors: dict[str, Tensor] = {}
    for module, part in lora.parts.items():
        key = written(module, naming)
        tensors[f"{key}.lora_down.weight"] = part.down
        tensors[f"{key}.lora_up.weight"] = part.up
        tensors[f"{key}.alpha"] = torch.tensor(part.scale * len(part.down))
    first = next(iter(lora.parts.values()))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(len(first.down)),
        "ss_network_alpha": f"{first.scale * len(first.down):g}",
        "ss_output_name": lora.name,
        **{
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in (about or {}).items()
        },
    }
    if (base := _KOHYA_BASE.get(lora.family)) is not None:
        metadata |= {"ss_base_model_version": base, "ss_v2": str(base == "sd_v2")}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# -- reading ---------------------------------------------------------------------------------------


def load(path: Path) -> StyleLoRA:
    """A style LoRA from a file of any of the formats above; what is none is refused in words."""
    tensors, metadata = _read(path)
    found, unread = names_of(tensors)
    if not found or is_dora(tensors):
        raise ValueError(
            f"{path.name} is no LoRA for a Stable Diffusion UNet: {looks_like(tensors, metadata)}"
        )
    alphas = _alphas(path, metadata)
    parts, skipped = {}, list(unread)
    for name, keys in found.items():
        part = _part(path, name, keys, tensors, alphas)
        if part is None:
            skipped.append(keys["down"])
        else:
            parts[name.path] = part
    if not parts:
        raise ValueError(
            f"{path.name} has no part for the UNet's transformer blocks, and a style LoRA has no other"
        )
    if skipped:
        log.warning("%s: left out %d entries, %s", path.name, len(skipped), _summary(skipped))
    return StyleLoRA(path.name.removesuffix(path.suffix), parts)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    wrong = f"{path.name} cannot be read: it is damaged, or no file of weights"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                one_of_ours = bool(names_of(names)[0])  # a whole checkpoint is refused by its names alone
                tensors = {n: file.get_tensor(n) if one_of_ours else torch.empty(0) for n in names}
                return tensors, file.metadata() or {}
        read = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # damaged files: SafetensorError, whose class has moved between releases, unpickling and zip errors
        raise ValueError(wrong) from error
    if not isinstance(read, dict):
        raise ValueError(wrong)
    read = read.get("state_dict", read)
    return {k: v for k, v in read.items() if isinstance(v, Tensor)}, {}


def _part(
    path: Path, name: Name, keys: dict[str, str], tensors: dict[str, Tensor], alphas: Alphas
) -> LowRank | None:
    """One layer's pair; None for a convolution that looks around itself."""
    if "up" not in keys or "down" not in keys:
        missing = "up" if "up" not in keys else "down"
        raise ValueError(f"{path.name} is damaged: the {missing} matrix of {name.path} is missing")
    down, up = (tensors[keys[side]].detach().float() for side in ("down", "up"))
    if down.ndim == 4 and up.ndim == 4 and down.shape[2:] == up.shape[2:] == (1, 1):
        down, up = down[..., 0, 0], up[..., 0, 0]
    if down.ndim != 2 or up.ndim != 2 or "mid" in keys:
        return None
    if len(down) != up.shape[1]:
        raise ValueError(
            f"{path.name} is damaged: at {name.path} the down matrix has rank {len(down)}, the up matrix "
            f"{up.shape[1]}"
        )
    alpha = float(tensors[keys["alpha"]]) if "alpha" in keys else alphas.of(name, len(down))
    return LowRank(down.contiguous(), up.contiguous(), alpha / len(down))


@dataclass(frozen=True)
class Alphas:
    """What a PEFT configuration says where a file's tensors do not; without one, alpha is the rank."""

    alpha: float | None = None
    pattern: dict[str, float] = field(default_factory=dict)
    root: bool = False  # rank-stabilised: alpha / sqrt(rank)

    def of(self, name: Name, rank: int) -> float:
        by_module = (a for key, a in self.pattern.items() if name.written.endswith(key.replace(".", "_")))
        alpha = next(by_module, self.alpha)
        if alpha is None:
            return float(rank)
        return alpha * rank**0.5 if self.root else float(alpha)


def _alphas(path: Path, metadata: dict[str, str]) -> Alphas:
    """From the header that diffusers writes, or from PEFT's adapter_config.json beside its own file."""
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            every = json.loads(metadata["lora_adapter_metadata"])
            config = {k.removeprefix("unet."): v for k, v in every.items() if not k.startswith("text_")}
        elif path.name.startswith("adapter_model") and beside.is_file():
            config = json.loads(beside.read_text())
        else:
            return Alphas()
        alpha, root = config.get("lora_alpha"), bool(config.get("use_rslora"))
        return Alphas(alpha, dict(config.get("alpha_pattern") or {}), root)
    except (ValueError, AttributeError, OSError):
        log.warning("%s: its configuration cannot be read, the scale is taken as 1", path.name)
        return Alphas()


def _summary(keys: list[str]) -> str:
    text = sum("text_model" in k or k.startswith(("lora_te", "text_encoder")) for k in keys)
    words = [f"{text} of the text encoder"] if text else []
    if rest := [k for k in keys if "text_model" not in k and not k.startswith(("lora_te", "text_encoder"))]:
        words.append(f"{len(rest)} outside the UNet's transformer blocks ({rest[0]})")
    return " and ".join(words)
