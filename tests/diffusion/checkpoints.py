"""Checkpoints with random weights that ComfyUI's own loaders take: for end-to-end runs without public files.

    COMFYUI_PATH=... python tests/diffusion/checkpoints.py sd15 models/checkpoints/sd15_random.safetensors
                                                           sdxl | controlnet | lora

Layouts are Stable Diffusion's with fewer channels at the coarse levels (and for SDXL the finest level only),
so that loaders detect the family and block addresses are the real ones: 111 M parameters in the UNet of
`sd15`, 283 M in that of `sdxl`; text encoders and VAE have their full size. `controlnet` and `lora` are for
`sd15`. Weights have std 0.7/sqrt(fan-in): outputs neither vanish nor explode. What they paint is noise.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15 = {
    **COMMON,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1] * 4,
    "num_heads": 8,
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_middle": 1,
    "context_dim": 768,
}
SDXL = {
    **COMMON,
    "num_res_blocks": [2] * 3,
    "channel_mult": [1] * 3,
    "num_head_channels": 64,
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
DECODER = {"sd15": [1] * 9 + [0] * 3, "sdxl": [0] * 3 + [2] * 3 + [10] * 3}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def filled(module: torch.nn.Module, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights, in half precision, of a module that may be on the meta device.

    A ControlNet's hint passes through eight convolutions before it meets the picture: they get twice
    the spread, or nothing of it would arrive.
    """
    found = {}
    for name, p in module.state_dict().items():
        if not p.is_floating_point():
            continue
        if p.ndim > 1:
            gain = 1.6 if "input_hint_block" in name else 0.7
            weight = torch.randn(p.shape, generator=generator).mul_(gain / p[0].numel() ** 0.5)
        else:
            weight = torch.full(p.shape, float(name.endswith("weight")))
        found[prefix + name] = weight.half()
    return found


def made(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """One file's tensors."""
    import comfy.ops
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models
    from comfy.cldm.cldm import ControlNet
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    g = torch.Generator().manual_seed(seed)
    where = {"device": "meta", "dtype": torch.float16}
    operations = {"operations": comfy.ops.disable_weight_init}
    config = SDXL if kind == "sdxl" else SD15
    with torch.device("meta"):
        control = ControlNet(**config, hint_channels=3, **where, **operations)
        output = DECODER["sdxl" if kind == "sdxl" else "sd15"]
        unet = UNetModel(**config, out_channels=4, transformer_depth_output=output, **where, **operations)
        vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
        if kind == "sdxl":
            both = comfy.sdxl_clip.SDXLClipModel(**where)
            texts = [("clip_l.", both.clip_l), ("clip_g.", both.clip_g)]
        else:
            texts = [("cond_stage_model.transformer.", comfy.sd1_clip.SDClipModel(**where).transformer)]
    if kind == "controlnet":
        return filled(control, "control_model.", g)
    if kind == "lora":
        return low_rank(unet, g)
    clip: dict[str, torch.Tensor] = {}
    for prefix, module in texts:
        clip |= filled(module, prefix, g)
    if kind == "sdxl":
        clip = comfy.supported_models.SDXL(dict(config)).process_clip_state_dict_for_saving(clip)
    return filled(unet, "model.diffusion_model.", g) | clip | filled(vae, "first_stage_model.", g)


def low_rank(unet: torch.nn.Module, g: torch.Generator) -> dict[str, torch.Tensor]:
    """A LoRA of rank 4 on every attention's queries and values, under kohya's names."""
    found = {}
    for name, p in unet.state_dict().items():
        if name.endswith(("to_q.weight", "to_v.weight")):
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            found[f"{key}.lora_down.weight"] = torch.randn(4, p.shape[1], generator=g).half() * 0.05
            found[f"{key}.lora_up.weight"] = torch.randn(p.shape[0], 4, generator=g).half() * 0.05
            found[f"{key}.alpha"] = torch.tensor(4.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["sd15", "sdxl", "controlnet", "lora"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from safetensors.torch import save_file

    given.file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in made(given.kind, given.seed).items()}, given.file)


if __name__ == "__main__":
    main()
