"""A small image/text scorer for AttnStyle's benchmarks, trained in five minutes of one CPU thread.

    python lab/attnstyle_judge.py --pictures FOLDER... --out judge.safetensors

Two networks embed pictures and texts into one space, as in CLIP. The image network is convolutional; its
embedding is the mean of its patch tokens. The text network sees a bag of known words. The meaning of a word
is computed from the picture (`measures`): hue shares, brightness, gradient energy. A picture's target is a
softmax over its standardized measures; "photo" is the word for a picture in which nothing is prominent.
Pictures are tinted, darkened, blurred, striped and roughened at random, so that every word occurs in all
strengths. Half of each batch is perturbed along the gradient's sign, which makes it harder to raise the score
by invisible noise.

The pictures whose number in the sorted list is divisible by `HELD_OUT` are not used in training.
"""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, gelu, grid_sample, interpolate, normalize

from reelbrush.lab.pictures import square
from reelbrush.nodes.attnstyle.judge import EmbeddingJudge

log = logging.getLogger("attnstyle_judge")

WORDS = (
    *("red", "golden", "green", "blue", "purple", "gray", "dark", "bright", "smooth", "rough"),
    "photo",
)
HUES = {"red": 0.0, "golden": 50.0, "green": 120.0, "blue": 220.0, "purple": 295.0}
SIZE = 64
HELD_OUT = 10
SHARPNESS = 2.0
PHOTO = 1.0  # the target is "photo" if no measure exceeds this many deviations


# -- measures of the words ---------------------------------------------------------------------------


def measures(x: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in 0..1 to [N, 10]: how much of each word (all but "photo") is in them."""
    high, low = x.amax(1), x.amin(1)
    chroma, luma = high - low, x.mean(1)
    a = x[:, 0] - 0.5 * (x[:, 1] + x[:, 2])
    b = 3**0.5 / 2 * (x[:, 1] - x[:, 2])
    hue = torch.atan2(b, a)
    shares = [
        (chroma * (1 - _angle(hue, math.radians(degrees)) / math.radians(45)).clamp_min(0)).mean((-1, -2))
        for degrees in HUES.values()
    ]
    dx = luma[:, :-1, 1:] - luma[:, :-1, :-1]
    dy = luma[:, 1:, :-1] - luma[:, :-1, :-1]
    energy = (dx.square() + dy.square()).mean((-1, -2)).clamp_min(1e-8)
    rough = (energy / 0.01).log()
    return torch.stack(
        [
            *shares,
            -chroma.mean((-1, -2)).clamp_min(1e-3).log(),
            -luma.mean((-1, -2)),
            luma.mean((-1, -2)),
            -rough,
            rough,
        ],
        dim=1,
    )


def _angle(a: Tensor, b: float) -> Tensor:
    return (torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi).abs()


def target(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The target distribution over WORDS, [N, 11]."""
    z = (measures(x) - mean) / std
    z = torch.cat([z, torch.full_like(z[:, :1], PHOTO)], dim=1)
    return (SHARPNESS * z).softmax(1)


# -- the two towers --------------------------------------------------------------------------------


class Towers(nn.Module):
    """Image tower: 64x64 to 8x8 tokens of 64 numbers. Text tower: the mean of the known words."""

    def __init__(self, width: int = 64):
        super().__init__()
        shape = [(3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 96, 2)]
        self.blocks = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, 1, padding_mode="reflect") for a, b, stride in shape
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(8, b) if i else nn.Identity() for i, (_, b, _) in enumerate(shape)
        )
        self.project = nn.Conv2d(96, width, 1)
        self.words = nn.Embedding(len(WORDS), width)
        self.read = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def tokens(self, x: Tensor) -> Tensor:
        """[N, 3, 64, 64] in 0..1 to [N, 64 patches, D]."""
        x = x * 2 - 1
        for block, norm in zip(self.blocks, self.norms, strict=True):
            # half a normalisation: a texture's amplitude is part of what the words mean
            x = gelu(block(x))
            x = 0.5 * (x + norm(x))
        return self.project(x).flatten(2).transpose(1, 2)

    def image(self, x: Tensor) -> Tensor:
        return normalize(self.tokens(x).mean(1), dim=-1)

    def text(self, texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            known = [WORDS.index(w) for w in text.lower().replace(",", " ").split() if w in WORDS]
            rows.append(self.words.weight[known or [WORDS.index("photo")]].mean(0))
        return normalize(self.read(torch.stack(rows)), dim=-1)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=50.0)

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * self.image(x) @ self.text(list(WORDS)).T


# -- pictures --------------------------------------------------------------------------------------


def picture_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))


def load(files: list[Path], side: int) -> Tensor:
    """uint8 [N, 3, side, side]: the center square of each picture."""
    pictures = torch.cat([square(file, side) for file in files])
    return (pictures * 255).round().byte().permute(0, 3, 1, 2).contiguous()


def vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random tint, saturation, exposure, blur, grain and stripes; each on about half of the pictures."""
    n, _, h, w = x.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    def some(p: float) -> Tensor:
        return (draw(1, 1, 1) < p).float()

    luma = x.mean(1, keepdim=True)
    x = luma + (x - luma) * (1 + some(0.5) * (draw(1, 1, 1) * 2 - 1))
    color = torch.eye(3)[torch.randint(3, (n,), generator=generator)][..., None, None]
    color = (color + draw(3, 1, 1) * 0.9).clamp(max=1)
    color = color / color.mean(1, keepdim=True)
    x = x + some(0.6) * draw(1, 1, 1) * (luma * color - x)
    x = x.clamp(1e-3, 1) ** torch.exp(some(0.5) * (draw(1, 1, 1) * 2 - 1) * 1.2)
    x = x * (1 - some(0.2) * draw(1, 1, 1) * 0.8)
    x = x + some(0.15) * draw(1, 1, 1) * 0.8 * (1 - x)
    small = interpolate(x, scale_factor=0.25, mode="area")
    blurred = interpolate(small, size=(h, w), mode="bicubic", align_corners=False)
    x = x + some(0.3) * draw(1, 1, 1) * (blurred - x)
    x = x + some(0.3) * draw(1, 1, 1) * 0.25 * torch.randn(n, 1, h, w, generator=generator)
    yy, xx = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    angle, frequency = draw(1, 1, 1) * math.pi, 4 + 16 * draw(1, 1, 1)
    wave = torch.sin((xx * angle.cos() + yy * angle.sin()) * frequency * 2 * math.pi + draw(1, 1, 1) * 6)
    x = x + some(0.25) * draw(1, 1, 1) * 0.35 * wave * (draw(3, 1, 1) * 0.5 + 0.5)
    return x.clamp(0, 1)


def crops(pool: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n random squares of random pictures, [n, 3, 64, 64] in 0..1."""
    pick = torch.randint(len(pool), (n,), generator=generator)
    scale = 0.4 + 0.6 * torch.rand(n, generator=generator)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - scale[:, None])
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = affine_grid(theta, (n, 3, SIZE, SIZE), align_corners=False)
    return grid_sample(pool[pick].float() / 255, grid, align_corners=False, padding_mode="reflection")


class WordJudge(EmbeddingJudge):
    """The trained towers as AttnStyle's judge."""

    size, mean, std = SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, path: Path):
        tensors = load_file(path)
        self.stats = {k: tensors[k] for k in ("mean", "std")}
        self.net = Towers()
        self.net.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("towers.")})
        self.net.requires_grad_(False).train(False)
        self.scale = float(self.net.scale)

    def text(self, texts: list[str]) -> Tensor:
        return self.net.text(texts)

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.net.tokens(pixels)
        return tokens.mean(1), tokens

    def words(self, images: Tensor) -> Tensor:
        """[N, 11]: the probability of every word."""
        return self.probability(images, list(WORDS))


# -- training --------------------------------------------------------------------------------------


def train(pool: Tensor, steps: int, seed: int = 0) -> tuple[Towers, dict[str, Tensor]]:
    """The trained networks, and the statistics of the measures."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    plain = measures(crops(pool, 2048, generator))
    mean, std = plain.mean(0), plain.std(0)
    std[: len(HUES)] = std[: len(HUES)].max()  # one unit of color for all hues: purple is rare
    towers = Towers().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=2e-3, weight_decay=1e-3)
    start = time.process_time()
    for step in range(steps):
        rate = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 50) * rate
        x = vary(crops(pool, 48, generator), generator)
        goal = target(x, mean, std)
        # the worst of a small box around half of the pictures, by one signed step
        hard = x[:24].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(-(goal[:24] * towers.logits(hard).log_softmax(1)).sum(), hard)
        x = torch.cat([(hard.detach() + 0.03 * slope.sign()).clamp(0, 1), x[24:]])
        loss = -(goal * towers.logits(x).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            least = -(goal * goal.clamp_min(1e-9).log()).sum(1).mean()
            log.info(
                "step %d, %.0f s of CPU: cross entropy %.3f (at least %.3f)",
                *(step, time.process_time() - start, loss.item(), least.item()),
            )
    return towers.train(False), {"mean": mean, "std": std}


def agreement(towers: Towers, stats: dict[str, Tensor], pool: Tensor) -> tuple[float, float]:
    """On held-out pictures: mean |P - target|, and how often the first word is the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        x = vary(crops(pool, 512, generator), generator)
        goal, got = target(x, stats["mean"], stats["std"]), towers.logits(x).softmax(1)
    same = (goal.argmax(1) == got.argmax(1)).float().mean()
    return (goal - got).abs().mean().item(), same.item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1100)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = [picture_files(folder) for folder in args.pictures]
    unseen = [f for names in files for f in names[::HELD_OUT]]
    seen = [f for names in files for f in names if f not in set(unseen)]
    towers, stats = train(load(seen, 96), args.steps)
    error, same = agreement(towers, stats, load(unseen, 96))
    log.info("held-out pictures: mean |P - target| %.4f, first word the same in %.1f%%", error, 100 * same)
    tensors = {f"towers.{k}": v for k, v in towers.state_dict().items()} | stats
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.out)


if __name__ == "__main__":
    main()
