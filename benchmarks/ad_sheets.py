"""Attention distillation to look at, with the denoiser of our own (benchmarks/tiny_denoiser.py).

    python benchmarks/ad_sheets.py all --weights ~/denoiser --data ../shared/data --out sheets

One picture per sheet; a name in place of `all` draws that sheet alone:

    style       photographs in the style of paintings (algorithm 1): Adam on pixels, Adam on a pyramid
    appearance  the look of one animal on another
    texture     from noise: optimised, sampled, sampled with seamless tiling (shown two by two)
    labels      two textures in painted regions, with and without the content term
    weights     lambda from 0 to 1 (Fig. 11)
    strength    guided sampling: gradients of fixed strength against Adam (Fig. 12)

Under the pictures stand distances: `loss` is the attention-distillation loss averaged over five timesteps,
`colour` the mean distance of sorted red, green and blue values to the style's, `layout` the mean distance of
luminance gradients to the content's.

The latents are pixels here, 32 x 32 by default, and that asks for another basis than the paper's. Adam moves
every number of a latent by its learning rate, so on pixels it writes speckle: the denoiser's features answer
to noise first, and a colour would need many pixels to move together. (A number of Stable Diffusion's latent
is a patch of 8 x 8 pixels, which the VAE's decoder draws smoothly.) So the sheets optimise a pyramid: the sum
of enlarged pictures of 1 x 1, 2 x 2, ... numbers, the finest with smaller steps. The losses, timesteps and
Adam are the nodes' own; `--basis pixels` shows what Distill Style (Optimize) itself does.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tiny_denoiser as own
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush.nodes import host
from reelbrush.nodes.diffusion import unet
from reelbrush.nodes.distill import features, texture
from reelbrush.nodes.distill.expand import ladder, stepped
from reelbrush.nodes.distill.guided import seeded
from reelbrush.nodes.distill.optimize import Recipe, References, distill, falling, gradient
from reelbrush.nodes.distill.seamless import seamless_model

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
STYLES = ((HORSE, FIRE), (CAR, NIGHT))
APPEARANCES = ((DOG, POODLE), (PHEASANT, BEAR))
TEXTURES = (FIRE, STROKES)
WEIGHTS = (0.0, 0.05, 0.25, 1.0)
STRENGTHS = (10.0, 100.0, 1000.0)
RATES = (0.005, 0.02, 0.05)
BROAD = 8  # pyramid levels finer than this take smaller steps

Cell = tuple[str, Tensor]  # what stands under a picture, and the picture [h, w, 3]
Rows = Iterator[list[Cell]]


def picture(path: Path, side: int) -> Tensor:
    """The middle of a picture as [1, side, side, 3]."""
    image = cv2.imread(str(path))
    if image is None:
        raise FileNotFoundError(f"{path} is no picture: --data is the folder with content/ and style/")
    h, w = image.shape[:2]
    m = min(h, w)
    cut = image[(h - m) // 2 : (h + m) // 2, (w - m) // 2 : (w + m) // 2, ::-1]
    return torch.from_numpy(cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA))[None].float() / 255


def pyramid(about: References, start: Tensor, timesteps: list[int], recipe: Recipe) -> Tensor:
    """`distill` where Adam moves a pyramid of pictures that are enlarged and added to the start."""
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= start.shape[-1]]
    levels = [torch.zeros(1, start.shape[1], n, n, requires_grad=True) for n in sizes]
    rates = [recipe.learning_rate * min(1, BROAD / n) for n in sizes]
    adam = torch.optim.Adam([{"params": [p], "lr": r} for p, r in zip(levels, rates, strict=True)])
    made = lambda: start + sum(interpolate(p, start.shape[-2:], mode="bilinear") for p in levels)  # noqa: E731
    for t in timesteps:
        z = made()
        _, pull = gradient(about, about.style_at(t), z.detach(), t, recipe, (0,))
        adam.zero_grad()
        z.backward(pull)
        adam.step()
    return made().detach()


def losses(references: References, z: Tensor, weight: float = 0.0, frame: int = 0) -> Tensor:
    """Style and content loss of one frame [1, C, h, w], averaged over the probed timesteps."""
    recipe = Recipe(content_weight=weight)
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
    size: int
    steps: int
    learning_rate: float
    seed: int
    basis: str = "pyramid"

    def __post_init__(self):
        self.model, self.vae, self.null = (
            own.load(self.weights),
            own.load_vae(self.weights),
            own.encode_text(""),
        )

    def latent(self, name: str) -> Tensor:
        return self.vae.encode(picture(self.data / name, self.size))

    @contextmanager
    def references(self, style: Tensor, content: Tensor | None = None, *masks, model=None):
        """References on the opened model, gradients on."""
        with unet.loaded(model or self.model) as base, features.gradients(base):
            yield References(features.Eye(base, self.null), style, content, *masks, memory=1 << 32)

    def optimized(
        self, style: Tensor, content: Tensor | None, weight: float, *masks: Tensor, basis: str = ""
    ) -> Tensor:
        """Algorithm 1 from the content, or from noise (smooth noise where a pyramid is optimised)."""
        basis, start = basis or self.basis, content
        if start is None:
            start = seeded(self.seed)(style)
            if basis == "pyramid":
                start = interpolate(start[..., :BROAD, :BROAD], size=style.shape[-2:], mode="bilinear")
        loop = pyramid if basis == "pyramid" else distill
        with self.references(style, content, *masks) as about:
            return loop(about, start, falling(self.steps), Recipe(self.learning_rate, weight))

    def sampled(
        self, style: Tensor, update: Callable[[References, Tensor, int], Tensor], model=None
    ) -> Tensor:
        """DDIM under the empty text from noise, `update` after every step (algorithm 2, lines 6 to 14)."""
        noise = seeded(self.seed)
        with self.references(style, model=model) as about:
            base = about.eye.base
            z = noise(style)
            given = unet.conditions(base, self.null, z)
            for t, then in ladder(self.steps // 2):
                sigma, level = about.eye.sigma(t), about.eye.sigma(then)
                z = stepped(model or self.model, base, z, sigma, level, given)
                noised = (style + level * noise(style)) / (1 + level**2) ** 0.5
                z = update(References(about.eye, noised, memory=1 << 32), z, then)
        return z

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
        yield [
            bench.cell("content", content, style, content),
            bench.given("style", style),
            *(
                bench.cell(
                    f"{basis}|lambda {w:g}",
                    bench.optimized(style, content, w, basis=basis),
                    style,
                    content,
                )
                for basis, w in (("pixels", weight), ("pyramid", weight), ("pyramid", weight / 5))
            ),
        ]


def style(bench: Bench) -> Rows:
    yield from transfer(bench, STYLES, 0.25)


def appearance(bench: Bench) -> Rows:
    yield from transfer(bench, APPEARANCES, 0.2)


def wrap_ratio(shown: Tensor) -> float:
    """The step across the wrap over the mean step inside, the worse of both axes; [1, h, w, 3]."""
    ratios = []
    for axis in (1, 2):
        across = (shown.select(axis, 0) - shown.select(axis, -1)).abs().mean()
        ratios.append(float(across / shown.diff(dim=axis).abs().mean()))
    return max(ratios)


def textures(bench: Bench) -> Rows:
    tiling = seamless_model(bench.model, "both")
    adam = lambda about, z, t: distill(about, z, [t] * 2, Recipe(bench.learning_rate / 2, 0.0))  # noqa: E731
    for name in TEXTURES:
        style = bench.latent(name)
        sampled = {words: bench.sampled(style, adam, m) for words, m in (("", None), (" seamless", tiling))}
        row = [
            bench.given("example", style),
            bench.cell("noise", seeded(bench.seed)(style), style),
            bench.cell(f"optimised|{bench.basis}", bench.optimized(style, None, 0.0), style),
            *(bench.cell(f"sampled{words}", z, style) for words, z in sampled.items()),
        ]
        for words, z in sampled.items():
            shown = bench.vae.decode(z)
            row.append((f"sampled{words}, 2 x 2|wrap {wrap_ratio(shown):.2f}", shown[0].repeat(2, 2, 1)))
            log.info(row[-1][0])
        yield row


def labels(bench: Bench) -> Rows:
    side = bench.size
    source = torch.cat(
        [
            picture(bench.data / FIRE, side)[:, :, : side // 2],
            picture(bench.data / LEAF, side)[:, :, side // 2 :],
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
    def fixed(by: float):
        def update(about: References, z: Tensor, t: int) -> Tensor:
            for _ in range(2):
                z = z - by * gradient(about, about.style_at(t), z, t, Recipe(content_weight=0.0), (0,))[1]
            return z

        return update

    def adam(rate: float):
        return lambda about, z, t: distill(about, z, [t] * 2, Recipe(rate, 0.0))

    unguided = lambda about, z, t: z  # noqa: E731
    for name in (FIRE, NIGHT):
        style = bench.latent(name)
        yield [
            bench.given("style", style),
            *(
                bench.cell(words, bench.sampled(style, update), style)
                for words, update in (
                    ("unguided", unguided),
                    *((f"fixed {by:g}", fixed(by)) for by in STRENGTHS),
                    *((f"Adam {rate:g}", adam(rate)) for rate in RATES),
                )
            ),
        ]


SHEETS = {
    "style": style,
    "appearance": appearance,
    "texture": textures,
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
    parser.add_argument("--steps", type=int, default=24, help="of optimisation; sampling takes half as many")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--basis", choices=["pyramid", "pixels"], default="pyramid")
    parser.add_argument("--rows", type=int, default=0, help="of a sheet; 0: all")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host.log.setLevel(logging.WARNING)
    bench = Bench(a.weights, a.data, a.size, a.steps, a.learning_rate, a.seed, a.basis)
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
