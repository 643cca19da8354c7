"""SD1.5 and SDXL on simulated cards: ComfyUI's own UNets at full size, on tensors without data."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.patching.layers import pick_layers, recomputable
from reelbrush.nodes.distill.features import FeatureReader
from reelbrush.nodes.distill.optimize import References, distance, query_distance

from ..allocations import Allocations

pytestmark = pytest.mark.comfyui
GB, TIMESTEP = 1e9, 201
COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float16,
}
SD15 = {
    **COMMON,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
}
SDXL = {
    **COMMON,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_head_channels": 64,
    "num_heads": -1,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
}
SIDES = {"SD15": 64, "SDXL": 128}  # latents of 512x512 and 1024x1024 pixels


@contextmanager
def reading(family, recompute):
    """A reader on a UNet without data, patched as ComfyUI patches a loaded model."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models as supported
    import comfy.utils

    unet = {"SD15": SD15, "SDXL": SDXL}[family]
    config = getattr(supported, family)(unet)
    config.unet_config.update(unet)
    config.latent_format = getattr(comfy.latent_formats, family)()
    config.manual_cast_dtype = None
    eps = comfy.model_base.ModelType.EPS
    base_class = comfy.model_base.SDXL if family == "SDXL" else comfy.model_base.BaseModel
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        base = base_class(config, eps, device="cpu").train(False).requires_grad_(False)
    levels = comfy.model_base.model_sampling(config, eps)
    sigma = float(levels.sigma(torch.tensor(float(TIMESTEP))))
    levels.timestep = lambda sigma: torch.full((1,), float(TIMESTEP))
    base.model_sampling = levels
    cpu = torch.device("cpu")
    clone = host.differentiable(comfy.model_patcher.ModelPatcher(base, cpu, cpu))
    recomputation = host.Recomputation(clone, recomputable(clone, pick_layers(clone, "last 6")))
    recomputation.on = recompute
    for name, forward in clone.object_patches.items():
        comfy.utils.set_attr(base, name, forward)
    for module in base.diffusion_model.modules():
        if hasattr(module, "weight_function"):
            module.comfy_cast_weights = True
            module.weight_function = module.bias_function = [lambda weight: weight]
    text = torch.zeros(1, 77, unet["context_dim"])
    reader = FeatureReader(base, [[text, {"pooled_output": torch.zeros(1, 1280)}]], "last 6", recomputation)
    reader.sigma = lambda timestep: sigma
    with fake, host.gradients():
        yield reader


def weights_of(reader):
    return sum(p.nbytes for p in reader.base.diffusion_model.parameters())


def step(reader, side, limit=float("inf")):
    """One evaluation with style and content, and its gradient; the most bytes in use beside the weights."""
    z, style, content = (torch.zeros(1, 4, side, side) for _ in range(3))
    references = References(reader, style, content)
    with Allocations(limit) as seen:
        ideals, queries = references.style_at(TIMESTEP), references.content_at(TIMESTEP, range(1))
        leaf, loss = z.requires_grad_(), 0.0
        features = reader(leaf, TIMESTEP, "qo", grad=True)
        for layer, ideal, wanted in zip(features, ideals, queries, strict=True):
            q, out = layer.heads("q"), layer.heads("out")
            loss += distance(out, q, ideal[:2]) + 0.25 * query_distance(q, wanted)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    assert slope.shape == z.shape
    return seen.peak


def test_sdxl_at_1024_runs_on_12_gb_when_it_recomputes():
    """All weights on the card, in half precision."""
    with reading("SDXL", False) as reader:
        assert weights_of(reader) == pytest.approx(5.13 * GB, rel=0.01)
        with pytest.raises(torch.OutOfMemoryError):
            step(reader, 128, 12 * GB - weights_of(reader))
    with reading("SDXL", True) as reader:
        assert step(reader, 128, 12 * GB - weights_of(reader)) < 1.1 * GB


@pytest.mark.parametrize(
    ("family", "recompute", "most"),
    [("SD15", False, 2.41), ("SD15", True, 0.51), ("SDXL", False, 9.44), ("SDXL", True, 1.00)],
)
def test_the_numbers_of_the_notes_and_the_estimate_from_small_latents(family, recompute, most):
    side = SIDES[family]
    with reading(family, recompute) as reader:
        z = torch.zeros(1, 4, side, side)
        estimate = reader.graph_size(z, TIMESTEP)
        true = host.graph_bytes(lambda: reader(z.requires_grad_(), TIMESTEP, "qo", grad=True))
        assert estimate.fixed + estimate.per_pixel * side**2 == pytest.approx(true, rel=0.01)
        assert step(reader, side) == pytest.approx(most * GB, rel=0.01)
