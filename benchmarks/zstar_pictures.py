"""Z* and its neighbours to look at, with the denoiser of our own (benchmarks/tiny_denoiser.py).

    python benchmarks/zstar_pictures.py --weights ~/denoiser --data ../shared/data --out z.png
                                        [--group lambda layers steps mix]

Rows are content and style pairs, a block of rows per style. Columns are the content, the style, the
reconstruction (the inversion sampled back without a style), and by group:

    lambda   eq. 12 with lambda 0.8 to 1.6 (the paper's figure 10)
    layers   eq. 12 in other layers of the UNet
    steps    eq. 12 from other steps on
    mix      eqs. 7 (swap) and 8 (add, 0.5), Reference Attention's concat, StyleID

Under each column stand the mean style distance (Gram matrices of SqueezeNet's conv1, fire3 and fire5,
relative, pictures enlarged to 128 pixels) and the mean content distance (fire6 and fire8). The table also
says for how many pairs the style distance falls from one lambda to the next.

At 64 pixels one picture and step takes about a second on one core: 30 steps of a group, ten minutes and more.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import torch
from torch import Tensor

from reelbrush.lab import tiny_denoiser as own
from reelbrush.lab.pictures import square
from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_style import MatchLatent, ReferenceAttention, ZStar
from reelbrush.nodes.diffusion.nodes_trajectory import Invert
from reelbrush.nodes.stya2k.perceptual import load_perceptual

CONTENTS = ("0c1fe22f3d.jpg", "0ceae61546.jpg", "12fd4d87c9.jpg")  # an owl, a coast, thistles
STYLES = ("06ba9cf4f8.jpg", "8d185bd4be.jpg", "8893f3eb96.jpg")  # fire, a starry night, green leaves
PAPER = {"style_scale": 1.2, "layers": "10-15", "start_percent": 0.167, "end_percent": 1.0}


class Bench:
    """The denoiser, its pictures, and runs with it."""

    def __init__(self, weights: str, steps: int, refine: int):
        self.model, self.vae, self.null = own.load(weights), own.load_vae(weights), own.encode_text("")
        self.tools, self.steps, self.refine = own.tiny, steps, refine
        host.sample = self.tools.sample

    def invert(self, images: Tensor, frames_per_call: int = 0) -> tuple:
        """Noise, trajectory and levels."""
        latent = {"samples": self.vae.encode(images)}
        given = (self.null, latent, self.steps, "next timestep", self.refine, 0, frames_per_call)
        return Invert().invert(self.model, *given)

    def draw(self, model: object, noise: dict, sigmas: Tensor) -> Tensor:
        """IMAGE from a noise, Euler, no guidance."""
        out = self.tools.sample(model, self.tools.euler, noise["samples"], sigmas, self.null)
        return self.vae.decode(out)

    def zstar(self, style: object, mix: str = "reweight", **changes: object) -> object:
        return ZStar().patch(self.model, style, mix=mix, add_weight=0.5, **{**PAPER, **changes})[0]

    def reference(self, style: object, mode: str, content: object) -> object:
        given = {"mode": mode, "query_keep": 0.75, "temperature": 1.5, "content": content}
        return ReferenceAttention().patch(self.model, style, PAPER["layers"], 0.0, 1.0, **given)[0]


Draws = dict[str, Callable[[], Tensor]]
SCALES = (0.8, 1.0, 1.2, 1.4, 1.6)
LAYERS = ("0-5", "6-9", "10-15", "all")
STEPS = (0, 10, 20)  # of 30; the other groups begin with step 5


def columns(bench: Bench, content: tuple, style: tuple, group: str) -> Draws:
    """What is drawn for one style, by name."""
    noise, path, sigmas = content
    other = style[1]
    paint = lambda *mix, **changes: bench.draw(bench.zstar(other, *mix, **changes), noise, sigmas)  # noqa: E731
    if group == "lambda":
        return {f"lambda {s}": lambda s=s: paint(style_scale=s) for s in SCALES}
    if group == "layers":
        return {f"layers {n}": lambda n=n: paint(layers=n) for n in LAYERS}
    if group == "steps":
        return {f"from step {n}": lambda n=n: paint(start_percent=n / 30) for n in STEPS}
    refer = lambda mode, start: bench.draw(bench.reference(other, mode, path), start, sigmas)  # noqa: E731
    matched = MatchLatent().match(noise, style[0], 1.0)[0]
    found = {name: lambda name=name: paint(name) for name in ("swap", "add")}
    return found | {"concat": lambda: refer("concat", noise), "StyleID": lambda: refer("style-id", matched)}


def distances(network: torch.nn.Module, out: Tensor, content: Tensor, style: Tensor) -> list[list[float]]:
    """Style (Gram) and content (feature) distance of each picture, relative."""

    def read(images: Tensor) -> dict[str, Tensor]:
        large = torch.nn.functional.interpolate(images.movedim(-1, 1), size=128, mode="bicubic").clamp(0, 1)
        return network(large)

    def gram(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[-1]

    def far(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)

    a, c, s = read(out), read(content), read(style)
    shallow = torch.stack([far(gram(a[n]), gram(s[n])) for n in ("conv1", "fire3", "fire5")]).mean(0)
    deep = torch.stack([far(a[n], c[n]) for n in ("fire6", "fire8")]).mean(0)
    return torch.stack([shallow, deep], dim=1).tolist()


@torch.inference_mode()
def sheet(given: argparse.Namespace) -> None:
    """The grid of pictures and a table."""
    bench = Bench(given.weights, given.steps, given.refine)
    network = load_perceptual(given.data / "squeezenet_v1_0.fp16.safetensors").float()
    contents = torch.cat([square(given.data / "content" / n, given.size) for n in given.contents])
    inverted, rows, table = bench.invert(contents), [], {}
    back = bench.draw(bench.model, inverted[0], inverted[2])
    for name in given.styles:
        shown = square(given.data / "style" / name, given.size)
        style = bench.invert(shown)
        drawn = {"content": contents, "style": shown.expand_as(contents), "reconstruction": back}
        for group in given.group:
            drawn |= {n: run() for n, run in columns(bench, inverted, style, group).items()}
        for column, images in drawn.items():
            table.setdefault(column, []).extend(distances(network, images, contents, shown))
        rows.append(torch.cat([torch.cat(list(images), dim=0) for images in drawn.values()], dim=1))
    labelled(rows, table, given)
    given.out.with_suffix(".json").write_text(json.dumps(table))
    told(table)


def labelled(rows: list[Tensor], table: dict[str, list], given: argparse.Namespace) -> None:
    """The sheet with names and mean distances above the columns."""
    grid = (torch.cat(rows) * 255).round().byte().numpy()[..., ::-1]
    factor = max(1, 128 // given.size)
    grid = cv2.resize(grid, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    labels = grid[:40] * 0 + 255
    for i, (column, pairs) in enumerate(table.items()):
        at = (i * given.size * factor + 2, 16)
        style, content = torch.tensor(pairs).mean(0).tolist()
        words = f"s {style:.3f} c {content:.3f}"
        cv2.putText(labels, column, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        cv2.putText(labels, words, (at[0], 34), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 160), 1, cv2.LINE_AA)
    cv2.imwrite(str(given.out), cv2.vconcat([labels, grid]))


def told(table: dict[str, list]) -> None:
    """Means, and how many pairs move as the paper says from one lambda to the next."""
    lines = []
    for column, pairs in table.items():
        style, content = torch.tensor(pairs).mean(0).tolist()
        lines.append(f"{column:>16}  style distance {style:.4f}  content distance {content:.4f}")
    for low, high in pairwise(n for n in table if n.startswith("lambda")):
        falls = sum(b[0] < a[0] for a, b in zip(table[low], table[high], strict=True))
        lines.append(f"from {low} to {high[7:]}: style distance falls for {falls} of {len(table[low])} pairs")
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    groups = ["lambda", "layers", "steps", "mix"]
    parser.add_argument("--group", nargs="+", choices=groups, default=["lambda"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--refine", type=int, default=1, help="fixed-point iterations of the inversions")
    parser.add_argument("--layers", default="10-15", help="of all but the layers group")
    parser.add_argument("--contents", nargs="*", default=CONTENTS, help="file names in content/")
    parser.add_argument("--styles", nargs="*", default=STYLES, help="file names in style/")
    given = parser.parse_args()
    PAPER["layers"] = given.layers
    sheet(given)


if __name__ == "__main__":
    main()
