"""StyA2K files: detected from their keys and shapes, loaded, converted, saved.

Two kinds are known: a folder with the official `latest_net_A2K.pth`, `latest_net_transform.pth`,
`latest_net_decoder.pth` and `vgg_normalised.pth`; and one safetensors
file from `reelbrush convert-stya2k` or from a training. Layer widths come from the weights. The rest (the
arithmetic, the attention of the training) is in the file's metadata. Files ending in .pth are read with
weights_only=True.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...kernels.all_to_key import Arithmetic
from ..common.files import replacing
from ..common.perceptual import VGG, conv_names, read_weights, vgg_layers
from ..common.weights import reading
from .modulated import ModulatedStyA2K
from .network import DECODER, OFFICIAL, StyA2K
from .small import SmallStyA2K

Weights = dict[str, Tensor]
# Layers whose outputs are a network's widths.
SMALL = ("up2", "down2", "down4", "down8", "down16")
MODULATED = ("detail", "content.to2", "content.to4", "content.to8")
OFFICIAL_FILES = {
    "A2K": "the 3_1 attention",
    "transform": "the 4_1 and 5_1 attention",
    "decoder": "the decoder",
}


def _renamed() -> dict[str, str]:
    """Official name -> ours, as prefixes without .weight and .bias."""
    names = {"A2K": "a2k3", "transform.attn_adain_4_1": "a2k4", "transform.attn_adain_5_1": "a2k5"}
    names |= {"transform.merge_conv": "merge", "decoder.decoder_layer_1.1": "first"}
    return names | {f"decoder.decoder_layer_2.{d[0]}": f"decoder.{i}" for i, d in enumerate(DECODER)}


def from_official(parts: dict[str, Weights], encoder: Weights) -> Weights:
    """The official files' tensors under our names; `parts` by file: A2K, transform, decoder."""
    flat = {f"{part}.{key}": value for part, weights in parts.items() for key, value in weights.items()}
    state: Weights = {}
    for key, value in flat.items():
        for old, new in _renamed().items():
            if key.startswith(old + "."):
                state[new + key[len(old) :]] = value
    indices = ["0", *conv_names(vgg_layers(), normalised=True)]
    for name, index in zip(("first", *(f"convs.{i}" for i in range(13))), indices, strict=True):
        for kind in ("weight", "bias"):
            if f"{index}.{kind}" not in encoder:
                raise ValueError(
                    f"the encoder is {looks_like(encoder)}, but the official decoder was trained with "
                    "vgg_normalised.pth and paints wrongly with any other: put that file into the folder"
                )
            state[f"encoder.{name}.{kind}"] = encoder[f"{index}.{kind}"]
    return {key: value.float().contiguous() for key, value in state.items()}


def looks_like(weights: Weights) -> str:
    """A description of what a file that is not a StyA2K model seems to be."""
    known = (
        ("decode8.", "a small StyA2K of an earlier version, trained with another layout"),
        ("sim_alpha", "the official StyA2K file for ReLU3_1 alone"),
        ("attn_adain_4_1", "the official StyA2K attention file alone"),
        ("decoder_layer_2", "the official StyA2K decoder alone"),
        ("features.34.", "torchvision's VGG-19"),
        ("features.28.", "a VGG of torchvision"),
        ("fire2/", "a SqueezeNet"),
        ("lora_", "a LoRA"),
        ("model.diffusion_model.", "a diffusion checkpoint"),
        ("first_stage_model.", "a diffusion checkpoint"),
        ("vgg_", "an AdaAttN-like network"),
    )
    for key, words in known:
        if any(key in name for name in weights):
            return words
    if {"0.weight", "42.weight"} <= weights.keys():
        return "vgg_normalised"
    some = ", ".join(sorted(weights)[:3]) or "no tensors"
    return f"something else ({some} ...)"


def identify(weights: Weights) -> str:
    """ "modulated", "small" or "paper", or a sentence about what was given instead."""
    if all(f"{name}.weight" in weights for name in (*MODULATED, "a2k8.q")):
        return "modulated"
    if all(f"{name}.weight" in weights for name in (*SMALL, "a2k8.q")):
        return "small"
    if "a2k3.q.weight" in weights and "decoder.7.weight" in weights and "encoder.convs.0.weight" in weights:
        return "paper"
    raise ValueError(
        f"this is no StyA2K model, it looks like {looks_like(weights)}: give a folder with the official "
        "latest_net_A2K.pth, latest_net_transform.pth, latest_net_decoder.pth and vgg_normalised.pth, "
        "a file made by `reelbrush convert-stya2k`, or one trained here"
    )


def _widths(weights: Weights, layers: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(weights[f"{name}.weight"].shape[0]) for name in layers)


def build(weights: Weights, metadata: dict[str, str] | None = None) -> nn.Module:
    """The network for these weights, in float32."""
    about = json.loads((metadata or {}).get("stya2k", "{}"))
    kind = about.get("attention", "all-to-key")
    family = identify(weights)
    if family == "modulated":
        network: nn.Module = ModulatedStyA2K(_widths(weights, MODULATED), kind)
    elif family == "small":
        network = SmallStyA2K(_widths(weights, SMALL), kind, halving=about.get("halving", "plain"))
    else:
        how = tuple(Arithmetic(**a) for a in about["arithmetic"]) if "arithmetic" in about else OFFICIAL
        network = StyA2K(VGG("encoder.first.weight" in weights), how=how, kind=kind)
    try:
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(
            "the StyA2K weights do not fit together, some are missing or have other shapes: "
            "download the file again"
        ) from error
    return network.requires_grad_(False).train(False)


def _folder(folder: Path) -> Weights:
    parts, encoder = {}, None
    for path in sorted([*folder.glob("*.pth"), *folder.glob("*.pt"), *folder.glob("*.safetensors")]):
        part = next((p for p in OFFICIAL_FILES if path.stem.endswith(f"net_{p}")), None)
        if part:
            parts[part] = read_weights(path)
        elif "vgg" in path.stem.lower() and (encoder is None or "normalised" in path.stem):
            encoder = read_weights(path)
    missing = [f"*_net_{p}.pth ({words})" for p, words in OFFICIAL_FILES.items() if p not in parts]
    if encoder is None:
        missing.append("vgg_normalised.pth (the encoder)")
    if missing:
        raise ValueError(f"the folder {folder.name!r} lacks {', '.join(missing)}")
    return from_official(parts, encoder)


def load(path: str | Path) -> nn.Module:
    """A network from a file or a folder of official files."""
    path = Path(path)
    with reading(path, "StyA2K model"):
        if path.is_dir():
            return build(_folder(path))
        weights, metadata = read_weights(path), {}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as f:
                metadata = f.metadata() or {}
        return build(weights, metadata)


def save(network: nn.Module, path: Path, *, half: bool = True, about: dict | None = None) -> None:
    """Write one safetensors file that `load` reads."""
    facts: dict = {"attention": network.kind, **(about or {})}
    if isinstance(network, StyA2K):
        facts["arithmetic"] = [asdict(h) for h in network.how]
    if isinstance(network, SmallStyA2K):
        facts["halving"] = network.halving
    dtype = torch.float16 if half else torch.float32
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"stya2k": json.dumps(facts)})
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
