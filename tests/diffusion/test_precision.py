"""What ComfyUI does to a model's numbers: half precision, weights cast when they are used, SD2's float32.

Half precision and low-VRAM loading need ComfyUI's own operations: these tests run where COMFYUI_PATH is set.
"""

import contextlib

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import attention_layers, network

from . import tiny
from .attention_tools import latents, levels, reference, sample, trajectory, zstar

pytestmark = pytest.mark.comfyui
HALVES = [torch.bfloat16, torch.float16]


def in_precision(layout, dtype):
    """A model of our own (not the shared one) whose weights and activations have `dtype`."""
    model = tiny.comfy_model(layout)
    network = model.model.diffusion_model.to(dtype)
    network.dtype = dtype
    return model


def every_patch(model):
    """All patches of nodes/diffusion at once, with grey masks."""
    style, content = trajectory(model), trajectory(model, frames=3, seed=20)
    grey = torch.linspace(0.1, 1, 32).expand(1, 24, 32)
    patched = zstar(model, style, layers="10-12", start_percent=0.0, style_mask=grey, content_mask=grey)
    patched = zstar(patched, style, layers="13", start_percent=0.0, mix="add")
    patched = reference(patched, style, "style-id", layers="14-15", content=content)
    patched = TemporalAttention().patch(patched, "first + previous", "last 4", 0.0, 1.0, 0.7)[0]
    return FramesPerCall().patch(patched, 2)[0]


def run(model, cfg=2.0):
    with torch.inference_mode():
        return sample(model, frames=3, cfg=cfg, latent=latents(3) * float(levels(model)[0])).float()


@pytest.mark.parametrize(
    ("layout", "dtype"), [("sd15", torch.float16), ("sd21", torch.bfloat16), ("sdxl", torch.bfloat16)]
)
def test_half_precision_is_float32_up_to_rounding(layout, dtype):
    exact, half = tiny.comfy_model(layout), in_precision(layout, dtype)
    seen = []
    watched = every_patch(half)

    def watch(call):
        seen.append(call.x.dtype)
        return call.run()

    unet.attach(watched, "watch", watch, rank=9)
    wanted, found = run(every_patch(exact)), run(watched)
    plain, rounded = run(exact), run(half)
    assert set(seen) == {dtype}  # nothing of ours has raised the precision on the way
    assert (found - wanted).norm() < 2 * (rounded - plain).norm()  # no more than the network itself loses
    assert (found - wanted).norm() < 0.5 * (wanted - plain).norm()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_patch_that_changes_nothing_is_bit_equal_in_half_precision(dtype):
    model = in_precision("sd15", dtype)
    patched = model.clone()
    attend = lambda q, k, v, site: site.inner(q, k, v)  # noqa: E731
    unet.attach(
        patched,
        "test",
        lambda c: c.run(options=unet.with_attention(c.options, attention_layers(model), attend)),
    )
    assert torch.equal(run(patched), run(model))


@pytest.mark.parametrize(("layout", "precision"), [("sd21", torch.float32), ("sd15", None), ("sdxl", None)])
def test_attention_keeps_the_precision_that_the_family_asks_for(layout, precision, monkeypatch):
    """SD2 computes its logits in float32: also with our patches."""
    import comfy.ldm.modules.attention as core

    asked = []

    def recorder(original):
        def attention(*args, attn_precision=None, **kwargs):
            asked.append(attn_precision)
            return original(*args, attn_precision=attn_precision, **kwargs)

        return attention

    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(core, name, recorder(getattr(core, name)))
    model = in_precision(layout, torch.bfloat16)
    run(every_patch(model))
    assert len(asked) > 100 and set(asked) == {precision}


@contextlib.contextmanager
def low_memory(monkeypatch, room):
    """ComfyUI loads models with room for so many bytes; other weights are cast when they are used."""
    import comfy.model_patcher

    load = comfy.model_patcher.ModelPatcher.load
    with monkeypatch.context() as patch:
        low = lambda self, device_to=None, *args, **kwargs: load(self, device_to, room)  # noqa: E731
        patch.setattr(comfy.model_patcher.ModelPatcher, "load", low)
        yield


@pytest.mark.parametrize("room", [1, 200_000])
def test_low_memory_loading_changes_nothing(room, monkeypatch):
    """With a patch on a weight, as a LoRA puts it; the model is unloaded between the runs."""
    import comfy.model_management as management

    model = tiny.comfy_model("sd15").clone()
    key = "diffusion_model.output_blocks.9.1.transformer_blocks.0.attn1.to_k.weight"
    weight = model.model.state_dict()[key]
    model.add_patches({key: ("diff", (torch.full_like(weight, 0.05),))}, 0.5)
    patched = every_patch(model)
    wanted = run(patched)
    management.unload_all_models()
    cast = []
    with low_memory(monkeypatch, room):
        found = run(patched)
        cast += [m for m in network(model).modules() if getattr(m, "comfy_cast_weights", False)]
    management.unload_all_models()
    assert cast  # the low-memory path was taken
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(run(patched), wanted)


def core(kind, *given):
    """The model that a core node makes, of either generation of nodes."""
    return kind.execute(*given).args[0] if hasattr(kind, "execute") else kind().patch(*given)[0]


def test_token_merging_of_core_raises_an_error_and_others_go_on():
    """Core's ToMe changes the token count; FreeU and perturbed attention do not, and keep their effect."""
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_tomesd import TomePatchModel

    model = tiny.comfy_model("sd15")
    style = trajectory(model)
    node = lambda m: zstar(m, style, layers="10-15", start_percent=0.0)  # noqa: E731
    tome = core(TomePatchModel, model, 0.5)
    with pytest.raises(RuntimeError, match="Token Merging"):
        run(node(tome))
    alone = run(node(model))
    made = {
        "FreeU": lambda m: core(FreeU_V2, m, 1.3, 1.4, 0.9, 0.2),
        "PAG": lambda m: core(PerturbedAttentionGuidance, m, 3.0),
    }
    for name, other in made.items():
        before, after = run(node(other(model))), run(other(node(model)))
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4, msg=name)
        assert (before - alone).norm() > 1e-3 * alone.norm(), name
        assert (before - run(other(model))).norm() > 1e-3 * alone.norm(), name
