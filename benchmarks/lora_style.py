"""Style LoRAs of single pictures, seen to work on the denoiser of our own (benchmarks/tiny_denoiser.py).

    python benchmarks/lora_style.py train --weights ~/denoiser --data ../shared/data --out ~/loras
    python benchmarks/lora_style.py table --weights ~/denoiser --data ../shared/data --out ~/loras
    python benchmarks/lora_style.py sheet --weights ~/denoiser --data ../shared/data --out ~/loras

`train`: one LoRA per picture with the code of Train Style LoRA, to OUT/output/loras. It may be ended at any
time and goes on when it is started again, so it can run in short pieces (`--minutes`). The paper's recipe
unless told otherwise: on this narrow network it brings the shapes, `--learning-rate 1e-3` the colours, too.
`table`: eq. 3's loss of every LoRA, and of none, on every picture, at noises and timesteps that no training
has seen, the same for all; literally, with the products added to a copy of the weights. Lines below it say
whether each LoRA has the lowest loss on its own picture, and by how many standard errors.
`routes` (COMFYUI_PATH=...): in a real ComfyUI, the saved LoRAs through core LoraLoaderModelOnly and through
Load and Apply Style LoRA: the relative difference of what a 4-step sampling gives.
`sheet`: a column per picture and LoRA. Rows: the style, samples from noise, and photographs noised half way
(--strength) and drawn from there; the first column is the denoiser without a LoRA, from the same noises.
"""

import argparse
import copy
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

if "COMFYUI_PATH" in os.environ:  # before the pack, which looks whether it is inside one
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    given_, sys.argv = sys.argv, [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import folder_paths  # noqa: F401 - the pack looks whether it is there

    sys.argv = given_

import cv2
import tiny_denoiser as own
import torch
from made_styles import style_picture
from pictures import square
from torch import Tensor
from zstar_pictures import CONTENTS

from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.diffusion.lora.train import LoRARecipe, places, train

STYLES = ("glass", "lines")  # made_styles.py
TEXT = "painting"


class TimeIsUp(Exception):  # noqa: N818 - it is no error
    """The piece that was asked for is done."""


def styles(given: argparse.Namespace) -> dict[str, Tensor]:
    """Latents of the style pictures by name, in tiles: [tiles * tiles, 4, size / tiles, size / tiles]."""
    found, n, vae = {}, given.tiles, own.load_vae(given.weights)
    for name in given.styles or STYLES:
        whole = vae.encode(style_picture(given.data, name, given.size))
        found[name] = torch.cat([tile for row in whole.chunk(n, 2) for tile in row.chunk(n, 3)])
    return found


def trained(given: argparse.Namespace) -> dict[str, lora.StyleLoRA]:
    """The LoRAs that `train` has finished."""
    return {name: lora.load(places(Path(name).stem)[0]) for name in styles(given)}


def train_all(given: argparse.Namespace) -> None:
    """A LoRA for every picture; what is finished is left alone."""
    model, text = own.load(given.weights), own.encode_text(TEXT)
    recipe = LoRARecipe(given.rank, given.steps, given.learning_rate, given.projections, given.seed)
    end = time.monotonic() + 60 * given.minutes
    from reelbrush.nodes.host import Progress

    def at(self: Progress, done: int, preview: object = None) -> None:
        if time.monotonic() > end:
            raise TimeIsUp

    Progress.at = at
    for name, latent in styles(given).items():
        if places(Path(name).stem)[0].exists() and not given.again:
            continue
        start = time.monotonic()
        with torch.inference_mode():
            train(model, latent, text, recipe, Path(name).stem)
        sys.stdout.write(f"{name}: {time.monotonic() - start:.0f} s in this piece\n")


def with_lora(
    network: torch.nn.Module, part: lora.StyleLoRA | None, strength: float = 1.0
) -> torch.nn.Module:
    """A copy of the network with the LoRA's products added to its weights."""
    network = copy.deepcopy(network)
    for path, change in (part.weights if part else {}).items():
        network.get_submodule(path).weight.data += strength * change.up @ change.down * change.scale
    return network


def held_out(network: torch.nn.Module, clean: Tensor, draws: int, seed: int) -> Tensor:
    """Eq. 3's mean square at `draws` timesteps, evenly from 0 to 999, each with its own noise: [draws]."""
    g = torch.Generator().manual_seed(seed)
    abar, text, found = own.alphas_cumprod(), own.encode_text(TEXT)[0][0], []
    for t in ((torch.arange(draws) + 0.5) * 1000 / draws).long().tolist():
        noise = torch.randn(clean.shape, generator=g)
        z = abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise
        said = network(z, torch.full((len(z),), float(t)), context=text.expand(len(z), -1, -1))
        found.append((noise - said).square().mean())
    return torch.stack(found)


@torch.inference_mode()
def table(given: argparse.Namespace) -> None:
    """Losses by LoRA (rows) and picture (columns)."""
    base = own.load(given.weights).model.diffusion_model
    pictures, loras = styles(given), trained(given)
    columns = [Path(name).stem for name in pictures]
    sys.stdout.write(f"{'LoRA':>12} " + " ".join(f"{c:>12}" for c in columns) + "\n")
    losses: dict[str, dict[str, Tensor]] = {}
    for name, part in {"none": None, **loras}.items():
        network = with_lora(base, part)
        losses[name] = {
            p: held_out(network, z, given.draws, 1_000_000 + given.seed) for p, z in pictures.items()
        }
        line = " ".join(f"{float(v.mean()):12.5f}" for v in losses[name].values())
        sys.stdout.write(f"{Path(name).stem:>12} {line}\n")
    for name in loras:
        for other in losses:
            if other != name:
                less = losses[other][name] - losses[name][name]
                error = float(less.std()) / len(less) ** 0.5
                lower = float(less.mean() / losses[other][name].mean())
                verdict = "below" if float(less.mean()) > 0 else "NOT BELOW"
                sys.stdout.write(
                    f"on {Path(name).stem}: its LoRA is {verdict} {Path(other).stem}, by {lower:.1%}, "
                    f"{float(less.mean()) / error:.1f} standard errors of the paired difference\n"
                )


@torch.inference_mode()
def sheet(given: argparse.Namespace) -> None:
    """Pictures to look at."""
    base, tools, vae = own.load(given.weights), own.tiny("tiny"), own.load_vae(given.weights)
    schedule = base.get_model_object("model_sampling").sigmas
    g = torch.Generator().manual_seed(given.seed)
    noise = torch.randn(given.samples, 4, given.sample_size, given.sample_size, generator=g)
    contents = torch.cat([square(given.data / "content" / n, given.size) for n in CONTENTS[: given.photos]])
    photos = vae.encode(contents)
    half, text = torch.randn(photos.shape, generator=g), own.encode_text(TEXT)

    def draw(model: object, noise: Tensor, latent: Tensor, top: int) -> Tensor:
        levels = torch.linspace(top, 0, max(2, given.sample_steps * top // 999)).round().long()
        sigmas = torch.cat([schedule[levels], torch.zeros(1)])
        return vae.decode(tools.sample(model, tools.euler, latent, sigmas, text, noise=noise))

    def shown(images: Tensor) -> list[Tensor]:
        return [
            torch.from_numpy(cv2.resize(i.numpy(), (192, 192), interpolation=cv2.INTER_AREA)) for i in images
        ]

    blank = torch.ones(1, 4, 4, 3)
    columns = [[*shown(blank.expand(1 + len(noise), -1, -1, -1)), *shown(contents)]]
    for name, part in {"": None, **trained(given)}.items():
        weights = with_lora(base.model.diffusion_model, part, given.lora_strength).state_dict()
        model = tools.tiny_model(own.read(given.weights)[1], weights, scale=1.0)
        style = style_picture(given.data, name, given.size) if name else blank
        drawn = draw(model, noise, torch.zeros_like(noise), 999)
        edited = draw(model, half, photos, round(999 * given.strength))
        columns.append([*shown(style), *shown(drawn), *shown(edited)])
    grid = torch.cat([torch.cat(column, dim=0) for column in columns], dim=1)
    file = given.out / f"{given.name}.png"
    cv2.imwrite(str(file), (grid * 255).round().byte().numpy()[..., ::-1])
    sys.stdout.write(f"{file}\n")


@torch.inference_mode()
def routes(given: argparse.Namespace) -> None:
    """Core's loader and ours."""
    import folder_paths

    import nodes
    from reelbrush.nodes import host
    from reelbrush.nodes.diffusion.nodes_inject import ApplyStyleLoRA
    from reelbrush.nodes.diffusion.nodes_lora import LoadStyleLoRA

    folder_paths.set_output_directory(str(given.out / "output"))
    base, text = own.load(given.weights), own.encode_text(TEXT)
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(given.seed))
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])

    def euler(denoise: host.Denoiser, x: Tensor, levels: Tensor) -> Tensor:
        for i, (high, low) in enumerate(pairwise(levels)):
            denoised = denoise(x, high)
            x = denoised + (x - denoised) * (low / high)
            denoise.step(i, x, denoised)
        return x

    def drawn(model: object) -> Tensor:
        return host.sample(model, euler, noise * 10, sigmas, text).clone()

    plain = drawn(base)
    for name in given.styles or STYLES:
        file = places(Path(name).stem)[0].name
        (core,) = nodes.LoraLoaderModelOnly().load_lora_model_only(base, file, 1.0)
        (ours,) = ApplyStyleLoRA().patch(base, LoadStyleLoRA().load(file)[0], 1.0)
        theirs, mine = drawn(core), drawn(ours)
        apart, changed = ((x - theirs).norm() / theirs.norm() for x in (mine, plain))
        sys.stdout.write(f"{name}: ours against core {apart:.1e}, without a LoRA {changed:.1e}\n")
    sys.stdout.write(f"base model as before: {torch.equal(drawn(base), plain)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "table", "routes", "sheet"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--styles", nargs="*", help="glass, lines, or file names in the data's style/")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=1, help="a side: trains on a batch of tiles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--projections", default="q,k,v")
    parser.add_argument("--minutes", type=float, default=1e9, help="of this piece of the training")
    parser.add_argument("--again", action="store_true", help="train what is finished, too (more --steps)")
    parser.add_argument("--draws", type=int, default=40, help="held-out timesteps per picture")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--sample-size", type=int, default=32)
    parser.add_argument("--photos", type=int, default=2)
    parser.add_argument("--name", default="sheet", help="of the sheet's file")
    parser.add_argument("--sample-steps", type=int, default=25)
    parser.add_argument("--strength", type=float, default=0.6, help="how far photographs are noised")
    parser.add_argument("--lora-strength", type=float, default=1.0)
    given = parser.parse_args()
    os.environ["REELBRUSH_HOME"] = str(given.out)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        {"train": train_all, "table": table, "routes": routes, "sheet": sheet}[given.what](given)
    except TimeIsUp:
        sys.stdout.write("not finished: start it again\n")


if __name__ == "__main__":
    main()
