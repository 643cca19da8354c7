"""A style LoRA: low-rank changes of weights, by ComfyUI's module paths below `diffusion_model`.

    lora = load(path)             # kohya, diffusers, PEFT, attention-processor and ComfyUI files
    lora.check(model)             # an error where it was trained for another base
    lora.weights["input_blocks.1.1.transformer_blocks.0.attn1.to_q"]      # down, up, scale
    save(lora, path, naming)      # kohya's names, which core loaders and other tools read

names.py translates the names of the weights in a file. Everything except low-rank changes of linear layers in
a UNet's transformer blocks (text encoders, residual blocks, biases) is left out with a warning in the log.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import host
from ...common.files import replacing
from ...common.weights import check_finite, reading
from ..patching.layers import family, family_of_width, network
from .names import LayerName, is_dora, kohya_name, looks_like, names_of

KIND = "loras"
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_KOHYA_BASE = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@dataclass(frozen=True, eq=False)
class LowRank:
    """One layer's change: the weight [out, in] becomes weight + up @ down * scale."""

    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scale: float = 1.0  # alpha / r


@dataclass(eq=False)
class StyleLoRA:
    """A LoRA from Train Style LoRA or Load Style LoRA (REELBRUSH_LORA).

    The keys of `weights` are module paths, "input_blocks.1.1.transformer_blocks.0.attn1.to_q" (to_k, to_v,
    to_out.0; attn1 and attn2). Files of other trainers may also have ff.net.0.proj, ff.net.2, and a
    transformer's proj_in and proj_out, which are 1x1 convolutions on SD1.x. Tensors are float32, on the CPU.
    """

    name: str
    weights: dict[str, LowRank] = field(repr=False)

    def __deepcopy__(self, memo: dict) -> StyleLoRA:
        return self  # ComfyUI deep-copies the patches of a MODEL that it clones

    @property
    def family(self) -> str:
        """The base it was trained for, from the width of the text embedding; "" where no weight shows it."""
        from_text = (".attn2.to_k", ".attn2.to_v")
        widths = (w.down.shape[1] for path, w in self.weights.items() if path.endswith(from_text))
        return family_of_width(next(widths, 0))

    def check(self, model: Any) -> None:
        """Raise an error where this MODEL lacks a module of the LoRA, or has it with another shape."""
        modules, here = dict(network(model).named_modules()), family(model)
        made_for = f" (it looks like one for {self.family})" if self.family not in ("", here) else ""
        advice = f"it was trained for another base{made_for}, load a LoRA for {here}"
        for path, low_rank in self.weights.items():
            weight = getattr(modules.get(path), "weight", None)
            shape = (low_rank.up.shape[0], low_rank.down.shape[1])
            if not isinstance(weight, Tensor):
                raise ValueError(
                    f"the LoRA {self.name!r} changes {path}, which this {here} model does not have: {advice}"
                )
            if tuple(weight.shape[:2]) != shape:
                raise ValueError(
                    f"the LoRA {self.name!r} maps {shape[1]} channels to {shape[0]} at {path}, this {here} "
                    f"model {weight.shape[1]} to {weight.shape[0]}: {advice}"
                )


# -- writing ---------------------------------------------------------------------------------------


def save(lora: StyleLoRA, path: Path, naming: str, about: dict[str, Any] | None = None) -> None:
    """Write one safetensors file with kohya's names, in the variant "diffusers" or "sgm" (names.naming)."""
    tensors: dict[str, Tensor] = {}
    for module, low_rank in lora.weights.items():
        key = kohya_name(module, naming)
        tensors[f"{key}.lora_down.weight"] = low_rank.down
        tensors[f"{key}.lora_up.weight"] = low_rank.up
        tensors[f"{key}.alpha"] = torch.tensor(low_rank.scale * len(low_rank.down))
    first = next(iter(lora.weights.values()))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(len(first.down)),
        "ss_network_alpha": f"{first.scale * len(first.down):g}",
        "ss_output_name": lora.name,
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in (about or {}).items()},
    }
    if (base := _KOHYA_BASE.get(lora.family)) is not None:
        metadata |= {"ss_base_model_version": base, "ss_v2": str(base == "sd_v2")}
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)


# -- reading ---------------------------------------------------------------------------------------


def load(path: Path) -> StyleLoRA:
    """Read a LoRA file in any of the formats above; any other file raises an error."""
    with reading(path, "LoRA file"):
        return _load(path)


def _load(path: Path) -> StyleLoRA:
    tensors, metadata = _read(path)
    check_finite(path, tensors)
    layers, unknown = names_of(tensors)
    if not layers or is_dora(tensors):
        raise ValueError(
            f"{path.name} is not a LoRA for a Stable Diffusion UNet: {looks_like(tensors, metadata)}"
        )
    alphas = _alphas(path, metadata)
    weights, skipped = {}, list(unknown)
    for name, keys in layers.items():
        low_rank = _low_rank(path, name, keys, tensors, alphas)
        if low_rank is None:
            skipped.append(keys["down"])
        else:
            weights[name.path] = low_rank
    if not weights:
        raise ValueError(
            f"{path.name} has no weights for the UNet's transformer blocks: choose a LoRA that changes them"
        )
    if skipped:
        host.log.warning("%s: left out %d entries, %s", path.name, len(skipped), _summary(skipped))
    return StyleLoRA(path.name.removesuffix(path.suffix), weights)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    wrong = f"{path.name} cannot be read: it is damaged, or not a file of weights"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                is_lora = bool(names_of(names)[0])  # a whole checkpoint is rejected by its names alone
                tensors = {n: file.get_tensor(n) if is_lora else torch.empty(0) for n in names}
                return tensors, file.metadata() or {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # damaged files: SafetensorError, whose class has moved between releases, unpickling and zip errors
        raise ValueError(wrong) from error
    if not isinstance(content, dict):
        raise ValueError(wrong)
    content = content.get("state_dict", content)
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}, {}


def _low_rank(
    path: Path, name: LayerName, keys: dict[str, str], tensors: dict[str, Tensor], alphas: Alphas
) -> LowRank | None:
    """One layer's pair of matrices; None for a convolution larger than 1x1."""
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
            f"{path.name} is damaged: the down matrix of {name.path} has rank {len(down)}, the up matrix "
            f"{up.shape[1]}"
        )
    alpha = float(tensors[keys["alpha"]]) if "alpha" in keys else alphas.of(name, len(down))
    return LowRank(down.contiguous(), up.contiguous(), alpha / len(down))


@dataclass(frozen=True)
class Alphas:
    """The alphas of a PEFT configuration, for files without alpha tensors; without one, alpha is the rank."""

    alpha: float | None = None
    pattern: dict[str, float] = field(default_factory=dict)
    root: bool = False  # rank-stabilized: alpha / sqrt(rank)

    def of(self, name: LayerName, rank: int) -> float:
        by_module = (a for key, a in self.pattern.items() if name.in_file.endswith(key.replace(".", "_")))
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
        host.log.warning("%s: its configuration cannot be read, the scale is set to 1", path.name)
        return Alphas()


def _summary(keys: list[str]) -> str:
    of_text = [k for k in keys if "text_model" in k or k.startswith(("lora_te", "text_encoder"))]
    rest = [k for k in keys if k not in of_text]
    words = [f"{len(of_text)} of the text encoder"] if of_text else []
    if rest:
        words.append(f"{len(rest)} outside the UNet's transformer blocks ({rest[0]})")
    return " and ".join(words)
