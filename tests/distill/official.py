"""The official loops (xugao97/AttentionDistillation) on weights that ComfyUI has too, for parity and speed.

What they use of a diffusers pipeline is stood in for; the loops, losses and attention control are their own.
"""

import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_checkpoint": False,
    "legacy": False,
}


def random_weights(network):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(network.named_parameters()):
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            new = noise * 0.7 / p[0].numel() ** 0.5 if p.ndim > 1 else noise * 0.1 + name.endswith("weight")
            p.copy_(new)


def comfy_model(dtype, changes=None):
    """A MODEL of a real ComfyUI with random weights: SD1.5's layout, 32 channels."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({**CONFIG, **(changes or {})})
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device="cpu")
    base.diffusion_model.to(dtype)
    random_weights(base.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def diffusers_unet(model):
    """The same weights as a diffusers UNet."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    config = model.model.model_config.unet_config
    unet = UNet2DConditionModel(
        block_out_channels=tuple(config["model_channels"] * m for m in config["channel_mult"]),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=config["num_heads"],
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).to(model.model.get_dtype())
    weights = model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(config)
    unet.load_state_dict({name: weights[names[name]] for name in unet.state_dict()})
    return unet.requires_grad_(False)


@contextmanager
def pipeline_module():
    """The official pipeline module; its `utils` and `losses` would hide ComfyUI's modules of that name."""
    before = {name: sys.modules.pop(name, None) for name in ("utils", "losses")}
    try:
        for name in ("losses", "utils", "pipeline_sd"):
            spec = importlib.util.spec_from_file_location(name, Path(os.environ["AD_PATH"]) / f"{name}.py")
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        yield module
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@contextmanager
def losses_of(official):
    """The loss that the official loop shows on its progress bar."""
    seen, bar = [], official.tqdm

    class Bar(list):
        def set_postfix(self, loss, **_):
            seen.append(loss)

    official.tqdm = lambda steps, **_: Bar(steps)
    try:
        yield seen
    finally:
        official.tqdm = bar


@contextmanager
def double_stays_double():
    """The official loop casts its latents with `.float()`; for a run in float64 that must not happen."""
    single = torch.Tensor.float
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else single(self)
    try:
        yield
    finally:
        torch.Tensor.float = single


def pipeline(official, unet, latents, null):
    """What `optimize` and `sample` use of a diffusers pipeline, without text encoder and VAE."""
    self = SimpleNamespace(
        unet=unet,
        classifier=unet,
        scheduler=scheduler(),
        device=torch.device("cpu"),
        _execution_device=torch.device("cpu"),
        vae_scale_factor=8,
        cross_attention_kwargs=None,
        clip_skip=None,
        guidance_scale=1.5,
        init=lambda *_: None,
        enable_tiling=lambda *_: None,
        image2latent=lambda name: latents[name],
        latent2image=lambda z: z,
        maybe_free_model_hooks=lambda: None,
        encode_prompt=lambda prompt, *_, **__: (null[prompt], null[""]),
    )
    cls = official.ADPipeline
    for name in ("extract_feature", "AD"):
        setattr(self, name, getattr(cls, name).__get__(self))
    return self
