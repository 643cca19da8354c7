"""Names of weights in LoRA files: ComfyUI's module paths from kohya's, diffusers' and PEFT's names.

One layer in the different formats:

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight     kohya, SD1 and 2
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight               kohya, SDXL
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight             PEFT, diffusers
    base_model.model.down_blocks.0.attentions.0. ... .to_q.lora_A.default.weight              PEFT alone
    down_blocks.0.attentions.0. ... .attn1.processor.to_q_lora.down.weight                    older diffusers
    diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight         ComfyUI

Dots and underscores are read as the same. Every Stable Diffusion (1.x, 2.x, XL and its refiner) has two
residual blocks per level. So diffusers' numbers can be converted to ComfyUI's without the model: attention j
of down block i is in input block 3i + j + 1, of up block i in output block 3i + j.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..patching.layers import network

_SIDES = (  # the end of a key, and the matrix that it names
    (r"\.lora_down(?:\.default)?\.weight", "down"),
    (r"\.lora_up(?:\.default)?\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_A(?:\.[A-Za-z]\w*)?\.weight", "down"),
    (r"\.lora_B(?:\.[A-Za-z]\w*)?\.weight", "up"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", "down"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
)
_PREFIX = re.compile(r"(?:base_model_model_|lora_unet_|lycoris_|unet_|model_|diffusion_model_)+")
_OWNER = re.compile(
    r"(?:(down|up)_blocks_(\d+)_attentions_(\d+)|mid_block_attentions_0"
    r"|(input|output)_blocks_(\d+)_1|middle_block_1)_(.+)"
)
_INNER = {
    **{f"attn{n}_to_{p}": f"attn{n}.to_{p}" for n in (1, 2) for p in "qkv"},
    **{f"attn{n}_to_out{end}": f"attn{n}.to_out.0" for n in (1, 2) for end in ("", "_0")},
    "ff_net_0_proj": "ff.net.0.proj",
    "ff_net_2": "ff.net.2",
}
_SGM = re.compile(r"(input|output)_blocks\.(\d+)\.1\.(.+)|middle_block\.1\.(.+)")


@dataclass(frozen=True)
class LayerName:
    """A layer: ComfyUI's path, and its name in the file with underscores only. Equal if the path is equal."""

    path: str
    in_file: str = field(compare=False)


def path_of(in_file: str) -> str | None:
    """ComfyUI's path of a layer with this name in a file; None for other layers than a transformer's."""
    plain = _plain(in_file)
    match = _OWNER.fullmatch(_PREFIX.sub("", plain, count=1) if _PREFIX.match(plain) else plain)
    if match is None:
        return None
    side, level, index, half, number, rest = match.groups()
    if side:
        place = 3 * int(level) + int(index) + (side == "down")
        block = f"{'input' if side == 'down' else 'output'}_blocks.{place}.1"
    else:
        block = f"{half}_blocks.{number}.1" if half else "middle_block.1"
    if rest in ("proj_in", "proj_out"):
        return f"{block}.{rest}"
    inner = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", rest)
    if inner is None or inner[2] not in _INNER:
        return None
    return f"{block}.transformer_blocks.{inner[1]}.{_INNER[inner[2]]}"


def _plain(in_file: str) -> str:
    return in_file.replace(".", "_").replace("_processor_", "_")


def names_of(keys: Iterable[str]) -> tuple[dict[LayerName, dict[str, str]], list[str]]:
    """The keys of each layer by matrix ("down", "up", "alpha", "mid"), and all other keys."""
    layers: dict[LayerName, dict[str, str]] = {}
    rest: list[str] = []
    for key in keys:
        for ending, side in _SIDES:
            match = re.fullmatch(rf"(.+?){ending}", key)
            path = path_of(match[1]) if match else None
            if path is not None:
                layers.setdefault(LayerName(path, _plain(match[1])), {})[side] = key
                break
        else:
            rest.append(key)
    return {name: sides for name, sides in layers.items() if {"down", "up"} & sides.keys()}, rest


def naming(model: Any) -> str:
    """The variant of kohya's names for this MODEL: "sgm" for SDXL, "diffusers" for SD1.x and SD2.x.

    A network that does not have two residual blocks per level only has "sgm" names.
    """
    net = network(model)
    standard = len(net.input_blocks) == len(net.output_blocks) and len(net.input_blocks) % 3 == 0
    deep = any(".transformer_blocks.1." in name for name, _ in net.named_modules())
    return "diffusers" if standard and not deep and len(net.input_blocks) == 12 else "sgm"


def kohya_name(path: str, naming: str) -> str:
    """Kohya's key of a layer, without the matrix."""
    if naming == "sgm":
        return f"lora_unet_{path}".replace(".", "_")
    match = _SGM.fullmatch(path)
    if match is None:
        raise ValueError(f"{path} is not a layer of a spatial transformer")
    half, number, rest, middle = match.groups()
    if middle:
        block, rest = "mid_block.attentions.0", middle
    else:
        level, index = divmod(int(number) - (half == "input"), 3)
        block = f"{'down' if half == 'input' else 'up'}_blocks.{level}.attentions.{index}"
    return f"lora_unet_{block}.{rest}".replace(".", "_")


# -- other kinds of files ---------------------------------------------------------------------------

_DORA = r"\.(dora_scale|lora_magnitude_vector)(\.|$)"
_KINDS = (
    (_DORA, "a DoRA, which also scales weights: core Load LoRA reads it"),
    (r"\.(hada_w1_a|hada_w2_a)$", "a LoHa (LyCORIS): core Load LoRA reads it"),
    (r"\.(lokr_w1|lokr_w1_a)$", "a LoKr (LyCORIS): core Load LoRA reads it"),
    (r"\.(oft_blocks|oft_diag|boft_blocks)$", "an OFT (LyCORIS): core Load LoRA reads it"),
    (r"motion_modules", "a motion module or motion LoRA of AnimateDiff"),
    (r"(^|\.)(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"^(control_model\.|input_hint_block|controlnet_)", "a ControlNet"),
    (
        r"(^|[._])(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks|"
        r"blocks[._]\d+[._](self|cross)_attn|layers[._]\d+[._]attention).*lora",
        "a LoRA for a transformer model (Flux, SD3, Wan, ...): the style nodes work on SD1.x, SD2.x and SDXL",
    ),
    (
        r"^(lora_te|text_encoder|text_model).*(lora|alpha)",
        "a LoRA of a text encoder alone: core Load LoRA reads it",
    ),
    (r"lora", "a LoRA for an unknown model"),
    (
        r"^(model\.diffusion_model|cond_stage_model|first_stage_model)\.",
        "a whole checkpoint: use Load Checkpoint",
    ),
    (r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|diffusion_model)\.", "a whole UNet"),
    (r"^(encoder|decoder)\.", "a VAE"),
    (r"^(emb_params|string_to_param|clip_l|clip_g)$", "a textual inversion embedding"),
    (r"^(text_model|transformer)\.", "a text encoder or a transformer model"),
)


def is_dora(keys: Iterable[str]) -> bool:
    """Whether a file has a DoRA, which does more than its low-rank matrices."""
    return any(re.search(_DORA, key) for key in keys)


def looks_like(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A description of a file that is not a LoRA for a UNet, for an error message."""
    if "format" in metadata and metadata["format"].startswith("reelbrush"):
        return f"it is a {metadata['format'].removesuffix(' 1')} file"
    if not tensors:
        return "it contains no weights"
    for pattern, words in _KINDS:
        if any(re.search(pattern, key) for key in tensors):
            return f"it looks like {words}"
    return f"all its weights are unknown, the first one is {next(iter(tensors))!r}"
