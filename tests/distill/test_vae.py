"""VAE decoder tuning and tiling decoders, on ComfyUI's own autoencoder."""

import logging

import pytest
import torch

from reelbrush.nodes.distill import vae as room
from reelbrush.nodes.distill.seamless import seamless_vae
from reelbrush.nodes.distill.vae import tune_decoder

SMALL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def picture(height=48, width=64):
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 12, width), indexing="ij")
    return torch.stack([x.sin() * y.cos(), (x + y).sin(), (x * y / 9).cos()], -1)[None] * 0.4 + 0.5


def comfy_vae():
    """A VAE as core loads it, in inference mode, with small random weights."""
    import comfy.sd

    torch.manual_seed(0)
    with torch.inference_mode():
        vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": SMALL, "embed_dim": 4}})
        vae.first_stage_model.float()
        vae.vae_dtype = torch.float32
        for p in vae.first_stage_model.parameters():
            p.copy_(
                torch.randn(p.shape) * 0.7 / p[0].numel() ** 0.5 if p.ndim > 1 else torch.ones_like(p) * 0.1
            )
    return vae


@pytest.mark.comfyui
def test_tuning_redraws_the_picture_and_leaves_the_vae_alone(caplog):
    import comfy.model_management as management

    vae = comfy_vae()
    image, seen = picture(), []
    with torch.inference_mode():
        latent = vae.encode(image)
        before = vae.decode(latent)
        weights = {name: p.clone() for name, p in vae.get_sd().items()}
        tuned, losses = tune_decoder(
            vae, image, steps=40, learning_rate=1e-3, report=lambda step, loss: seen.append(step)
        )
        assert torch.equal(vae.decode(latent), before)
        after = tuned.decode(tuned.encode(image))
    assert all(torch.equal(p, weights[name]) for name, p in vae.get_sd().items())
    assert seen == list(range(40))
    # ComfyUI would warn here of a network that is still loaded after its patcher is deleted.
    with caplog.at_level(logging.WARNING):
        management.load_models_gpu([vae.patcher])
        management.cleanup_models_gc()
    assert "memory leak" not in caplog.text
    l1 = lambda shown: float((shown - image).abs().mean())  # noqa: E731
    assert l1(after) < 0.7 * l1(before)
    assert losses[-1] < 0.7 * losses[0]
    saved = tuned.get_sd()
    changed = {name for name, p in saved.items() if not torch.equal(p, weights[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def taesd_vae():
    """TAESD's layout, random weights."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    network = TAESD()
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim:  # all but the latents' scale and shift
                p.copy_(torch.randn(p.shape) * (0.7 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1))
    with torch.inference_mode():
        return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


@pytest.mark.comfyui
def test_a_taesd_is_tuned_and_tiles_too():
    vae, image = taesd_vae(), picture()
    with torch.inference_mode():
        latent, before = vae.encode(image), vae.get_sd()
        before = {name: p.clone() for name, p in before.items()}
        tuned, losses = tune_decoder(vae, image, steps=4, learning_rate=1e-3)
        tiling = seamless_vae(vae, "x")
        here, there = tiling.decode(latent), tiling.decode(latent.roll(3, -1))
        torch.testing.assert_close(there, here.roll(24, 2), atol=2e-5, rtol=0)
        assert torch.equal(tiling.encode(image), latent)
        assert torch.equal(vae.encode(image), latent)
    changed = {name for name, p in tuned.get_sd().items() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("taesd_decoder.") for name in changed)
    assert all(torch.equal(p, before[name]) for name, p in vae.get_sd().items())
    assert losses[-1] < losses[0]


@pytest.mark.comfyui
def test_a_seamless_vae_decodes_across_the_edge_and_the_base_stays():
    vae = comfy_vae()
    latent = torch.randn(1, 4, 6, 8)
    with torch.inference_mode():
        before = vae.decode(latent)
        tiling = seamless_vae(vae, "x")
        here, there = tiling.decode(latent), tiling.decode(latent.roll(3, -1))
        torch.testing.assert_close(there, here.roll(24, 2), atol=2e-5, rtol=0)
        tiled = tiling.decode_tiled(latent)
        assert tiled.shape == here.shape
        after = vae.decode(latent)
    assert torch.equal(before, after)
    assert not torch.equal(before, here)
    assert seamless_vae(vae, "none") is vae


def test_pictures_are_cut_to_what_the_vae_divides():
    class Vae:
        downscale_ratio = 8

    assert room.fit(torch.zeros(1, 37, 64, 4), Vae).shape == (1, 32, 64, 3)
    with pytest.raises(ValueError, match="at least 8x8"):
        room.fit(torch.zeros(1, 7, 64, 3), Vae)
