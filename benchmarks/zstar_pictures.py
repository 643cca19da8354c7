"""Z* and its neighbours to look at, with the denoiser of our own (benchmarks/tiny_denoiser.py).

    python benchmarks/zstar_pictures.py sheet --weights denoiser.safetensors --data ../shared/data --out z.png
    python benchmarks/zstar_pictures.py clip  --weights denoiser.safetensors --data ../shared/data --out t.png

`sheet`: rows are content and style pairs; columns are the content, the style, the reconstruction, lambda from
0.8 to 1.6, other layers, a late start, swap, add, concat and StyleID. Under each column stands the mean style
distance (Gram matrices of SqueezeNet) and the mean content distance (its deeper features).
`clip`: 32 frames in calls of 4 with Z*, without and with Temporal Attention; prints the optical-flow error of
pairs inside a call and across calls.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import tiny_denoiser as own
import torch
from torch import Tensor

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.clip_nodes import FramesPerCall, TemporalAttention
from reelbrush.nodes.diffusion.style_nodes import MatchLatent, ReferenceAttentionNode, ZStarNode
from reelbrush.nodes.diffusion.trajectory_nodes import Invert
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.flow.estimate import estimate
from reelbrush.nodes.flow.report import Report, measure_with_flow
from reelbrush.nodes.stya2k.perceptual import load_perceptual

CONTENTS = ("0018a70415.jpg", "0074eda957.jpg", "00a392390c.jpg")
PAPER = {"style_scale": 1.2, "layers": "10-15", "start_percent": 0.167, "end_percent": 1.0}


def picture(path: Path, size: int) -> Tensor:
    """A square [1, size, size, 3]."""
    image = cv2.imread(str(path))[..., ::-1]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = cv2.resize(
        image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA
    )
    return torch.from_numpy(image.copy())[None].float() / 255


class Bench:
    """The denoiser, its pictures, and runs with it."""

    def __init__(self, weights: str, steps: int, refine: int):
        self.model, self.vae, self.null = own.load(weights), own.PixelVAE(), own.encode_text("")
        self.tools, self.steps, self.refine = own.tiny("tiny"), steps, refine
        host.sample = self.tools.sample

    def invert(self, images: Tensor) -> tuple:
        """Noise, trajectory and levels."""
        latent = {"samples": self.vae.encode(images)}
        given = (self.null, latent, self.steps, "next timestep", self.refine, 0, 0)
        return Invert().invert(self.model, *given)

    def draw(self, model: object, noise: dict, sigmas: Tensor) -> Tensor:
        """IMAGE from a noise, Euler, no guidance."""
        out = self.tools.sample(model, self.tools.euler, noise["samples"], sigmas, self.null)
        return self.vae.decode(out)

    def zstar(self, style: object, mix: str = "reweight", **changes: object) -> object:
        return ZStarNode().patch(self.model, style, mix=mix, add_weight=0.5, **{**PAPER, **changes})[0]

    def reference(self, style: object, mode: str, content: object) -> object:
        given = (mode, 0.75, 1.5, PAPER["layers"], 0.0, 1.0)
        return ReferenceAttentionNode().patch(self.model, style, *given, content=content)[0]


def columns(bench: Bench, content: tuple, style: tuple) -> dict[str, Callable[[], Tensor]]:
    """What is drawn for one style, by name."""
    noise, path, sigmas = content
    other = style[1]
    found = {"reconstruction": lambda: bench.draw(bench.model, noise, sigmas)}
    for scale in (0.8, 1.0, 1.2, 1.4, 1.6):
        found[f"lambda {scale}"] = lambda s=scale: bench.draw(
            bench.zstar(other, style_scale=s), noise, sigmas
        )
    for layers in ("0-9", "8-15", "13-15"):
        found[f"layers {layers}"] = lambda n=layers: bench.draw(bench.zstar(other, layers=n), noise, sigmas)
    found["from step 15"] = lambda: bench.draw(bench.zstar(other, start_percent=0.5), noise, sigmas)
    found["swap"] = lambda: bench.draw(bench.zstar(other, "swap"), noise, sigmas)
    found["add"] = lambda: bench.draw(bench.zstar(other, "add"), noise, sigmas)
    found["concat"] = lambda: bench.draw(bench.reference(other, "concat", path), noise, sigmas)
    matched = MatchLatent().match(noise, style[0], 1.0)[0]
    found["StyleID"] = lambda: bench.draw(bench.reference(other, "style-id", path), matched, sigmas)
    return found


def distances(network: torch.nn.Module, out: Tensor, content: Tensor, style: Tensor) -> tuple[float, float]:
    """Gram distance to the style and feature distance to the content, relative."""

    def read(images: Tensor) -> dict[str, Tensor]:
        large = torch.nn.functional.interpolate(images.movedim(-1, 1), size=128, mode="bicubic").clamp(0, 1)
        return network(large)

    def gram(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[-1]

    a, c, s = read(out), read(content), read(style)
    shallow = [
        gram(a[n]).sub(gram(s[n])).norm() / gram(s[n]).norm() / len(out) ** 0.5
        for n in ("conv1", "fire3", "fire5")
    ]
    deep = [(a[n] - c[n]).norm() / c[n].norm() for n in ("fire6", "fire8")]
    return float(sum(shallow)) / 3, float(sum(deep)) / 2


@torch.inference_mode()
def sheet(given: argparse.Namespace) -> None:
    """The grid of pictures and a table."""
    bench = Bench(given.weights, given.steps, given.refine)
    network = load_perceptual(given.data / "squeezenet_v1_0.fp16.safetensors").float()
    names = sorted(p.name for p in (given.data / "style").glob("*.jpg"))
    styles = given.styles or [names[i] for i in (3, 40)]
    contents = torch.cat(
        [picture(given.data / "content" / n, given.size) for n in CONTENTS[: given.contents]]
    )
    inverted, rows, table = bench.invert(contents), [], {}
    for name in styles:
        shown = picture(given.data / "style" / name, given.size)
        style = bench.invert(shown)
        drawn = {"content": contents, "style": shown.expand_as(contents)}
        for column, run in columns(bench, inverted, style).items():
            drawn[column] = run()
            pair = distances(network, drawn[column], contents, shown)
            table.setdefault(column, []).append(pair)
        rows.append(torch.cat([torch.cat(list(images), dim=0) for images in drawn.values()], dim=1))
    grid = (torch.cat(rows) * 255).round().byte().numpy()[..., ::-1]
    factor = max(1, 96 // given.size)
    grid = cv2.resize(grid, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    labels = grid[:40] * 0 + 255
    for i, column in enumerate(drawn):
        at = (i * given.size * factor + 2, 16)
        cv2.putText(labels, column, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1)
        if column in table:
            means = [sum(pair[k] for pair in table[column]) / len(table[column]) for k in (0, 1)]
            words = f"s {means[0]:.3f} c {means[1]:.3f}"
            cv2.putText(labels, words, (at[0], 34), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (0, 0, 160), 1)
            sys.stdout.write(
                f"{column:>16}  style distance {means[0]:.4f}  content distance {means[1]:.4f}\n"
            )
    cv2.imwrite(str(given.out), cv2.vconcat([labels, grid]))


def frames(path: Path, count: int, size: int) -> Tensor:
    """The first frames of a folder, [count, size, size, 3]."""
    return torch.cat([picture(p, size) for p in sorted(path.glob("*.png"))[:count]])


@torch.inference_mode()
def clip(given: argparse.Namespace) -> None:
    """Flow error inside calls and across calls."""
    bench = Bench(given.weights, given.steps, given.refine)
    content = frames(given.data / "clips" / "sintel_mountain_2", given.frames, given.size)
    names = sorted(p.name for p in (given.data / "style").glob("*.jpg"))
    style = bench.invert(picture(given.data / "style" / (given.styles or [names[3]])[0], given.size))
    noise, _, sigmas = bench.invert(content)
    flow, rows = estimate(content), [content]
    plain = bench.zstar(style[1])
    for name, model in (
        ("without", plain),
        ("with", TemporalAttention().patch(plain, "first + previous", "all", 0.0, 1.0, 1.0)[0]),
    ):
        (split,) = FramesPerCall().patch(model, given.per_call)
        drawn = bench.draw(split, noise, sigmas)
        rows.append(drawn)
        report = measure_with_flow(drawn, flow, Report(convention()))
        borders = [p.error for p in report.pairs if (p.first + 1) % given.per_call == 0]
        inside = [p.error for p in report.pairs if (p.first + 1) % given.per_call]
        middle, across = (float(torch.tensor(e).median()) for e in (inside, borders))
        sys.stdout.write(
            f"{name:>8} temporal attention: flow error inside calls (median) {middle:.2f}, across "
            f"{across:.2f}, ratio {across / middle:.3f}\n"
        )
    grid = torch.cat([torch.cat(list(row[:: max(1, len(row) // 12)]), dim=1) for row in rows])
    image = (grid * 255).round().byte().numpy()[..., ::-1]
    cv2.imwrite(str(given.out), cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sheet", "clip"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--refine", type=int, default=1, help="fixed-point iterations of the inversions")
    parser.add_argument("--contents", type=int, default=3)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--per-call", type=int, default=4)
    parser.add_argument("--layers", default="10-15", help="of all but the layer columns")
    parser.add_argument("--styles", nargs="*", help="file names in the data folder's style/")
    given = parser.parse_args()
    PAPER["layers"] = given.layers
    (sheet if given.what == "sheet" else clip)(given)


if __name__ == "__main__":
    main()
