"""Regions, injection and masks from words in whole runs of a real ComfyUI, with core's samplers, hooks and
nodes.

Needs COMFYUI_PATH and REELBRUSH_CHECKPOINTS, as test_real_comfyui.py does.
"""

from pathlib import Path

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.nodes_inject import Inject, PromptMask

from .lora_tools import apply, random_lora
from .test_real_comfyui import FILES, FRAMES, SIDE, Loaded, pictures

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.slow,
    pytest.mark.skipif(not FILES, reason="needs checkpoints with random weights: set REELBRUSH_CHECKPOINTS"),
]


@pytest.fixture(scope="module")
def sd15():
    with torch.inference_mode():
        loaded = Loaded("sd15")
        loaded.noise, loaded.content, _ = loaded.invert(1, FRAMES)
        loaded.loras = [random_lora(loaded.model, seed, rank=4, size=0.1) for seed in (1, 2)]
    left = torch.zeros(FRAMES, SIDE, SIDE)
    left[:, :, : SIDE // 2] = 1
    below = torch.zeros(FRAMES, SIDE, SIDE)
    below[1:, SIDE // 2 :, SIDE // 2 :] = 1
    loaded.masks = [left, below]
    return loaded


def chained(loaded, **more):
    model = loaded.model
    for lora, mask in zip(loaded.loras, loaded.masks, strict=True):
        model = apply(model, lora, mask=mask, **more)
    return model


def injected(model, content):
    ends = {"feature_end": 0.6, "attention_end": 0.5}
    return Inject().patch(model, content, "4-11", "all", True, True, blend="replace", **ends)[0]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "ddim_uniform"), ("dpmpp_2m", "karras")])
def test_regions_and_injection_with_core_samplers_controlnet_and_a_core_lora(sd15, sampler, scheduler):
    """Guidance, hints per frame, calls of all and of two frames; afterwards the base is as before."""
    import comfy.controlnet
    import comfy.sd
    import comfy.utils

    net = comfy.controlnet.load_controlnet(str(Path(FILES) / "controlnet.safetensors"))
    weights = comfy.utils.load_torch_file(str(Path(FILES) / "lora.safetensors"), safe_load=True)
    apply_control = sd15.nodes.ControlNetApplyAdvanced().apply_controlnet
    hints = pictures(FRAMES, 7)

    def run(model):
        positive, negative = apply_control(sd15.empty, sd15.other, net, hints, 1.0, 0.0, 1.0)
        return sd15.sample(
            model, sd15.noise, sampler, scheduler, cfg=3.0, positive=positive, negative=negative
        )

    with torch.inference_mode():
        before = {k: v.clone() for k, v in sd15.model.model.state_dict().items()}
        plain = run(sd15.model)
        model = injected(chained(sd15, positive=sd15.other), sd15.content)
        model, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
        whole = run(model)
        split = run(FramesPerCall().patch(model, 2)[0])
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
        assert whole.isfinite().all() and relative(whole, plain) > 0.05
        assert torch.equal(run(sd15.model), plain)
        assert all(torch.equal(v, before[k]) for k, v in sd15.model.model.state_dict().items())


def test_eq_7_is_what_cores_own_lora_hooks_make(sd15):
    """Masked conditionings with LoRA hooks and a default conditioning, the baseline: the same picture."""
    import comfy.hooks

    pair, plain = [[], []], [sd15.empty, sd15.other]
    for lora, mask in zip(sd15.loras, sd15.masks, strict=True):
        named = {}
        for path, part in lora.weights.items():
            key = "lora_unet_" + path.replace(".", "_")
            named |= {f"{key}.lora_up.weight": part.up, f"{key}.lora_down.weight": part.down}
            named[f"{key}.alpha"] = torch.tensor(part.scale * len(part.down))
        hook = comfy.hooks.create_hook_lora(named, 1.0, 0.0)
        pair = comfy.hooks.set_conds_props_and_combine(pair, plain, mask=mask, hooks=hook)
    pair = comfy.hooks.set_default_conds_and_combine(pair, plain)
    with torch.inference_mode():
        theirs = sd15.sample(sd15.model, sd15.noise, cfg=3.0, positive=pair[0], negative=pair[1])
        ours = sd15.sample(chained(sd15), sd15.noise, cfg=3.0)
        off = sd15.sample(sd15.model, sd15.noise, cfg=3.0)
    assert relative(ours, theirs) < 2e-3 < 0.05 < relative(off, theirs)


def test_the_outside_stays_the_clip(sd15):
    with torch.inference_mode():
        out = sd15.sample(chained(sd15, content=sd15.content), sd15.noise, "dpmpp_2m", "karras", cfg=3.0)
    clean = sd15.model.model.process_latent_out(sd15.content.at(0))
    outside = torch.ones(FRAMES, SIDE // 8, SIDE // 8, dtype=torch.bool)
    outside[:, :, : SIDE // 16] = False
    outside[1:, SIDE // 16 :, SIDE // 16 :] = False
    outside = outside[:, None].expand_as(out)
    torch.testing.assert_close(out[outside], clean[outside], rtol=1e-4, atol=1e-4)
    assert relative(out[~outside], clean[~outside]) > 0.05


def test_a_mask_from_a_word_with_the_checkpoints_own_text_encoder(sd15):
    import comfy.sd

    file = str(Path(FILES) / "sd15.safetensors")
    with torch.inference_mode():
        _, clip, _, _ = comfy.sd.load_checkpoint_guess_config(file, output_vae=False, output_clip=True)
        text = "a deer, on the grass " + "and more " * 40
        mask, heat = PromptMask().find(sd15.model, clip, sd15.content, text, "deer, the grass", 0.5, steps=1)
    assert mask.shape == (FRAMES, SIDE, SIDE) and heat.shape == (FRAMES, SIDE, SIDE, 3)
    assert 0 < mask.mean() < 1
