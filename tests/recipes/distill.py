"""How to run the Attention Distillation nodes in the every-node test."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from every_node import Recipe, picture
from torch import nn

TESTS = Path(__file__).resolve().parents[1]
for name, folder in (
    ("tests", TESTS),
    ("tests.diffusion", TESTS / "diffusion"),
    ("tests.distill", TESTS / "distill"),
):
    package = sys.modules.setdefault(name, ModuleType(name))  # where pytest has not made them yet
    package.__path__ = [str(folder)]

from reelbrush.nodes.distill.seamless import seamless_model  # noqa: E402
from tests.distill import small  # noqa: E402

MODEL = small.model()
NULL = small.null(MODEL)


class Patcher:
    """Stands in for the ModelPatcher around a VAE's network."""

    stand_in = True

    def __init__(self, model, load_device="cpu", offload_device="cpu"):
        self.model, self.object_patches = model, {}
        self.load_device, self.offload_device = load_device, offload_device

    def clone(self):
        return Patcher(self.model)

    def add_object_patch(self, name, value):
        self.object_patches[name] = value


class Coder(nn.Module):
    """An autoencoder, eight times smaller."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 8, 8)
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 3, 3, padding=1))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def vae():
    torch.manual_seed(0)
    network = Coder()
    return SimpleNamespace(
        first_stage_model=network,
        patcher=Patcher(network),
        process_input=lambda images: images * 2 - 1,
        downscale_ratio=8,
        upscale_ratio=8,
        vae_dtype=torch.float32,
    )


def latent(frames, size, seed=0):
    width, height = size
    return {"samples": small.latents(frames, seed, (height // 8, width // 8)) * 3}


def optimize(frames, size):
    return dict(
        model=MODEL,
        null=NULL,
        style=latent(1, (64, 48), 1),
        content=latent(frames, size),
        width=64,
        height=64,
        steps=2,
        learning_rate=0.05,
        content_weight=0.25,
        attention_scale=1.0,
        layers="last 6",
        warm_steps=1,
        temporal_weight=0.0,
        seed=0,
        frames_per_call=2,
    )


def guide(frames, size):
    return dict(
        style=latent(1, size),
        null=NULL,
        iterations=1,
        learning_rate=0.015,
        adain=True,
        content_weight=0.0,
        layers="last 6",
        attention_scale=1.0,
        start_percent=0.0,
        end_percent=1.0,
        seed=0,
    )


def expansion(frames, size):
    return dict(
        model=MODEL,
        null=NULL,
        source=latent(1, (64, 64)),
        width=96,
        height=64,
        steps=1,
        iterations=1,
        learning_rate=0.05,
        window=64,
        overlap=32,
        seamless="none",
        seed=0,
        windows_per_call=2,
    )


def labels(*colours):
    out = torch.zeros(1, 16, 24, 3)
    for i, colour in enumerate(colours):
        out[:, :, i * 24 // len(colours) :] = torch.tensor(colour)
    return out


RED, BLUE, GREEN = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
SIZES = ((64, 96), (88, 64))
RECIPES = {
    "ReelBrushADOptimize": Recipe(
        optimize,
        frames=0,
        off=(dict(steps=0), "content", 0),
        wrong=[
            (dict(style={"samples": torch.zeros(1, 16, 4, 4)}), "16 channels"),
            (dict(style={"samples": torch.zeros(1, 4, 1, 4, 4)}), "image VAE"),
            (dict(layers="sixth"), "names no layers"),
            (dict(target_mask=torch.ones(1, 8, 8)), "style_mask is missing"),
            (dict(style_mask=torch.ones(1, 8, 8), target_mask=torch.zeros(1, 8, 8)), "does not have"),
            (dict(temporal_weight=1.0), "connect a flow"),
            (dict(start=latent(2, (40, 40))), "content and start differ"),
            (dict(batch_size=2), "set it to 1"),
            (dict(style_weights="1, 2"), "2 weights for 1 style"),
        ],
        sizes=SIZES,
        counts=(1, 3),
    ),
    "ReelBrushADSampler": Recipe(
        guide,
        wrong=[(dict(style={"samples": torch.zeros(1, 4, 1, 4, 4)}), "image VAE")],
        sizes=SIZES,
        needs="comfyui",
    ),
    "ReelBrushTextureInit": Recipe(
        lambda n, size: dict(
            source=picture(1, size), source_labels=labels(RED, BLUE), target_labels=labels(BLUE, RED), seed=0
        ),
        wrong=[(dict(target_labels=labels(RED, GREEN)), "#00ff00")],
    ),
    "ReelBrushTextureExpand": Recipe(
        expansion,
        wrong=[
            (dict(overlap=64), "smaller than the window"),
            (dict(source={"samples": torch.zeros(1, 16, 4, 4)}), "16 channels"),
            (dict(model=seamless_model(MODEL, "x")), "is from Seamless Tiling"),
        ],
        sizes=SIZES[:1],
        counts=(1,),
    ),
    "ReelBrushSeamless": Recipe(
        lambda n, size: dict(model=MODEL, vae=vae(), axes="both"),
        off=(dict(axes="none"), "model", 0),
        wrong=[(dict(model=SimpleNamespace(model=nn.Linear(1, 1))), "not a Stable Diffusion")],
    ),
    "ReelBrushTuneVAE": Recipe(
        lambda n, size: dict(vae=vae(), image=picture(n, size), steps=2, learning_rate=1e-3),
        off=(dict(steps=0), "vae", 0),
        wrong=[(dict(image=picture(1, (7, 40))), "at least 8x8")],
    ),
}
