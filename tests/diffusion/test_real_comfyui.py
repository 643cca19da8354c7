"""Whole runs in a real ComfyUI: core loaders, samplers, ControlNet and LoRA around our patches.

Needs COMFYUI_PATH, and REELBRUSH_CHECKPOINTS: a folder with sd15.safetensors, controlnet.safetensors and
lora.safetensors (sdxl.safetensors too, for its run) as `checkpoints.py` makes them.
"""

import os
from pathlib import Path

import pytest
import torch

from reelbrush.nodes.diffusion.nodes_clip import AttentionView, FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.nodes_style import ReferenceNoise, ZStar
from reelbrush.nodes.diffusion.nodes_trajectory import Invert

from .attention_tools import features_alive, reference

FILES = os.environ.get("REELBRUSH_CHECKPOINTS")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.slow,
    pytest.mark.skipif(not FILES, reason="needs checkpoints with random weights: set REELBRUSH_CHECKPOINTS"),
]
FRAMES, SIDE = 3, 64


def pictures(count, seed):
    """Smooth colours; each frame its own."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 6, 6, generator=g)
    return torch.nn.functional.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1).movedim(1, -1)


class Loaded:
    """One checkpoint through core loaders, a clip and a style inverted."""

    def __init__(self, kind):
        import comfy.sd

        import nodes

        file = str(Path(FILES) / f"{kind}.safetensors")
        self.nodes = nodes
        self.model, clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(
            file, output_vae=True, output_clip=True
        )
        encode = nodes.CLIPTextEncode()
        self.empty, self.other = (encode.encode(clip, text)[0] for text in ("", "a harbour"))

    def latent(self, seed, frames):
        return self.nodes.VAEEncode().encode(self.vae, pictures(frames, seed))[0]

    def invert(self, seed, frames, steps=3):
        given = (self.empty, self.latent(seed, frames), steps, "next timestep", 0, 0, 0)
        return Invert().invert(self.model, *given)

    def sample(
        self,
        model,
        latent,
        sampler="euler",
        scheduler="ddim_uniform",
        *,
        cfg=1.0,
        positive=None,
        negative=None,
    ):
        with torch.inference_mode():
            (out,) = self.nodes.common_ksampler(
                model, 0, 3, cfg, sampler, scheduler, positive or self.empty, negative or self.other, latent,
                disable_noise=True,
            )  # fmt: skip
        return out["samples"]


@pytest.fixture(scope="module")
def sd15():
    with torch.inference_mode():
        loaded = Loaded("sd15")
        loaded.noise, loaded.content, _ = loaded.invert(1, FRAMES)
        loaded.style = loaded.invert(2, 1)[1]
        loaded.second = loaded.invert(3, 1)[1]
    return loaded


def far(a, b):
    """Relative distance."""
    return float((a - b).norm() / b.norm())


def zstar(model, style, **settings):
    given = {
        "style_scale": 1.2,
        "layers": "10-15",
        "start_percent": 0.167,
        "end_percent": 1.0,
        "mix": "reweight",
    }
    return ZStar().patch(model, style, **{**given, "add_weight": 0.5, **settings})[0]


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("euler", "ddim_uniform"), ("dpmpp_2m", "karras"), ("heun", "normal")]
)
def test_z_star_with_core_samplers(sd15, sampler, scheduler):
    """A clip with Z*, Temporal Attention and Frames per Call; off, the model is bit-equal to before."""
    plain = sd15.sample(sd15.model, sd15.noise, sampler, scheduler)
    model = zstar(sd15.model, sd15.style)
    model = TemporalAttention().patch(model, "first + previous", "last 6", 0.0, 1.0, 1.0)[0]
    whole = sd15.sample(model, sd15.noise, sampler, scheduler)
    split = sd15.sample(FramesPerCall().patch(model, 2)[0], sd15.noise, sampler, scheduler)
    assert whole.isfinite().all() and whole.shape == sd15.noise["samples"].shape
    assert far(whole, plain) > 5e-3
    assert far(split, whole) < 1e-4
    assert torch.equal(sd15.sample(sd15.model, sd15.noise, sampler, scheduler), plain)
    with torch.inference_mode():
        picture = sd15.nodes.VAEDecode().decode(sd15.vae, {"samples": whole})[0]
    assert picture.shape == (FRAMES, SIDE, SIDE, 3) and picture.isfinite().all()


def test_controlnet_per_frame_core_lora_and_z_star_together(sd15):
    """Hints stay with their frames in calls of one, two and all frames, conds and unconds with guidance."""
    import comfy.controlnet
    import comfy.sd
    import comfy.utils

    net = comfy.controlnet.load_controlnet(str(Path(FILES) / "controlnet.safetensors"))
    lora = comfy.utils.load_torch_file(str(Path(FILES) / "lora.safetensors"), safe_load=True)
    base, _ = comfy.sd.load_lora_for_models(sd15.model, None, lora, 1.0, 0.0)
    hints = pictures(FRAMES, 7)
    apply = sd15.nodes.ControlNetApplyAdvanced().apply_controlnet

    def run(model, hints):
        positive, negative = apply(sd15.empty, sd15.other, net, hints, 1.0, 0.0, 1.0)
        return sd15.sample(model, sd15.noise, cfg=3.0, positive=positive, negative=negative)

    with torch.inference_mode():
        plain = run(sd15.model, hints)
        model = zstar(base, sd15.style)
        whole = run(model, hints)
        wrong = run(model, hints[:1])
        hints_matter = far(wrong[1:], whole[1:])
        assert hints_matter > 5e-2
        assert far(wrong[:1], whole[:1]) < 1e-4  # each to its frame
        for size in (1, 2):
            split = run(FramesPerCall().patch(model, size)[0], hints)
            assert far(split, whole) < 1e-4
        without_lora = run(zstar(sd15.model, sd15.style), hints)
        without_style = run(base, hints)
        for other in (without_lora, without_style, sd15.sample(model, sd15.noise, cfg=3.0)):
            assert far(other, whole) > 5e-3
        assert torch.equal(run(sd15.model, hints), plain)


def test_a_cancelled_run_frees_the_caches_and_the_next_is_as_ever(sd15):
    import comfy.model_management as management

    model = zstar(sd15.model, sd15.style)
    held = []
    first = sd15.sample(model, sd15.noise)

    def cancel(*args, **kwargs):
        held.append(len(features_alive()))
        if len(held) == 2:
            management.interrupt_current_processing(True)
        management.throw_exception_if_processing_interrupted()

    cancelled = model.clone()
    cancelled.set_model_sampler_post_cfg_function(lambda args: cancel() or args["denoised"])
    with pytest.raises(management.InterruptProcessingException):
        sd15.sample(cancelled, sd15.noise)
    assert held[-1] >= 1 and not features_alive()
    assert torch.equal(sd15.sample(model, sd15.noise), first)


def test_two_queue_runs_with_different_styles_leave_nothing_behind(sd15):
    plain = sd15.sample(sd15.model, sd15.noise)
    for cache in ("gpu", "cpu"):
        one, two = (zstar(sd15.model, style, cache=cache) for style in (sd15.style, sd15.second))
        first, second = sd15.sample(one, sd15.noise), sd15.sample(two, sd15.noise)
        assert far(second, first) > 5e-3
        assert torch.equal(sd15.sample(one, sd15.noise), first)
        assert torch.equal(sd15.sample(zstar(sd15.model, sd15.second), sd15.noise), second)
    assert torch.equal(sd15.sample(sd15.model, sd15.noise), plain)


def test_the_official_variant_and_the_views_run(sd15):
    pulled = zstar(sd15.model, sd15.style, content=sd15.content, content_pull=0.01, style_branch_scale=1.5)
    assert sd15.sample(pulled, sd15.noise, cfg=7.5).isfinite().all()
    with torch.inference_mode():
        for what, layer in (("features PCA", 4), ("style share", 11), ("content similarity", 11)):
            (shown,) = AttentionView().view(sd15.model, sd15.content, what, layer, 0.46, sd15.style)
            assert shown.isfinite().all() and len(shown) == FRAMES


@pytest.mark.skipif(
    not FILES or not (Path(FILES) / "sdxl.safetensors").exists(), reason="needs sdxl.safetensors"
)
def test_reference_attention_on_sdxl():
    import comfy.samplers

    with torch.inference_mode():
        sdxl = Loaded("sdxl")
        sampling = sdxl.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", 3)
        (made,) = ReferenceNoise().make(sdxl.latent(2, 1), sdxl.model, sdxl.empty, sigmas, 1)
        noise = {"samples": torch.randn(2, 4, SIDE // 8, SIDE // 8) * 10}
        plain = sdxl.sample(sdxl.model, noise, cfg=4.0)
        for mode in ("concat", "swap"):
            model = reference(sdxl.model, made, mode)
            out = sdxl.sample(model, noise, cfg=4.0)
            assert out.isfinite().all() and far(out, plain) > 5e-3
        assert torch.equal(sdxl.sample(sdxl.model, noise, cfg=4.0), plain)
