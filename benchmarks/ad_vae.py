"""VAE decoder tuning (eq. 10) at the node's defaults: how far the error of one picture falls.

    COMFYUI_PATH=... python benchmarks/ad_vae.py --weights ~/denoiser --data ../shared/data

On ComfyUI's own VAEs: the autoencoder of `tiny_denoiser.py` (TAESD's layout), and one in Stable Diffusion's
layout (AutoencoderKL, 32 channels wide), which first learns photographs for --seconds of CPU time. The
picture is a texture that the second has not seen.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from ad_clip import ROOT, loaded
from ad_sheets import FIRE
from torch import Tensor

from reelbrush.lab.pictures import square

log = logging.getLogger("ad_vae")
LAYOUT = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def trained(photos: list[Path], seconds: float):
    """A VAE of Stable Diffusion's layout after a short training (L1) on crops of 64 pixels."""
    import comfy.sd

    torch.manual_seed(0)
    vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": LAYOUT, "embed_dim": 4}}, dtype=torch.float32)
    network = vae.first_stage_model
    made = loaded(ROOT / "tests" / "diffusion" / "checkpoints.py")
    # ComfyUI leaves weights as memory had them: files fill them
    network.load_state_dict(made.filled(network, "", torch.Generator().manual_seed(0)))
    pictures = torch.cat([square(p, 256) for p in photos]).movedim(-1, 1) * 2 - 1
    adam = torch.optim.Adam(network.requires_grad_().parameters(), 2e-3)
    begin, steps = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        for group in adam.param_groups:
            group["lr"] = 2e-3 * (1 - spent / seconds)
        which, (top, left) = torch.randint(len(pictures), (8,)), torch.randint(192, (2,)).tolist()
        real = pictures[which, :, top : top + 64, left : left + 64]
        loss = (network.decode(network.encode(real)) - real).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
    network.requires_grad_(False)
    log.warning("AutoencoderKL: %d steps, L1 of its last crops %.4f", steps, float(loss.detach()) / 2)
    return vae


def measured(name: str, vae, image: Tensor) -> None:
    from reelbrush.nodes.distill.vae import tune_decoder

    redrawn = lambda one: one.decode(one.encode(image))  # noqa: E731
    l1 = lambda shown: float((shown - image).abs().mean())  # noqa: E731
    with torch.inference_mode():
        before = redrawn(vae)
        tuned, losses = tune_decoder(vae, image)
        after, again = redrawn(tuned), redrawn(vae)
    log.warning(
        "%s: L1 %.4f -> %.4f (%.1f %% lower) in %d steps; the base VAE as before: %s",
        *(name, l1(before), l1(after), 100 * (1 - l1(after) / l1(before)), len(losses)),
        torch.equal(before, again),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=60)
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    loaded(ROOT / "tests" / "conftest.py")  # ComfyUI, from COMFYUI_PATH
    import comfy.sd
    import comfy.utils

    image = square(a.data / FIRE, a.size)
    file = comfy.utils.load_torch_file(str(a.weights / "vae.safetensors"))
    measured("TAESD's layout", comfy.sd.VAE(sd=file, dtype=torch.float32), image)
    photos = sorted((a.data / "content").glob("*.jpg"))[:200]
    measured("AutoencoderKL", trained(photos, a.seconds), image)


if __name__ == "__main__":
    main()
