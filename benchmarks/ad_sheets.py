"""Attention distillation to look at, with the denoiser of our own (benchmarks/tiny_denoiser.py).

    python benchmarks/ad_sheets.py all --weights ~/denoiser --data ../shared/data --out sheets

One picture per sheet; a name in place of `all` draws that sheet alone:

    style       photographs in the style of paintings (algorithm 1, lambda 0.25)
    appearance  the look of one animal on another (algorithm 1, lambda 0.2)
    texture     from noise: optimised, and sampled with guidance (algorithm 2)
    seamless    guided sampling with seamless tiling and without, shown two by two
    labels      two textures in painted regions, with and without the content term
    weights     lambda from 0 to 1 (Fig. 11)
    strength    guided sampling: Adam against gradients of fixed strength (Fig. 12)

Parameters are the paper's: Adam's rate 0.05 (0.02 in Fig. 12), the last six layers, timesteps falling from
T; steps and size are options, because time is. Under the pictures stand distances: `loss` is the
attention-distillation loss averaged over five timesteps, `colour` the mean distance of sorted red, green and
blue values to the style's, `layout` the mean distance of luminance gradients to the content's.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from reelbrush.lab import tiny_denoiser as own
from reelbrush.lab.pictures import square
from reelbrush.nodes import host
from reelbrush.nodes.distill import features, texture
from reelbrush.nodes.distill.expand import ladder, sampling_step
from reelbrush.nodes.distill.guided import seeded
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling, gradient
from reelbrush.nodes.distill.seamless import circular, padded_convolutions, seamless_model

log = logging.getLogger("ad_sheets")
PROBES = (1, 201, 401, 601, 801)
CAR, HORSE, DOG, PHEASANT = (
    f"content/{stem}.jpg" for stem in ("056af38c6f", "13c78a0fec", "2290549adc", "20a6af3512")
)
POODLE, BEAR = "content/1aefa20440.jpg", "content/254e867e7f.jpg"
NIGHT, RAIN, WAVE, FIRE, LEAF, STROKES = (
    f"style/{stem}.jpg"
    for stem in ("8d185bd4be", "3cb23bafef", "2e3e00ae19", "06ba9cf4f8", "8893f3eb96", "55de636724")
)
STYLES = ((HORSE, FIRE), (CAR, NIGHT), (DOG, WAVE))
APPEARANCES = ((DOG, POODLE), (PHEASANT, BEAR))
TEXTURES = (FIRE, STROKES)
WEIGHTS = (0.0, 0.05, 0.25, 1.0)
STRENGTHS = (30.0, 300.0, 3000.0)  # times the gradient
ITERATIONS = (1, 2, 3)
SEEDS = (0, 1, 2, 3)
FIXED_RATE = 0.02  # Adam's in Fig. 12

Cell = tuple[str, Tensor]  # what stands under a picture, and the picture [h, w, 3]
Rows = Iterator[list[Cell]]
Update = Callable[[References, Tensor, int], Tensor]


def losses(references: References, z: Tensor, weight: float = 0.0, frame: int = 0) -> Tensor:
    """Style and content loss of one frame [1, C, h, w], averaged over the probed timesteps."""
    recipe = DistillRecipe(content_weight=weight)
    each = [gradient(references, references.style_at(t), z, t, recipe, (frame,))[0] for t in PROBES]
    return torch.stack(each).mean(dim=0)[:, 0]


def colour_distance(a: Tensor, b: Tensor) -> float:
    """How far apart the colours of two pictures of one size are, wherever they stand."""
    sort = lambda x: x.reshape(-1, 3).sort(dim=0).values  # noqa: E731
    return float((sort(a) - sort(b)).abs().mean())


def layout_distance(a: Tensor, b: Tensor) -> float:
    """How far apart edges are: |gradients| of the luminance, each picture's scaled to a mean of 1."""

    def edges(x: Tensor) -> Tensor:
        y = x.mean(dim=-1)
        e = y.diff(dim=-1)[..., 1:, :].abs() + y.diff(dim=-2)[..., 1:].abs()
        return e / e.mean().clamp(min=1e-6)

    return float((edges(a) - edges(b)).abs().mean())


@dataclass
class Bench:
    """The denoiser, and what its runs share."""

    weights: Path
    data: Path
    size: int = 256
    steps: int = 200
    learning_rate: float = 0.05
    seed: int = 0
    sampling_steps: int = 50

    def __post_init__(self):
        self.model, self.vae, self.null = (
            own.load(self.weights),
            own.load_vae(self.weights),
            own.encode_text(""),
        )

    def latent(self, name: str) -> Tensor:
        return self.vae.encode(square(self.data / name, self.size))

    @contextmanager
    def references(self, style: Tensor, content: Tensor | None = None, *masks, model=None):
        """References on the opened model, gradients on."""
        with features.opened(model or self.model, self.null) as (_, reader):
            yield References(reader, style, content, *masks, memory=1 << 32)

    def optimized(self, style: Tensor, content: Tensor | None, weight: float, *masks: Tensor) -> Tensor:
        """Algorithm 1 from the content, or from noise."""
        start = seeded(self.seed)(style) if content is None else content
        with self.references(style, content, *masks) as about:
            return distill(about, start, falling(self.steps), DistillRecipe(self.learning_rate, weight))

    def sampled(self, style: Tensor, update: Update, *, model=None, seed: int | None = None) -> Tensor:
        """DDIM under the empty text from noise, `update` after every step (algorithm 2 without AdaIN)."""
        noise = seeded(self.seed if seed is None else seed)
        with self.references(style, model=model) as about:
            base = about.reader.base
            z = noise(style)
            given = host.conditions(base, self.null, z)
            for t, then in ladder(self.sampling_steps):
                sigma, level = about.reader.sigma(t), about.reader.sigma(then)
                z = sampling_step(model or self.model, base, z, sigma, level, given)
                noised = (style + level * noise(style)) / (1 + level**2) ** 0.5
                z = update(References(about.reader, noised, memory=1 << 32), z, then)
        return z

    def tiling_vae(self) -> own.tiny_vae.VAE:
        """The VAE, its decoder with circular convolutions."""
        vae = own.load_vae(self.weights)
        for _, conv in padded_convolutions(vae.first_stage_model.taesd_decoder):
            conv._conv_forward = circular(conv, "both")
        return vae

    def cell(self, words: str, z: Tensor, style: Tensor, content: Tensor | None = None) -> Cell:
        """A picture with its distances."""
        with self.references(style) as about:
            loss = losses(about, z)[0]
        shown, wanted = self.vae.decode(z), self.vae.decode(style)
        text = f"{words}|loss {loss:.2f}|colour {colour_distance(shown, wanted):.3f}"
        if content is not None:
            text += f"|layout {layout_distance(shown, self.vae.decode(content)):.2f}"
        log.info(text.replace("|", "  "))
        return text, shown[0]

    def given(self, words: str, z: Tensor) -> Cell:
        return words, self.vae.decode(z)[0]


def draw(rows: list[list[Cell]], path: Path, pixels: int = 160) -> None:
    """Rows of captioned pictures as one picture file."""

    def tile(cell: Cell) -> np.ndarray:
        words, shown = cell
        image = (shown.clamp(0, 1) * 255).byte().numpy()[..., ::-1]
        image = cv2.resize(image, (pixels, pixels), interpolation=cv2.INTER_NEAREST)
        image = cv2.copyMakeBorder(image, 4, 62, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for i, line in enumerate(words.split("|")):
            cv2.putText(image, line, (4, pixels + 18 + 14 * i), 0, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
        return image

    widest = max(map(len, rows))
    empty = ("", torch.ones(8, 8, 3))
    lines = [np.hstack([tile(c) for c in [*row, *[empty] * (widest - len(row))]]) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(lines))


# -- the sheets ------------------------------------------------------------------------------------


def transfer(bench: Bench, pairs: tuple, weight: float) -> Rows:
    for of_content, of_style in pairs:
        content, style = bench.latent(of_content), bench.latent(of_style)
        made = bench.optimized(style, content, weight)
        yield [
            bench.cell("content", content, style, content),
            bench.given("style", style),
            bench.cell(f"lambda {weight:g}", made, style, content),
        ]


def style(bench: Bench) -> Rows:
    yield from transfer(bench, STYLES, 0.25)


def appearance(bench: Bench) -> Rows:
    yield from transfer(bench, APPEARANCES, 0.2)


def adam(rate: float, iterations: int) -> Update:
    """Guidance that Adam manages."""
    return lambda about, z, t: distill(about, z, [t] * iterations, DistillRecipe(rate, 0.0))


def textures(bench: Bench) -> Rows:
    for name in TEXTURES:
        style = bench.latent(name)
        yield [
            bench.given("example", style),
            bench.cell("noise", seeded(bench.seed)(style), style),
            bench.cell("optimised", bench.optimized(style, None, 0.0), style),
            bench.cell("sampled", bench.sampled(style, adam(bench.learning_rate, 3)), style),
        ]


def steps_between_points(shown: Tensor) -> list[Tensor]:
    """The mean step across each line between two latent points, 8 pixels apart, over the mean of the lines
    inside; the last is the step across the wrap. One row of lines per axis of [1, h, w, 3]."""
    found = []
    for axis in (1, 2):
        steps = (shown - shown.roll(-1, axis)).abs().mean(dim=[n for n in range(4) if n != axis])[7::8]
        found.append(steps / steps[:-1].mean())
    return found


def over_all_steps(shown: Tensor, axes: tuple[int, int]) -> list[float]:
    """The mean step across the wrap over the mean of all steps inside, per axis."""
    return [
        float((shown.select(a, 0) - shown.select(a, -1)).abs().mean() / shown.diff(dim=a).abs().mean())
        for a in axes
    ]


def seamless(bench: Bench) -> Rows:
    """By symmetry the wrap of a tiling model is a line like every other, not a smaller step: single lines
    differ, so it takes several samples to tell a seam from a line, and the lines inside say how many."""
    tiling = seamless_model(bench.model, "both")
    ways = (("plain", None, bench.vae), ("seamless", tiling, bench.tiling_vae()))
    found = {words: ([], [], [], []) for words, *_ in ways}
    for name in TEXTURES:
        style = bench.latent(name)
        for seed in SEEDS:
            row = [bench.given("example", style)]
            for words, model, vae in ways:
                z = bench.sampled(style, adam(bench.learning_rate, 3), model=model, seed=seed)
                shown = vae.decode(z)
                wraps, insides, pixels, points = found[words]
                lines = steps_between_points(shown)
                wraps += [float(line[-1]) for line in lines]
                insides += [line[:-1] for line in lines]
                pixels += over_all_steps(shown, (1, 2))
                points += over_all_steps(z, (2, 3))
                text = f"{words}, 2 x 2|wrap {wraps[-2]:.2f}, {wraps[-1]:.2f}"
                row.append((text, shown[0].repeat(2, 2, 1)))
                if model is not None:
                    half = tuple(n // 2 for n in shown.shape[1:3])
                    row.append(("rolled by half", shown[0].roll(half, (0, 1))))
                log.info(text.replace("|", "  "))
            yield row
    for words, (wraps, insides, pixels, points) in found.items():
        log.info(
            "%s: step across the wrap over the mean of all steps inside: pixels %.3f, latents %.3f",
            *(words, sum(pixels) / len(pixels), sum(points) / len(points)),
        )
        wrap, inside = torch.tensor(wraps), torch.stack(insides)
        log.info(
            "%s: step across the wrap over the mean of the lines inside, %d samples of two axes: "
            "%.3f +- %.3f (standard error), %.2f to %.2f; a single line inside: %.2f to %.2f in 90 %% of "
            "cases; %.0f %% of them below the wrap of their sample",
            *(words, len(wrap) // 2, wrap.mean(), wrap.std() / len(wrap) ** 0.5, wrap.min(), wrap.max()),
            *(inside.quantile(0.05), inside.quantile(0.95)),
            100 * (inside < wrap[:, None]).float().mean(),
        )


def labels(bench: Bench) -> Rows:
    side = bench.size
    source = torch.cat(
        [
            square(bench.data / FIRE, side)[:, :, : side // 2],
            square(bench.data / LEAF, side)[:, :, side // 2 :],
        ],
        dim=2,
    )
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    disc = (x**2 + y**2 < 0.5).float()
    painted = [m[None, ..., None].repeat(1, 1, 1, 3) for m in ((x < 0).float(), disc)]
    of_source, of_target, n = texture.read_labels(*painted)
    start = texture.fill(source, of_source, of_target, bench.seed)
    style, content = bench.vae.encode(source), bench.vae.encode(start)
    masks = (of_source[None] / n, of_target[None] / n)
    row = [
        bench.given("example", style),
        ("its labels", painted[0][0]),
        ("wanted labels", painted[1][0]),
        bench.cell("start", content, style),
    ]
    for weight in (0.15, 0.0):
        z = bench.optimized(style, content, weight, *masks)
        row.append(bench.cell(f"lambda {weight:g}", z, style))
        region = bench.vae.decode(z)[0]
        means = [region[disc == k].mean(dim=0) for k in (1, 0)]
        wanted = [source[0, :, : side // 2].mean((0, 1)), source[0, :, side // 2 :].mean((0, 1))]
        own_way, other_way = (
            sum(float((m - w).abs().mean()) for m, w in zip(means, ws, strict=True)) / 2
            for ws in (wanted, wanted[::-1])
        )
        log.info("mean colours: %.3f from their own label's, %.3f from the other's", own_way, other_way)
    yield row


def weights(bench: Bench) -> Rows:
    for of_content, of_style in (STYLES[0], APPEARANCES[0]):
        content, style = bench.latent(of_content), bench.latent(of_style)
        yield [
            bench.given("content", content),
            bench.given("style", style),
            *(
                bench.cell(f"lambda {w:g}", bench.optimized(style, content, w), style, content)
                for w in WEIGHTS
            ),
        ]


def strength(bench: Bench) -> Rows:
    pulls = []

    def fixed(by: float) -> Update:
        def update(about: References, z: Tensor, t: int) -> Tensor:
            for _ in range(2):
                pull = gradient(about, about.style_at(t), z, t, DistillRecipe(content_weight=0.0), (0,))[1]
                pulls.append(float(pull.abs().mean()))
                z = z - by * pull
            return z

        return update

    for name in (FIRE, NIGHT):
        style = bench.latent(name)
        ways = (
            ("unguided", lambda about, z, t: z),
            *((f"Adam, {n} per level", adam(FIXED_RATE, n)) for n in ITERATIONS),
            *((f"fixed, {by:g}", fixed(by)) for by in STRENGTHS),
        )
        yield [
            bench.given("style", style),
            *(bench.cell(words, bench.sampled(style, update), style) for words, update in ways),
        ]
        log.info("mean |gradient| %.2e to %.2e", min(pulls), max(pulls))


SHEETS = {
    "style": style,
    "appearance": appearance,
    "texture": textures,
    "seamless": seamless,
    "labels": labels,
    "weights": weights,
    "strength": strength,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sheet", choices=["all", *SHEETS])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder with content/ and style/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="of optimisation")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0, help="of a sheet; 0: all")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host.log.setLevel(logging.WARNING)
    bench = Bench(a.weights, a.data, a.size, a.steps, a.learning_rate, a.seed, a.sampling_steps)
    for name in SHEETS if a.sheet == "all" else [a.sheet]:
        log.info("-- %s", name)
        rows = []
        for number, row in enumerate(SHEETS[name](bench)):
            rows.append(row)
            draw(rows, a.out / f"ad_{name}.png")  # after every row: it takes minutes
            if a.rows and number + 1 == a.rows:
                break


if __name__ == "__main__":
    main()
