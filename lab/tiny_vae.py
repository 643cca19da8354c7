"""The autoencoder of tiny_denoiser.py: pictures whose sides are multiples of 8 <-> latents of four channels.

It has the layout and key names of TAESD (madebyollin/taesd), so that ComfyUI's own Load VAE reads it:
convolutions and ReLU only, 2.4 M parameters. Latents have about zero mean and unit variance.

The losses are L1, the distance of SqueezeNet's features, and the distance of the features' second moments in
cells of about 16 pixels. The last one keeps texture that a pixel loss would blur. Noise on the latents, and
pictures decoded from halved latents, keep the latent space smooth (Skorokhodov et al. 2025).
"""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, l1_loss

from reelbrush.lab.tiny_training import Clock, Maps, Optimizer, fast_convolutions
from reelbrush.nodes.common.perceptual import load_perceptual

log = logging.getLogger("tiny_denoiser")
WIDTH, CHANNELS, FACTOR = 64, 4, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()


class Bound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x / 3).tanh()


def encoder() -> nn.Sequential:
    layers = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
    for _ in range(3):
        down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)
        layers += [down, Block(), Block(), Block()]
    return nn.Sequential(*layers, nn.Conv2d(WIDTH, CHANNELS, 3, padding=1))


def decoder() -> nn.Sequential:
    layers = [Bound(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv]
    return nn.Sequential(*layers, Block(), nn.Conv2d(WIDTH, 3, 3, padding=1))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.taesd_encoder, self.taesd_decoder = encoder(), decoder()
        self.vae_scale, self.vae_shift = (nn.Parameter(torch.tensor(v), False) for v in (1.0, 0.0))

    def encode(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 -> [N, 4, H/8, W/8]."""
        return self.taesd_encoder(x) / self.vae_scale + self.vae_shift

    def decode(self, latent: Tensor) -> Tensor:
        return self.taesd_decoder((latent - self.vae_shift) * self.vae_scale)


class VAE:
    """A VAE for the nodes: IMAGE [N, H, W, 3] <-> latent [N, 4, H/8, W/8]."""

    def __init__(self, path: str | Path):
        self.first_stage_model = Autoencoder()
        self.first_stage_model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        self.first_stage_model.train(False).requires_grad_(False)

    def encode(self, pixels: Tensor) -> Tensor:
        height, width = (n // FACTOR * FACTOR for n in pixels.shape[1:3])
        return self.first_stage_model.encode(pixels[:, :height, :width, :3].movedim(-1, 1))

    def decode(self, latent: Tensor) -> Tensor:
        return self.first_stage_model.decode(latent).clamp(0, 1).movedim(1, -1)

    encode_tiled, decode_tiled = encode, decode


# -- training --------------------------------------------------------------------------------------


def initialize(network: nn.Module, images: Tensor) -> None:
    """Initial weights: latents of these images have unit variance, decoded images are grey."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if name.endswith("conv.4"):
                layer.weight.data.mul_(0.2)
    with torch.no_grad():
        network.taesd_decoder[-1].weight.mul_(0.1)
        network.taesd_decoder[-1].bias.fill_(0.5)
        latent = network.taesd_encoder(images)
        mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        network.taesd_encoder[-1].weight.div_(std[:, None, None, None])
        network.taesd_encoder[-1].bias.copy_(-mean / std)


def texture(features: Tensor, cell: int = 8) -> Tensor:
    """Second moments of the features in each square cell of features: [N * cells, C, C]."""
    n, channels, height, width = features.shape
    rows, columns = height // cell, width // cell
    cells = features[:, :, : rows * cell, : columns * cell]
    cells = cells.reshape(n, channels, rows, cell, columns, cell).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(-1, channels, cell * cell)
    return cells @ cells.mT / cell**2


def relative(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-6)


def perceptual_distances(
    network: nn.Module, made: Tensor, real: Tensor, phase: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Distances of features and of textures. The phase shifts the grid of the strided first layer."""
    half = made.is_cuda
    with torch.autocast(made.device.type, torch.bfloat16, enabled=half):
        a, b = (network(x[:, :, phase[0] :, phase[1] :]) for x in (made, real))
        features = [relative(a[n], b[n]) for n in ("conv1", "fire3", "fire5")]
        textures = [relative(texture(a[n]), texture(b[n])) for n in ("conv1", "fire3")]
    return sum(features), sum(textures)


def train(
    pictures: Maps, squeezenet: Path, out: Path, minutes: float, batch: int, dtype: torch.dtype, seed: int
) -> Autoencoder:
    """Train for some minutes. The smoothed weights are written to `out/vae.safetensors` every minute."""
    device = pictures.values.device
    g = torch.Generator(device).manual_seed(seed)
    judge = load_perceptual(squeezenet).to(device)
    network = Autoencoder().to(device)
    initialize(network, pictures.crops(16, 128, g)[0].permute(0, 3, 1, 2).float() / 255)
    network = network.to(device, dtype, memory_format=torch.channels_last)
    parts = nn.ModuleDict({"taesd_encoder": network.taesd_encoder, "taesd_decoder": network.taesd_decoder})
    optimizer = Optimizer(parts, lambda n: ".conv" in n or is_resampling(n), 0.01, 1e-3)
    clock, sums = Clock(minutes), torch.zeros(6, device=device)
    with fast_convolutions():
        while clock.spent < 1:
            step = optimizer.steps
            size, count = (128, batch) if step % 2 else (256, max(1, batch // 4))
            real = pictures.crops(count, size, g)[0].permute(0, 3, 1, 2).float() / 255
            real = real.contiguous(memory_format=torch.channels_last)
            latent = network.taesd_encoder(real.to(dtype)).float()
            normal = torch.randn(latent.shape, generator=g, device=device)
            noise = normal * torch.rand(count, 1, 1, 1, generator=g, device=device) * 0.15
            made = network.taesd_decoder((latent + noise).to(dtype)).float()
            halved = network.taesd_decoder(avg_pool2d(latent, 2).to(dtype)).float()
            pixel, smaller = l1_loss(made, real), l1_loss(halved, avg_pool2d(real, 2))
            features, textures = perceptual_distances(judge, made, real, (step // 2 % 2, step // 4 % 2))
            mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
            moments = mean.square().mean() + (std - 1).square().mean()
            loss = 2 * pixel + 0.5 * smaller + 0.1 * features + 0.05 * textures + 0.3 * moments
            loss.backward()
            optimizer.step(clock.rate(step))
            losses = [pixel, smaller, features, textures, moments, torch.ones_like(pixel)]
            sums += torch.stack(losses).detach()
            if clock.due("report", 10):
                mean = (sums[:5] / sums[5]).tolist()
                log.info(
                    "vae %3.0f s, step %d: L1 %.4f, halved %.4f, features %.3f, texture %.3f, moments %.4f",
                    clock.spent * clock.seconds,
                    optimizer.steps,
                    *mean,
                )
                sums.zero_()
                optimizer.check(all(abs(v) < 1e4 for v in mean))
            if clock.due("save", 60):
                save(optimizer.smoothed(), out)
    save(optimizer.smoothed(), out)
    network = network.float()
    network.load_state_dict(optimizer.smoothed(), strict=False)
    network = network.to(device, torch.float32).train(False).requires_grad_(False)
    log.info("vae: %d steps", optimizer.steps)
    return network


def is_resampling(name: str) -> bool:
    """True for the convolutions that change the size; other numbered layers are first or last layers."""
    return name in {f"taesd_encoder.{n}.weight" for n in (2, 6, 10)} | {
        f"taesd_decoder.{n}.weight" for n in (7, 12, 17)
    }


def save(weights: dict[str, Tensor], out: Path, scale: float = 1.0, shift: float = 0.0) -> None:
    """Half precision. The file appears under its name when it is complete."""
    half = {k: v.detach().half().cpu().contiguous() for k, v in weights.items()}
    half |= {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    partial = out / "vae.part"
    save_file(half, partial)
    partial.replace(out / "vae.safetensors")


@torch.no_grad()
def set_scale(network: Autoencoder, latents: Tensor, out: Path) -> None:
    """Give the latents [n, 4] unit variance through the scale in the file."""
    std = latents.float().std(0).square().mean().sqrt().item()
    network.vae_scale.fill_(std)
    named = {k: v for k, v in network.state_dict().items() if k.startswith("taesd")}
    save(named, out, std)
    mean, each = latents.float().mean(0), latents.float().std(0)
    log.info(
        "vae: latents divided by %.4f; means %s, deviations before %s",
        std,
        [round(v, 3) for v in mean.tolist()],
        [round(v, 3) for v in each.tolist()],
    )


@torch.no_grad()
def encode_at(network: Autoencoder, image: Tensor, side: int, dtype: torch.dtype, shift: int = 0) -> Tensor:
    """A picture [H, W, 3] with a short side of `side` pixels, and its mirror image: [2, h, w, 4 + 3].

    The last three channels are the mean colours of each latent pixel.
    """
    x = image.permute(2, 0, 1)[None].float() / 255
    least, side = side, side + 8 * (shift > 0)
    scale = side / min(x.shape[2:])
    size = [max(side, round(n * scale)) for n in x.shape[2:]]
    if size != list(x.shape[2:]):
        x = interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    height, width = (max(least, (n - shift) // 32 * 32) for n in size)  # few shapes: cuDNN plans each
    x = x[:, :, shift : shift + height, shift : shift + width]
    x = torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        latent = network.encode(x).float()
    return torch.cat([latent, avg_pool2d(x, FACTOR)], dim=1).permute(0, 2, 3, 1)
