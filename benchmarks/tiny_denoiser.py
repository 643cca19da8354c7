"""A small diffusion model of our own, so that methods can be seen to work without public weights.

Stable Diffusion 1.5's block layout (the network of tests/diffusion/tiny_unet.py) at width 64, trained to
predict noise with SD's schedule in a pixel space of four channels: red, green, blue and luminance, each with
zero mean and unit variance over the training pictures. No VAE: a latent is as large as its picture (64 x 64).
The text context is [1, 77, 768] with a vocabulary of two words, "photo" and "painting"; "" is the empty text.

    python benchmarks/tiny_denoiser.py train --data ../shared/data --out ~/denoiser --minutes 90
    python benchmarks/tiny_denoiser.py sample --weights ~/denoiser/denoiser.safetensors --sheet sheet.png

`load(path)` gives it as a MODEL: ComfyUI's own where ComfyUI is loaded, else the stand-in of the tests;
`PixelVAE` stands where a graph has a VAE, `encode_text` where it has CLIP Text Encode.

Three departures from common practice, all for one hour on a part of one CPU core: hidden matrices are trained
with Muon (orthogonalised momentum) beside AdamW, crops grow from 16 to 32 to 64 pixels while training, and
cross-attention projects the four words there are instead of 77 tokens per picture.
"""

import argparse
import hashlib
import importlib
import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

log = logging.getLogger("tiny_denoiser")
TESTS = Path(__file__).resolve().parents[1] / "tests" / "diffusion"
CONFIG = {
    "model_channels": 64,
    "channel_mult": (1, 1, 1, 1),
    "num_res_blocks": (2, 2, 2, 2),
    "transformer_depth": (1, 1, 1, 1, 1, 1, 0, 0),
    "transformer_depth_output": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0),
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 4,
}
MEAN = (0.52, 0.49, 0.435, 0.49)  # of red, green, blue, luminance over the training crops
STD = (0.275, 0.265, 0.275, 0.26)
LUMINANCE = (0.299, 0.587, 0.114)
TEXTS = ("photo", "painting", "")


def tiny(name: str):
    """A module of tests/diffusion: a folder that is no package, seen here as one under another name."""
    package = "reelbrush_tiny"
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(TESTS)]
    return importlib.import_module(f"{package}.{name}")


# -- pictures and texts ----------------------------------------------------------------------------


def _channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


class PixelVAE:
    """IMAGE [N, H, W, 3] <-> latent [N, 4, H, W] of the same size; the methods that VAE nodes call."""

    def encode(self, pixels: Tensor) -> Tensor:
        rgb = pixels[..., :3].movedim(-1, 1)
        both = torch.cat([rgb, (rgb * _channel(LUMINANCE, rgb)).sum(1, keepdim=True)], dim=1)
        return (both - _channel(MEAN, rgb)) / _channel(STD, rgb)

    def decode(self, latent: Tensor) -> Tensor:
        both = latent * _channel(STD, latent) + _channel(MEAN, latent)
        rgb, luminance = both[:, :3], both[:, 3:]
        own = (rgb * _channel(LUMINANCE, rgb)).sum(1, keepdim=True)
        return (rgb + (luminance - own) / 2).clamp(0, 1).movedim(1, -1)  # the two luminances averaged

    encode_tiled, decode_tiled = encode, decode


def encode_text(text: str) -> list:
    """CONDITIONING of a text: one fixed random vector per word; the rest of the 77 tokens is padding."""

    return [[torch.stack([_vector(word) for word in _tokens(text)])[None], {}]]


def _tokens(text: str) -> list[str]:
    words = ["<start>", *text.lower().split()][:77]
    return words + ["<pad>"] * (77 - len(words))


def _vector(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(768, generator=torch.Generator().manual_seed(seed))


class Pictures:
    """Random crops of the photographs and paintings below a data folder."""

    def __init__(self, data: Path, side: int = 72):
        import cv2

        self.groups: list[list[Tensor]] = []
        for name, sides in (("content", (side,)), ("style", (side, 2 * side))):
            group = []
            for path in sorted((data / name).glob("*.jp*g")):
                image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
                for short in sides:
                    scale = short / min(image.shape[:2])
                    size = [max(short, round(n * scale)) for n in image.shape[1::-1]]
                    group.append(torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA)))
            self.groups.append(group)

    def batch(self, count: int, size: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` latents and the number of each one's text in TEXTS; a third of the texts is dropped."""
        crops, texts = [], []
        for _ in range(count):
            painting = torch.rand((), generator=g).item() < 0.35
            group = self.groups[painting]
            image = group[int(torch.randint(len(group), (), generator=g))]
            top, left = (int(torch.randint(n - size + 1, (), generator=g)) for n in image.shape[:2])
            crop = image[top : top + size, left : left + size]
            crops.append(crop.flip(1) if torch.rand((), generator=g).item() < 0.5 else crop)
            texts.append(2 if torch.rand((), generator=g).item() < 0.33 else int(painting))
        return PixelVAE().encode(torch.stack(crops).float() / 255), torch.tensor(texts)


# -- training --------------------------------------------------------------------------------------


def alphas_cumprod() -> Tensor:
    """SD's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024)."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - group["momentum"])
                m = p.grad.lerp(kept, group["momentum"]).flatten(1)
                wide = m.shape[0] <= m.shape[1]
                x = (m if wide else m.T) / (m.norm() + 1e-7)
                for _ in range(5):
                    square = x @ x.T
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                x = x if wide else x.T
                scale = max(1.0, p.shape[0] / p[0].numel()) ** 0.5
                p.mul_(1 - group["lr"] * 0.02).add_(x.view_as(p), alpha=-group["lr"] * scale)


def _start(network: nn.Module) -> None:
    """Every residual branch starts at zero, so that depth costs nothing at first."""
    for name, module in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _share_words(network: nn.Module) -> None:
    """While training, a context is a number in TEXTS: its four words are projected once for all rows."""
    words = sorted({w for text in TEXTS for w in _tokens(text)})
    vectors = torch.stack([_vector(w) for w in words])
    rows = torch.tensor([[words.index(w) for w in _tokens(text)] for text in TEXTS])
    for name, layer in network.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.forward = lambda texts, layer=layer: (vectors @ layer.weight.T)[rows[texts]]


def train(data: Path, out: Path, minutes: float, seed: int) -> None:
    """Train for so many minutes; the smoothed weights go to `out/denoiser.safetensors` every five."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    pictures, abar = Pictures(data), alphas_cumprod()
    network = tiny("tiny_unet").TinyUNet(**CONFIG).to(memory_format=torch.channels_last)
    _start(network)
    _share_words(network)
    hidden = [p for n, p in network.named_parameters() if p.ndim > 1 and "_block" in n]
    hidden = [p for p in hidden if p is not network.input_blocks[0][0].weight]
    others = [p for p in network.parameters() if not any(p is h for h in hidden)]
    optimizers = [Muon(hidden, 0.02), torch.optim.AdamW(others, 3e-3, betas=(0.9, 0.98), weight_decay=0.0)]
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    smooth = {k: v.clone() for k, v in network.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    begin = saved = shown = time.monotonic()
    step, losses = 0, torch.zeros(4, 2)
    while (spent := (time.monotonic() - begin) / (60 * minutes)) < 1:
        size, count = (16, 16) if spent < 0.45 else (32, 8) if spent < 0.85 or step % 4 else (64, 3)
        clean, text = pictures.batch(count, size, g)
        # Stratified timesteps; a weight between noise and picture error, so that no level drowns another.
        t = ((torch.arange(count) + torch.rand(count, generator=g)) * (1000 / count)).long().clamp(max=999)
        a = abar[t][:, None, None, None]
        noise = torch.randn(clean.shape, generator=g)
        predicted = network(a.sqrt() * clean + (1 - a).sqrt() * noise, t.float(), text)
        each = mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
        weight = (1 + abar[t] / (1 - abar[t]) / 2) ** -0.5
        rate = min(1.0, (step + 1) / 50) * min(1.0, max(0.03, (1 - spent) / 0.45))
        for optimizer, base in zip(optimizers, rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            optimizer.param_groups[0]["lr"] = base * rate
        (each * weight).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        with torch.no_grad():
            for key, value in network.state_dict().items():
                smooth[key].lerp_(value, 1 - min(0.995, step / (step + 10)))
            for quarter, value in zip((t // 250).tolist(), each.tolist(), strict=True):
                losses[quarter] = losses[quarter] * 0.98 + torch.tensor([value, 1.0]) * 0.02
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            loss = " ".join(f"{a / max(b, 1e-6):.4f}" for a, b in losses.tolist())
            log.info(
                "%5.1f min, step %d, size %d: loss by quarter of t %s", spent * minutes, step, size, loss
            )
        if time.monotonic() - saved > 300:
            saved = time.monotonic()
            save(smooth, out / "denoiser.safetensors", {"minutes": round(spent * minutes, 1), "steps": step})
    save(smooth, out / "denoiser.safetensors", {"minutes": minutes, "steps": step})


def save(weights: dict[str, Tensor], path: Path, training: dict) -> None:
    """Half precision, the layout in the metadata; replaced in one move, so that readers see whole files."""
    half = {k: v.half().contiguous() for k, v in weights.items()}
    partial = path.with_suffix(".part")
    save_file(half, partial, {"config": json.dumps(CONFIG), "training": json.dumps(training)})
    partial.replace(path)


# -- use -------------------------------------------------------------------------------------------


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Weights in float32, and the layout that the file names."""
    with safe_open(path, "pt") as file:
        weights = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118 (no mapping)
        return weights, json.loads(file.metadata()["config"])


def load(path: str | Path):
    """The denoiser as a MODEL: ComfyUI's ModelPatcher where ComfyUI is loaded, else the tests' stand-in."""
    weights, config = read(path)
    make = tiny("tiny").comfy_model if "folder_paths" in sys.modules else tiny("tiny").tiny_model
    return make(config, weights, scale=1.0)


@torch.inference_mode()
def sheet(weights: Path, picture: Path, data: Path | None, steps: int, size: int, seed: int) -> None:
    """Samples from noise (photo, painting), and pictures noised to three levels and denoised from there."""
    import cv2

    model, stand_in, vae = load(weights), tiny("tiny"), PixelVAE()
    schedule = model.get_model_object("model_sampling").sigmas
    g = torch.Generator().manual_seed(seed)
    rows = []
    for text in ("photo", "painting"):
        noise = torch.randn(6, 4, size, size, generator=g)
        rows.append(_draw(stand_in, model, noise, torch.zeros_like(noise), schedule, 999, steps, text))
    if data is not None:
        shown, _ = Pictures(data).batch(6, size, g)
        noise = torch.randn(shown.shape, generator=g)
        rows += [shown]
        rows += [_draw(stand_in, model, noise, shown, schedule, t, steps, "") for t in (800, 500, 200)]
    image = torch.cat([torch.cat(list(vae.decode(row)), dim=1) for row in rows], dim=0)
    image = cv2.resize((image * 255).byte().numpy()[..., ::-1], None, fx=3, fy=3, interpolation=0)
    cv2.imwrite(str(picture), image)


def _draw(stand_in, model, noise: Tensor, latent: Tensor, schedule: Tensor, top: int, steps: int, text: str):
    levels = torch.linspace(top, 0, max(2, steps * top // 999)).round().long()
    sigmas = torch.cat([schedule[levels], torch.zeros(1)])
    return stand_in.sample(model, stand_in.euler, latent, sigmas, encode_text(text), noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train on the pictures of a data folder")
    training.add_argument("--data", type=Path, required=True, help="a folder with content/ and style/")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=90)
    training.add_argument("--seed", type=int, default=0)
    showing = commands.add_parser("sample", help="draw a sheet of samples")
    showing.add_argument("--weights", type=Path, required=True)
    showing.add_argument("--sheet", type=Path, required=True)
    showing.add_argument("--data", type=Path, help="also denoise pictures of this folder")
    showing.add_argument("--steps", type=int, default=20)
    showing.add_argument("--size", type=int, default=64)
    showing.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if a.command == "train":
        train(a.data, a.out, a.minutes, a.seed)
    else:
        sheet(a.weights, a.sheet, a.data, a.steps, a.size, a.seed)


if __name__ == "__main__":
    main()
