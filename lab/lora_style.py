"""Style LoRAs of single pictures, trained on the small private denoiser (lab/tiny_denoiser.py).

    python lab/lora_style.py train --weights ~/denoiser --data ../shared/data --out ~/loras
    python lab/lora_style.py table --weights ~/denoiser --data ../shared/data --out ~/loras

`train`: one LoRA per picture with the code of Train Style LoRA, written to OUT/output/loras. A stopped
training continues when it is started again. The paper's recipe is the default. On this narrow network it
transfers shapes; with `--learning-rate 1e-3` it transfers colours too.
`table`: eq. 3's loss of every LoRA, and of the base model, on every picture, at noises and timesteps that no
training used, the same for all. The products of the LoRA are added to a copy of the weights. The lines below
the table say whether each LoRA has the lowest loss on its own picture, and by how many standard errors.
"""

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from reelbrush.lab import tiny_denoiser
from reelbrush.lab.made_styles import MADE, style_picture
from reelbrush.lab.tiny_words import encode_text
from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.diffusion.lora.train import LoRARecipe, places, train

TEXT = "painting"


def style_latents(args: argparse.Namespace) -> dict[str, Tensor]:
    """Latents of the style pictures by name, in tiles: [tiles * tiles, 4, size / tiles, size / tiles]."""
    latents, n, vae = {}, args.tiles, tiny_denoiser.load_vae(args.weights)
    for name in args.styles:
        whole = vae.encode(style_picture(args.data, name, args.size))
        latents[name] = torch.cat([tile for row in whole.chunk(n, 2) for tile in row.chunk(n, 3)])
    return latents


@torch.inference_mode()
def train_all(args: argparse.Namespace) -> None:
    """A LoRA for every picture. Finished ones are skipped."""
    model, text = tiny_denoiser.load(args.weights), encode_text(TEXT)
    recipe = LoRARecipe(args.rank, args.steps, args.learning_rate, args.projections, args.seed)
    for name, latent in style_latents(args).items():
        if places(Path(name).stem)[0].exists() and not args.again:
            continue
        start = time.monotonic()
        train(model, latent, text, recipe, Path(name).stem)
        sys.stdout.write(f"{name}: {time.monotonic() - start:.0f} s\n")


def merged(network: nn.Module, style: lora.StyleLoRA | None, strength: float = 1.0) -> nn.Module:
    """A copy of the network with the LoRA's products added to its weights."""
    network = copy.deepcopy(network)
    for path, change in (style.weights if style else {}).items():
        network.get_submodule(path).weight.data += strength * change.scale * change.up @ change.down
    return network


def held_out_losses(network: nn.Module, clean: Tensor, draws: int, seed: int) -> Tensor:
    """Eq. 3's mean square at `draws` timesteps, evenly from 0 to 999, each with its own noise: [draws]."""
    g = torch.Generator().manual_seed(seed)
    abar, text, losses = tiny_denoiser.alphas_cumprod(), encode_text(TEXT)[0][0], []
    for t in ((torch.arange(draws) + 0.5) * 1000 / draws).long().tolist():
        noise = torch.randn(clean.shape, generator=g)
        z = abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise
        predicted = network(z, torch.full((len(z),), float(t)), context=text.expand(len(z), -1, -1))
        losses.append((noise - predicted).square().mean())
    return torch.stack(losses)


@torch.inference_mode()
def table(args: argparse.Namespace) -> None:
    """Losses by LoRA (rows) and picture (columns)."""
    base, pictures = tiny_denoiser.load(args.weights).model.diffusion_model, style_latents(args)
    loras = {name: lora.load(places(Path(name).stem)[0]) for name in pictures}
    sys.stdout.write(f"{'LoRA':>12} " + " ".join(f"{Path(c).stem:>12}" for c in pictures) + "\n")
    losses: dict[str, dict[str, Tensor]] = {}
    for name, style in {"none": None, **loras}.items():
        network, seed = merged(base, style), 1_000_000 + args.seed
        losses[name] = {p: held_out_losses(network, z, args.draws, seed) for p, z in pictures.items()}
        line = " ".join(f"{float(v.mean()):12.5f}" for v in losses[name].values())
        sys.stdout.write(f"{Path(name).stem:>12} {line}\n")
    for name in loras:
        for other in set(losses) - {name}:
            less = losses[other][name] - losses[name][name]
            error = max(float(less.std()) / len(less) ** 0.5, 1e-12)
            lower = float(less.mean() / losses[other][name].mean())
            verdict = "below" if float(less.mean()) > 0 else "NOT BELOW"
            sys.stdout.write(
                f"on {Path(name).stem}: its LoRA is {verdict} {Path(other).stem}, by {lower:.1%}, "
                f"{float(less.mean()) / error:.1f} standard errors of the paired difference\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["train", "table"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--styles", nargs="*", default=list(MADE), help="glass, lines, or file names in style/"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=1, help="train on a batch of tiles: this many per side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--projections", default="q,k,v")
    parser.add_argument("--again", action="store_true", help="continue finished ones (more --steps)")
    parser.add_argument("--draws", type=int, default=40, help="held-out timesteps per picture")
    args = parser.parse_args()
    os.environ["REELBRUSH_HOME"] = str(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    (train_all if args.command == "train" else table)(args)


if __name__ == "__main__":
    main()
