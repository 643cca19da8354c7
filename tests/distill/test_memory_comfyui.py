"""SDXL at 1024x1024 on a simulated card of 12 GB: ComfyUI's own UNet, on tensors without data."""

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
SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
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
    "use_spatial_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "dtype": torch.float16,
}


@pytest.fixture(scope="module")
def reader():
    """A reader on SDXL without data, patched as ComfyUI patches a loaded model. Made within the fake mode."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models as supported
    import comfy.utils

    config = supported.SDXL(SDXL)
    config.unet_config.update(SDXL)
    config.latent_format = comfy.latent_formats.SDXL()
    config.manual_cast_dtype = None
    eps = comfy.model_base.ModelType.EPS
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        base = comfy.model_base.SDXL(config, eps, device="cpu").train(False).requires_grad_(False)
    levels = comfy.model_base.model_sampling(config, eps)
    sigma = float(levels.sigma(torch.tensor(float(TIMESTEP))))
    levels.timestep = lambda sigma: torch.full((1,), float(TIMESTEP))
    base.model_sampling = levels
    cpu = torch.device("cpu")
    clone = host.differentiable(comfy.model_patcher.ModelPatcher(base, cpu, cpu))
    recomputation = host.Recomputation(clone, recomputable(clone, pick_layers(clone, "last 6")))
    for name, forward in clone.object_patches.items():
        comfy.utils.set_attr(base, name, forward)
    for module in base.diffusion_model.modules():
        if hasattr(module, "weight_function"):
            module.comfy_cast_weights = True
            module.weight_function = module.bias_function = [lambda weight: weight]
    null = [[torch.zeros(1, 77, 2048), {"pooled_output": torch.zeros(1, 1280)}]]
    made = FeatureReader(base, null, "last 6", recomputation)
    made.sigma = lambda timestep: sigma
    with fake, host.gradients():
        yield made


def step(reader, limit):
    """One evaluation with style and content, and its gradient; the most bytes in use."""
    z, style, content = (torch.zeros(1, 4, 128, 128) for _ in range(3))
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


def test_sdxl_at_1024_runs_on_12_gb_when_it_recomputes(reader):
    weights = sum(p.nbytes for p in reader.base.diffusion_model.parameters())
    assert weights == pytest.approx(5.13 * GB, rel=0.01)  # half precision, all on the card
    room = 12 * GB - weights
    reader.recomputation.on = False
    with pytest.raises(torch.OutOfMemoryError):
        step(reader, room)
    reader.recomputation.on = True
    assert step(reader, room) < 1.1 * GB


@pytest.mark.parametrize(("recompute", "size"), [(False, 9.25), (True, 0.74)])
def test_the_numbers_of_the_notes(reader, recompute, size):
    """What the notes and help pages say; estimated from small latents and counted at full size."""
    reader.recomputation.on = recompute
    z = torch.zeros(1, 4, 128, 128)
    estimate = reader.graph_size(z, TIMESTEP)
    true = host.graph_bytes(lambda: reader(z.requires_grad_(), TIMESTEP, "qo", grad=True))
    assert estimate.fixed + estimate.per_pixel * 128 * 128 == pytest.approx(true, rel=0.01)
    assert true == pytest.approx(size * GB, rel=0.01)
