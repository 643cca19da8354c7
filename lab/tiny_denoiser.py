"""A small private diffusion model, so that methods can be tried without public weights.

Stable Diffusion 1.5's block layout (tests/diffusion/tiny_unet.py) at width 128, trained to predict noise with
SD's schedule on the latents of a small autoencoder (tiny_vae.py): four channels, one latent pixel for 8 x 8
pixels, unit variance (scale factor 1). 19.8 M + 2.4 M parameters.

    python lab/tiny_denoiser.py --data ../shared/data --out ~/denoiser
    python benchmarks/sheet.py diffusion.sample --set weights=~/denoiser --vary prompt=photo,painting ...

The default times (2 minutes for the autoencoder, 5.5 for the denoiser) are for an H100. A CPU needs some
hundred times as long. Training writes `vae.safetensors` (ComfyUI's Load VAE reads it),
`denoiser-1.safetensors` ... (the parts of one network) and a log. The second command draws samples.

`load(folder)` gives the network as a MODEL: ComfyUI's own if ComfyUI is loaded, else the stand-in of the
tests. `load_vae(folder)` replaces a graph's VAE, and `tiny_words.encode_text` replaces CLIP Text Encode.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from reelbrush.lab import tiny_vae
from reelbrush.lab.tiny_training import Clock, Maps, Optimizer, fast_convolutions, read_pictures
from reelbrush.lab.tiny_words import FAMILIES, WORDS, Texts, described, encode_text
from reelbrush.tests.diffusion import tiny
from reelbrush.tests.diffusion.tiny_unet import TinyUNet

log = logging.getLogger("tiny_denoiser")
CONFIG = {
    "model_channels": 128,
    "channel_mult": (1, 1, 1, 1),
    "num_res_blocks": (2, 2, 2, 2),
    "transformer_depth": (1, 1, 1, 1, 1, 1, 0, 0),
    "transformer_depth_output": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0),
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 4,
}
SIDES = (256, 288, 336, 392, 512)  # pixels of the short side of the pictures that the denoiser learns from
PARTS = 3

Groups = list[dict[str, Tensor]]  # photographs, paintings: uint8 [H, W, 3] by file name


# -- pictures --------------------------------------------------------------------------------------


def load_pictures(data: Path, device: torch.device, limit: int | None) -> Groups:
    """Photographs and paintings, on the device."""
    groups = [read_pictures(data / name, limit) for name in ("content", "style")]
    return [{k: v.to(device) for k, v in group.items()} for group in groups]


def resized(image: Tensor, side: int) -> Tensor:
    """A picture [H, W, 3] with a short side of `side` pixels."""
    x = image.permute(2, 0, 1)[None].float()
    scale = side / min(x.shape[2:])
    size = [max(side, round(n * scale)) for n in x.shape[2:]]
    x = interpolate(x, size=size, mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def pixel_maps(groups: Groups, device: torch.device) -> Maps:
    """The training pictures of the autoencoder: photographs as they are, paintings at three sizes."""
    photos, paintings = (list(group.values()) for group in groups)
    paintings = paintings + [resized(p, side) for side in (256, 360) for p in paintings]
    weights = [0.65 / len(photos)] * len(photos) + [0.35 / len(paintings)] * len(paintings)
    return Maps(photos + paintings, weights, device)


@torch.no_grad()
def latent_maps(network: nn.Module, groups: Groups, dtype: torch.dtype) -> tuple[Maps, Tensor]:
    """Latents and colours of all pictures, also mirrored, at SIDES; bool [maps, kinds + families]."""
    maps, weights, kinds = [], [], []
    for kind, group in enumerate(groups):
        for number, (name, image) in enumerate(group.items()):
            family = [kind == 1 and name.startswith(tuple(f.split())) for f in FAMILIES.values()]
            for n, side in enumerate(SIDES):
                shift = (3 * n + number) % 8 if n else 0  # another position of the latent grid at each size
                maps += list(tiny_vae.encode_at(network, image, side, dtype, shift).half())
                share = (0.35 if kind else 0.65) / len(group)
                weights += [share * (0.5 if side == 256 else 0.125)] * 2
                kinds += [[kind == 0, kind == 1, *family]] * 2
    device = maps[0].device
    return Maps(maps, weights, device), torch.tensor(kinds, device=device)


# -- training --------------------------------------------------------------------------------------


def alphas_cumprod() -> Tensor:
    """SD's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def zero_residual_branches(network: nn.Module) -> None:
    """At the start of the training every block is the identity."""
    for name, layer in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def crop_size(step: int, batch: int) -> tuple[int, int]:
    """The side and the number of this step's crops: mostly 256 pixels, some of 384 and 512."""
    if step % 8 == 3:
        return 48, max(1, batch * 7 // 16)
    return (64, max(1, batch // 4)) if step % 8 == 7 else (32, batch)


def train_denoiser(
    maps: Maps, kinds: Tensor, out: Path, clock: Clock, batch: int, dtype: torch.dtype, seed: int
) -> nn.Module:
    """Train until the time is over. The smoothed weights are written to `out` every minute."""
    device = maps.values.device
    torch.manual_seed(seed)
    g = torch.Generator(device).manual_seed(seed)
    network = TinyUNet(**CONFIG)
    zero_residual_branches(network)
    network = network.to(device, dtype, memory_format=torch.channels_last)
    hidden = lambda name: "_block" in name and not name.startswith("input_blocks.0.")  # noqa: E731
    optimizer = Optimizer(network, hidden, 0.02, 2e-3)
    texts, abar = Texts(device, dtype), alphas_cumprod().to(device)
    sums = torch.zeros(4, 2, device=device)
    with fast_convolutions():
        while clock.spent < 1:
            size, count = crop_size(optimizer.steps, batch)
            crops, which = maps.crops(count, size, g)
            clean = crops[..., :4].permute(0, 3, 1, 2).float()
            context = texts.contexts(torch.cat([kinds[which], described(crops[..., 4:])], dim=1), g)
            # Stratified timesteps, and weights between noise error and picture error for all levels.
            place = torch.arange(count, device=device) + torch.rand(count, generator=g, device=device)
            t = (place * (1000 / count)).long().clamp(max=999)
            a = abar[t][:, None, None, None]
            noise = torch.randn(clean.shape, generator=g, device=device)
            noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).to(dtype, memory_format=torch.channels_last)
            predicted = network(noisy, t.float(), context).float()
            each = mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
            weight = (1 + abar[t] / (1 - abar[t]) / 4) ** -0.5
            (each * weight).mean().backward()
            optimizer.step(clock.rate(optimizer.steps))
            with torch.no_grad():
                sums.index_add_(0, t // 250, torch.stack([each.detach(), torch.ones_like(each)], dim=1))
            if clock.due("report", 10):
                losses = [total / max(1, n) for total, n in sums.tolist()]
                shown = " ".join(f"{v:.4f}" for v in losses)
                spent = clock.spent * clock.seconds
                log.info("denoiser %3.0f s, step %d: loss by quarter of t %s", spent, optimizer.steps, shown)
                sums.zero_()
                optimizer.check(all(v < 10 for v in losses))
            if clock.due("save", 60):
                save(optimizer.smoothed(), out, optimizer.steps)
    save(optimizer.smoothed(), out, optimizer.steps)
    network = network.float()
    network.load_state_dict(optimizer.smoothed())
    log.info("denoiser: %d steps", optimizer.steps)
    return network.train(False).requires_grad_(False)


def save(weights: dict[str, Tensor], out: Path, steps: int) -> None:
    """Half precision, in parts of similar size. Their metadata has the layout and the step."""
    half = {k: v.detach().half().cpu().contiguous() for k, v in weights.items()}
    each = -(-sum(v.numel() for v in half.values()) // PARTS)
    parts, filled = [{} for _ in range(PARTS)], 0
    for key, value in half.items():
        parts[min(filled // each, PARTS - 1)][key] = value
        filled += value.numel()
    about = {"config": json.dumps(CONFIG), "steps": str(steps), "words": " ".join(WORDS)}
    for number, part in enumerate(parts, 1):
        save_file(part, out / "denoiser.part", about)
        (out / "denoiser.part").replace(out / f"denoiser-{number}.safetensors")


def train(args: argparse.Namespace) -> None:
    """Train the autoencoder, then the denoiser on its latents."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if args.device == "auto" else args.device)
    half = device.type == "cuda" if args.precision == "auto" else args.precision == "half"
    dtype = torch.bfloat16 if half else torch.float32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark_limit = True, 4
    torch.manual_seed(args.seed)
    start = time.monotonic()
    groups = load_pictures(args.data, device, args.limit)
    squeezenet = args.data / "squeezenet_v1_0.fp16.safetensors"
    maps = pixel_maps(groups, device)
    vae = tiny_vae.train(maps, squeezenet, args.out, args.vae_minutes, args.vae_batch, dtype, args.seed)
    clock = Clock(args.minutes)
    maps, kinds = latent_maps(vae, groups, dtype)
    tiny_vae.set_scale(vae, maps.values[:, :4], args.out)
    maps.values[:, :4] /= vae.vae_scale
    log.info("%d latents, %.1f M points", len(kinds), len(maps.values) / 1e6)
    crops, which = maps.crops(1024, 32, torch.Generator(device).manual_seed(args.seed))
    fits = torch.cat([kinds[which], described(crops[..., 4:])], dim=1).float().mean(0).tolist()
    log.info("words: %s", ", ".join(f"{w} {100 * share:.0f}%" for w, share in zip(WORDS, fits, strict=True)))
    train_denoiser(maps, kinds, args.out, clock, args.batch, dtype, args.seed)
    if device.type == "cuda":
        log.info("peak memory %.1f GiB", torch.cuda.max_memory_allocated() / 2**30)
    log.info("total %.0f s", time.monotonic() - start)


# -- use -------------------------------------------------------------------------------------------


def folder_of(path: str | Path) -> Path:
    """The folder of a trained denoiser; `path` may also be one of its files."""
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    if not (folder / "vae.safetensors").exists():
        raise ValueError(f"no denoiser in {str(path)!r}: train one with lab/tiny_denoiser.py")
    return folder


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Weights in float32, and the layout from the metadata."""
    folder = folder_of(path)
    weights, about = {}, {}
    for number in range(1, PARTS + 1):
        with safe_open(folder / f"denoiser-{number}.safetensors", "pt") as file:
            weights |= {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118 (no mapping)
            about[number] = file.metadata()
    if len({a["steps"] for a in about.values()}) > 1:
        raise ValueError(f"the parts in {folder} are from different steps of the training")
    return weights, json.loads(about[1]["config"])


def load(path: str | Path):
    """The denoiser as a MODEL: ComfyUI's ModelPatcher if ComfyUI is loaded, else the tests' stand-in."""
    weights, config = read(path)
    make = tiny.comfy_model if "folder_paths" in sys.modules else tiny.tiny_model
    return make(config, weights, scale=1.0)


def load_vae(path: str | Path) -> tiny_vae.VAE:
    return tiny_vae.VAE(folder_of(path) / "vae.safetensors")


@torch.no_grad()
def draw(
    network: nn.Module,
    noise: Tensor,
    texts: list[str],
    steps: int,
    *,
    cfg: float = 1.0,
    latent: Tensor | None = None,
    top: int = 999,
) -> Tensor:
    """DDIM from timestep `top`, one text per row. The start is noise, or a latent with noise added."""
    abar = alphas_cumprod().to(noise.device)
    levels = torch.linspace(top, 0, max(2, round(steps * top / 999))).round().long().tolist()
    context = torch.cat([encode_text(text)[0][0] for text in texts]).to(noise.device)
    empty = encode_text("")[0][0].to(noise.device).expand_as(context)
    clean = torch.zeros_like(noise) if latent is None else latent
    x = abar[top].sqrt() * clean + (1 - abar[top]).sqrt() * noise
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        eps = network(x, torch.full((len(x),), float(t), device=x.device), context)
        if cfg != 1:
            base = network(x, torch.full((len(x),), float(t), device=x.device), empty)
            eps = base + cfg * (eps - base)
        clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
        x = clean if after is None else abar[after].sqrt() * clean + (1 - abar[after]).sqrt() * eps
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with content/ and style/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-minutes", type=float, default=2)
    parser.add_argument("--minutes", type=float, default=5.5, help="for the denoiser and its latents")
    parser.add_argument("--vae-batch", type=int, default=64, help="crops of 128 pixels per step")
    parser.add_argument("--batch", type=int, default=128, help="crops of 256 pixels per step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "half", "full"), default="auto")
    parser.add_argument("--limit", type=int, help="at most so many pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)
    train(args)


if __name__ == "__main__":
    main()
