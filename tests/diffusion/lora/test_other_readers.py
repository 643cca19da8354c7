"""LoRA files between programs: core ComfyUI, diffusers and PEFT write what we read and read what we write."""

from functools import cache

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.diffusion.lora import train as lora_train
from reelbrush.nodes.diffusion.nodes_lora import LoadStyleLoRA, TrainStyleLoRA

from .. import tiny
from ..lora_tools import apply, change_of, random_lora

pytestmark = pytest.mark.comfyui


@cache
def unet(layout="sd15"):
    with torch.inference_mode():
        return tiny.comfy_model(layout)


def predicted(model, sigma=3.0, seed=0):
    """One evaluation through the guider, as a sampler does it."""
    g = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 4, 16, 16, generator=g) * 5
    one = lambda denoise, x, sigmas: denoise(x, sigmas[0])  # noqa: E731
    with torch.inference_mode():
        return host.sample(model, one, latent, torch.tensor([sigma, 0.0]), tiny.conditioning(model)).clone()


def relative(a, b):
    return float((a - b).norm() / b.norm())


# -- core ComfyUI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["sd15", "sd21", "sdxl"])
def test_a_trained_lora_through_the_core_loader_is_ours(layout, home):
    """Trained, saved, listed by core, loaded by core LoraLoaderModelOnly; and by our branches."""
    import folder_paths

    import nodes

    model, name = unet(layout), f"monet-{layout}"
    g = torch.Generator().manual_seed(3)
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=g) * 4}
    with torch.inference_mode():
        TrainStyleLoRA().train(model, latent, tiny.conditioning(model), 4, 8, 5e-2, "q,k,v,out", 0, name)
        listed = folder_paths.get_filename_list("loras")
        assert f"{name}.safetensors" in listed
        assert not [n for n in listed if n.startswith(".")]  # the training's state is no LoRA
        (core,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, f"{name}.safetensors", 0.8)
        (loaded,) = LoadStyleLoRA().load(f"{name}.safetensors")
        ours = apply(model, loaded, 0.8)
    assert len(core.patches) == len(loaded.weights) > 30  # core found a place for every part
    base, theirs = predicted(model), predicted(core)
    assert relative(predicted(ours), theirs) < 1e-4
    assert relative(base, theirs) > 50 * 1e-4
    assert torch.equal(predicted(model), base)


def test_what_core_trains_and_saves_is_read(tmp_path):
    """Core's adapters, named as its Train LoRA names them."""
    from comfy.weight_adapter import adapter_maps
    from safetensors.torch import save_file

    model, tensors, wanted = unet("mini"), {}, {}
    g = torch.Generator().manual_seed(0)
    for name, module in model.model.named_modules():
        if not hasattr(module, "weight_function") or module.weight is None or module.weight.ndim < 2:
            continue
        adapter = adapter_maps["LoRA"].create_train(module.weight, rank=2, alpha=1.0)
        adapter.lora_down.weight.data = torch.randn(adapter.lora_down.weight.shape, generator=g)
        tensors |= {f"{name}.{key}": p.detach().clone() for key, p in adapter.named_parameters()}
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")):
            weight = torch.zeros(module.weight.shape)
            wanted[name.removeprefix("diffusion_model.")] = adapter(weight).detach()
    save_file(tensors, tmp_path / "core.safetensors")
    found = lora.load(tmp_path / "core.safetensors")
    assert wanted.keys() <= found.weights.keys() and len(wanted) == 40
    for path, delta in wanted.items():
        torch.testing.assert_close(change_of(found.weights[path]), delta)


# -- diffusers and PEFT ----------------------------------------------------------------------------


@pytest.fixture
def theirs():
    """diffusers' UNet of the tiny SD1.x with our weights."""
    pytest.importorskip("peft")
    diffusers = pytest.importorskip("diffusers")
    import comfy.utils

    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    net = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        **kinds,
    )
    model = unet()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    net.load_state_dict(
        {theirs: weights[ours] for theirs, ours in names.items() if theirs in net.state_dict()}
    )
    return net.requires_grad_(False), names


def with_peft(net, rank=4, alpha=2):
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights=False,  # random, so that they do something
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    )
    torch.manual_seed(0)
    net.add_adapter(config)
    return net


def peft_deltas(net, names):
    """By ComfyUI's path, from PEFT's own arithmetic."""
    found = {}
    for name, module in net.named_modules():
        if hasattr(module, "get_delta_weight"):
            ours = names[f"{name}.weight"].removesuffix(".weight")
            found[ours] = module.get_delta_weight("default").detach()
    return found


def assert_deltas(found, wanted):
    assert found.weights.keys() == wanted.keys() and len(wanted) == 128
    for path, delta in wanted.items():
        torch.testing.assert_close(change_of(found.weights[path]), delta, rtol=1e-5, atol=1e-6)


def said(net, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, words = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 768, generator=g)
    with torch.no_grad():
        return net(x, torch.tensor([400, 400]), words).sample, x, words


def test_what_diffusers_writes_is_read(theirs, tmp_path):
    """The pipeline's file, with its configuration (an alpha that is not the rank) in the header."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    net, names = theirs
    with_peft(net)
    wanted = peft_deltas(net, names)
    about = net.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(net), unet_lora_adapter_metadata=about
    )
    assert_deltas(lora.load(tmp_path / "pytorch_lora_weights.safetensors"), wanted)


def test_what_peft_writes_is_read(theirs, tmp_path):
    from peft import LoraConfig, get_peft_model

    net, names = theirs
    config = LoraConfig(r=4, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    made = get_peft_model(net, config)
    made.save_pretrained(tmp_path)
    wanted = peft_deltas(made.base_model.model, names)
    found = lora.load(tmp_path / "adapter_model.safetensors")
    assert found.weights.keys() == wanted.keys() and len(wanted) == 64
    for path, delta in wanted.items():
        torch.testing.assert_close(change_of(found.weights[path]), delta, rtol=1e-5, atol=1e-6)


def test_what_we_write_is_read_by_diffusers(theirs, tmp_path):
    from diffusers import StableDiffusionPipeline

    net, _ = theirs
    plain, x, words = said(net)
    made = random_lora(unet(), seed=4)
    lora.save(made, tmp_path / "ours.safetensors", "diffusers")
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(tmp_path), weight_name="ours.safetensors")
    net.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    with_theirs, *_ = said(net)
    literal = tiny.tiny_model("sd15").model.diffusion_model
    with torch.no_grad():
        for path, part in made.weights.items():
            literal.get_submodule(path).weight += change_of(part)
        wanted = literal(x, torch.tensor([400.0, 400.0]), context=words)
    assert relative(with_theirs, wanted) < 1e-4
    assert relative(plain, wanted) > 50 * 1e-4


def test_the_paths_are_those_that_comfyui_counts():
    """Every layout's attention names, against ComfyUI's own map."""
    import comfy.utils

    from reelbrush.nodes.diffusion.lora.names import kohya_name, path_of

    for layout in ("sd15", "sd21", "sdxl"):
        model = unet(layout)
        names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        ends = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
        chosen = {k: v for k, v in names.items() if k.endswith(ends)}
        assert set(map(path_of, (k.removesuffix(".weight") for k in chosen))) == set(
            lora_train.projections(model, "q,k,v,out")
        )
        for theirs_, ours in chosen.items():
            path = ours.removesuffix(".weight")
            assert path_of(theirs_.removesuffix(".weight")) == path
            key = f"lora_unet_{theirs_.removesuffix('.weight')}".replace(".", "_")
            assert kohya_name(path, "diffusers") == key and path_of(key) == path
