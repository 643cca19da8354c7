"""AttnStyle without each of its losses: numbers for a list, and a sheet of pictures.

    python lab/attnstyle_ablation.py --judge judge.safetensors --keep FOLDER --out sheet.jpg

The judge is one of attnstyle_judge.py; the second style is one of attnstyle_texture.py. A frame of the sample
clip at 64x64 is trained with two seeds, with all losses and without each of them: 32 trainings, ten minutes
of one core. FOLDER keeps the finished ones; `--styles` makes only some.

"pixels" is the mean difference (of 255) between the results with and without the loss at the same seed.
"seen" is how much the judge's embeddings of patches differ (1 - cosine, in percent; the place of a stripe
counts less here). Beside both stands the difference between the two seeds with all losses. "own" is the loss
that was left out, measured on the result and divided by what it is on the result of all losses; beside it,
the ratio of the two seeds.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from reelbrush.lab import attnstyle_judge, attnstyle_texture, help_pictures
from reelbrush.nodes.attnstyle import losses, perceptual
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.network import AttnStyleNet
from reelbrush.nodes.attnstyle.patches import parse_scales
from reelbrush.nodes.attnstyle.train import Settings, train

log = logging.getLogger("attnstyle_ablation")

STYLES, SEEDS, SOURCE = ("golden", "striped"), 2, "a photo"
RATE = 1e-3  # twice the default: 60 epochs are few
NAMES = ("classification", "confidence", "patches", "content", "layout", "attention", "tv")
ALL = "all losses"
LABELS = {"classification": "global"}  # as the node's input is called


def judge_of(style: str, file: Path) -> tuple[Any, tuple[str, ...]]:
    """The judge that knows the style, and its words."""
    if style in attnstyle_texture.WORDS:
        return attnstyle_texture.TextureJudge(), attnstyle_texture.WORDS
    return attnstyle_judge.WordJudge(file), attnstyle_judge.WORDS


def frame(side: int) -> Tensor:
    """The center square of a frame of the sample clip, [1, 3, side, side]."""
    whole = help_pictures.frames()[12].movedim(-1, 0)[None]
    left = (whole.shape[3] - whole.shape[2]) // 2
    square = whole[..., left : left + whole.shape[2]]
    return interpolate(square, (side, side), mode="area").contiguous()


class Ablation:
    """The trainings of one style and their numbers."""

    def __init__(self, style: str, judge: Any, words: tuple[str, ...], x: Tensor, epochs: int, keep: Path):
        self.style, self.judge, self.words, self.x, self.epochs, self.keep = (
            style,
            judge,
            words,
            x,
            epochs,
            keep,
        )
        self.others = tuple(word for word in words if word not in (style, "photo"))
        self.eye = perceptual.load(perceptual.EMBEDDED)
        self.measures = self._measures()

    def _measures(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Every loss of a picture. Patches are the same in all pictures, and all of them count."""
        aim, first = self.judge.aim(self.style, SOURCE, self.x, self.others), torch.tensor([0])

        def patches(y: Tensor) -> Tensor:
            scales = parse_scales(Settings.patch_scales)
            generator = torch.Generator().manual_seed(0)
            loss = losses.PatchLoss(aim, self.judge.size, scales, threshold=0.0, generator=generator)
            return loss(y, first)

        made = {
            "classification": losses.ClassificationLoss(aim),
            "confidence": losses.ConfidenceLoss(aim),
            "content": losses.ContentLoss(self.eye, self.x),
            "layout": losses.LayoutLoss(aim, self.x),
            "tv": losses.TotalVariationLoss(),
        }
        return {name: lambda y, m=module: m(y, first) for name, module in made.items()} | {"patches": patches}

    def network(self, without: str, seed: int) -> AttnStyleNet:
        """A trained network, from `keep` if it is there."""
        file = self.keep / f"{self.style}-{without}-{seed}.safetensors"
        network = AttnStyleNet()
        if not file.is_file():
            weights = Weights() if without == ALL else replace(Weights(), **{without: 0.0})
            settings = Settings(self.epochs, RATE, patches=16, threshold=0.2, early_stop=False, seed=seed)
            settings = replace(settings, weights=weights, others=self.others)
            eye = self.eye if weights.content else None
            trained = train(self.judge, self.x, self.style, SOURCE, settings, perceptual=eye).network
            save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, file)
        network.load_state_dict(load_file(file))
        return network.train(False)

    @torch.no_grad()
    def result(self, without: str, seed: int) -> tuple[Tensor, dict[str, float]]:
        """The stylized picture and its losses."""
        y, pairs = self.network(without, seed).with_features(self.x)
        numbers = {name: measure(y).item() for name, measure in self.measures.items()}
        return y, numbers | {"attention": losses.AlignmentLoss()(pairs).item()}

    @torch.no_grad()
    def apart(self, a: Tensor, b: Tensor) -> tuple[float, float]:
        """How different two pictures are, in pixels and as the judge sees their patches."""
        seen = cosine_similarity(self.judge.see(a)[1], self.judge.see(b)[1], dim=-1)
        return (a - b).abs().mean().item() * 255, 100 * (1 - seen.mean().item())

    def score(self, y: Tensor) -> float:
        return self.judge.words(y)[0, self.words.index(self.style)].item()

    def table(self) -> tuple[list[str], dict[str, Tensor]]:
        """Lines of text, and the picture of each variant."""
        full = [self.result(ALL, seed) for seed in range(SEEDS)]
        shown = {"frame": self.x, ALL: full[0][0], "other seed": full[1][0]}
        seed_apart = self.apart(full[0][0], full[1][0])
        scores = [self.score(y) for y, _ in full]
        lines = [f"{self.style}: score {self.score(self.x):.2f}, then {mean(scores):.2f}; between the seeds "]
        lines[0] += f"{seed_apart[0]:.1f} of 255, seen {seed_apart[1]:.2f} %"
        for name in NAMES:
            cut = [self.result(name, seed) for seed in range(SEEDS)]
            shown[name] = cut[0][0]
            pixels, seen = (
                mean(v)
                for v in zip(*(self.apart(a[0], b[0]) for a, b in zip(cut, full, strict=True)), strict=True)
            )
            own = mean([a[1][name] / b[1][name] for a, b in zip(cut, full, strict=True)])
            seeds = full[1][1][name] / full[0][1][name]
            score = mean([self.score(y) for y, _ in cut])
            lines.append(
                f"  without {name}: score {score:.2f}, pixels {pixels:.1f}, seen {seen:.2f} %, "
                f"own {own:.2f} (seeds {max(seeds, 1 / seeds):.2f})"
            )
        return lines, shown


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--styles", nargs="+", default=STYLES)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.keep.mkdir(parents=True, exist_ok=True)
    pictures = []
    for style in args.styles:
        found = Ablation(style, *judge_of(style, args.judge), frame(args.side), args.epochs, args.keep)
        lines, shown = found.table()
        log.info("\n".join(lines))
        pictures.append(shown)
    if args.out:
        cells = [
            (LABELS.get(name, name), shown[name][0].movedim(0, -1))
            for name in pictures[0]
            for shown in pictures
        ]
        args.out.write_bytes(help_pictures.encoded(help_pictures.sheet(cells, columns=2 * len(pictures))))


if __name__ == "__main__":
    main()
