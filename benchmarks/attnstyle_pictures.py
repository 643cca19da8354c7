"""AttnStyle against direct pixel optimisation, on pictures that the judge never saw.

    python benchmarks/attnstyle_judge.py --pictures CONTENT STYLE --out judge.safetensors
    python benchmarks/attnstyle_pictures.py --judge judge.safetensors --perceptual squeezenet.safetensors \\
        --pictures CONTENT --out FOLDER

For each picture a word that does not describe it (P below 0.2) is asked for:

- AttnStyle, the node's defaults but for fewer patches, smaller pictures, and a threshold that suits this
  judge (0.7 is CLIP's: a trained two-tower scorer of eleven words goes well below); the other ten words
  are what the confidence loss may take a picture for;
- `pixels`: Adam on the picture itself, the same judge, losses and draws;
- `pixels, all losses`: the same with the content, layout and variation losses added;
- `pixels, score alone`: Adam on the picture itself for nothing but the word's log P on the whole picture.

Each of these goes on until it scores what AttnStyle scored, or stands still (`STILL`). Every pair is then
compared at equal score: what scores higher is mixed with the content picture until it scores what the other
does, and the first step of the pixels that is far enough counts, so that nobody pays for going too far.

Written: a line per picture with P and the content distance of each (the relative distance of the perceptual
network's features, which AttnStyle also trains on, and 1 - SSIM of the luma, which nobody trains on), the
pictures, and a contact sheet. A picture that has its line in FOLDER already is not computed again: a run that
was stopped goes on.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d

from reelbrush.lab import attnstyle_judge as towers
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.losses import (
    ClassificationLoss,
    ConfidenceLoss,
    ContentLoss,
    LayoutLoss,
    PatchLoss,
    TotalVariationLoss,
)
from reelbrush.nodes.attnstyle.patches import parse_scales
from reelbrush.nodes.attnstyle.train import Settings, train
from reelbrush.nodes.stya2k.perceptual import load_perceptual

log = logging.getLogger("attnstyle_pictures")
ASKED = ("red", "golden", "blue", "purple", "green", "dark", "bright", "gray")
SETTINGS = Settings(epochs=150, patches=16, threshold=0.2, early_stop=False)
RIVALS = ("pixels", "pixels, all losses", "pixels, score alone")
NEAR, STILL = 0.005, 20  # pixels stand still when they gain less than NEAR in STILL steps


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of the lumas over 7x7 windows."""
    a, b = (x.mean(1, keepdim=True) for x in (a, b))
    mean = lambda x: avg_pool2d(x, 7, 1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean().item()


def others(word: str) -> tuple[str, ...]:
    """What else the judge may take a picture for, beside the word and "photo"."""
    return tuple(w for w in towers.WORDS if w not in (word, "photo"))


def objective(
    judge: towers.WordJudge, picture: Tensor, word: str, weights: Weights, content: ContentLoss
) -> Callable[[Tensor], Tensor]:
    """AttnStyle's losses as a function of the picture alone."""
    generator = torch.Generator().manual_seed(0)
    aim = judge.aim(word, "a photo", picture, others(word))
    whole, confidence = ClassificationLoss(aim), ConfidenceLoss(aim)
    draw = {"patches": SETTINGS.patches, "threshold": SETTINGS.threshold, "generator": generator}
    patches = PatchLoss(aim, judge.size, parse_scales(SETTINGS.patch_scales), **draw)
    layout, tv, first = LayoutLoss(aim, picture), TotalVariationLoss(), torch.tensor([0])

    def total(x: Tensor) -> Tensor:
        loss = weights.classification * whole(x, first) + weights.patches * patches(x, first)
        loss = loss + weights.confidence * confidence(x, first)
        if weights.content:
            loss = loss + weights.content * content(x, first) + weights.layout * layout(x, first)
            loss = loss + weights.tv * tv(x)
        return loss

    return total


def optimise_pixels(
    judge: towers.WordJudge,
    picture: Tensor,
    word: str,
    goal: float,
    loss: Callable[[Tensor], Tensor],
    *,
    rate: float = 0.02,
    steps: int = 100,
) -> tuple[Tensor, int]:
    """Adam on the pixels until the word's probability is `goal` or stands still; the picture and its step."""
    x = picture.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=rate)
    path, scores = [picture], [likely(judge, picture, word)]
    best = 0
    while len(path) <= steps and scores[-1] < goal and len(path) - best <= STILL:
        total = loss(x)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        path.append(x.detach().clone())
        scores.append(likely(judge, path[-1], word))
        if scores[-1] > scores[best] + NEAR:
            best = len(path) - 1
    reached = min(goal, scores[best])
    step = next(i for i, score in enumerate(scores) if score >= reached)
    return mixed(judge, path[max(step - 1, 0)], path[step], word, reached), step


def mixed(judge: towers.WordJudge, a: Tensor, b: Tensor, word: str, goal: float) -> Tensor:
    """The picture between a, which scores less than the goal, and b, which scores more, that scores it."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if likely(judge, a.lerp(b, middle), word) < goal else (low, middle)
    return a.lerp(b, high)


def likely(judge: towers.WordJudge, picture: Tensor, word: str) -> float:
    return judge.words(picture)[0, towers.WORDS.index(word)].item()


def ask(judge: towers.WordJudge, picture: Tensor, number: int, words: Sequence[str] = ASKED) -> str:
    """The next word in turn that does not describe the picture."""
    words = [words[(number + i) % len(words)] for i in range(len(words))]
    return next(w for w in words if likely(judge, picture, w) < 0.2)


def label(picture: Tensor, lines: list[str]):
    image = (picture[0].permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype("uint8")
    image = cv2.resize(image, (192, 192), interpolation=cv2.INTER_CUBIC)
    image = cv2.copyMakeBorder(image, 0, 18 * len(lines), 0, 0, cv2.BORDER_CONSTANT)
    for i, line in enumerate(lines):
        cv2.putText(
            image, line, (3, 205 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA
        )
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--perceptual", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
    parser.add_argument("--words", nargs="+", default=ASKED, choices=towers.WORDS)
    parser.add_argument("--against", nargs="+", default=RIVALS, choices=RIVALS)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no picture later than that")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    settings = replace(SETTINGS, epochs=args.epochs)
    judge, eye = towers.WordJudge(args.judge), load_perceptual(args.perceptual)
    files = towers.held_out(args.pictures)[args.first : args.first + args.count]
    pictures = towers.load(files, args.size).float() / 255
    for number, (file, x) in enumerate(zip(files, pictures.split(1), strict=True), start=args.first):
        if (args.out / f"{number:03}.json").exists() or time.monotonic() - begun > args.seconds:
            continue
        start = time.process_time()
        word, content = ask(judge, x, number, args.words), ContentLoss(eye, x)
        first = torch.tensor([0])

        def numbers(picture: Tensor, content=content, x=x, word=word, first=first) -> dict[str, float]:
            with torch.no_grad():
                found = {"P": likely(judge, picture, word), "features": content(picture, first).item()}
            return found | {"1-SSIM": 1 - ssim(picture, x)}

        asked = replace(settings, others=others(word))
        result = train(judge, x, word, "a photo", asked, perceptual=eye)
        drawn, taken = {"AttnStyle": result.network(x)}, {}
        score, index = likely(judge, drawn["AttnStyle"], word), towers.WORDS.index(word)
        losses = {
            "pixels": objective(judge, x, word, Weights(content=0.0), content),
            "pixels, all losses": objective(judge, x, word, Weights(), content),
            "pixels, score alone": lambda y, index=index: -judge.words(y)[0, index].log(),
        }
        for name in args.against:
            drawn[name], taken[name] = optimise_pixels(judge, x, word, score, losses[name])
        row = {"picture": file.name, "word": word, "P before": likely(judge, x, word)}
        row |= {name: numbers(picture) for name, picture in drawn.items()}
        for name in args.against:
            down = mixed(judge, x, drawn["AttnStyle"], word, min(score, row[name]["P"]))
            row[name] |= {"steps": taken[name], "AttnStyle there": numbers(down)}
        row["seconds"] = time.process_time() - start
        log.info("%s", json.dumps(row))
        cells = [label(x, [f"asked: {word}", f"P {row['P before']:.2f}", ""])]
        for name, picture in drawn.items():
            n = row[name]
            cells.append(
                label(
                    picture,
                    [name, f"P {n['P']:.2f}  features {n['features']:.2f}", f"1-SSIM {n['1-SSIM']:.2f}"],
                )
            )
        cv2.imwrite(str(args.out / f"{number:03}.png"), cv2.hconcat(cells))
        kept = {k: v.clone(memory_format=torch.contiguous_format) for k, v in {"content": x, **drawn}.items()}
        save_file(kept, args.out / f"{number:03}.safetensors")
        (args.out / f"{number:03}.json").write_text(json.dumps(row))
    summarise(args.out)


def summarise(folder: Path) -> None:
    """All rows so far, in one table and one contact sheet of two columns."""
    rows = [json.loads(p.read_text()) for p in sorted(folder.glob("[0-9]*.json"))]
    methods = [k for k, v in rows[0].items() if isinstance(v, dict)]
    log.info("%d pictures, P before: largest %.3f", len(rows), max(r["P before"] for r in rows))
    lifted = sum(r["P before"] < 0.2 and r["AttnStyle"]["P"] > 0.8 for r in rows)
    log.info("lifted from below 0.2 to above 0.8: %d of %d", lifted, len(rows))
    for m in methods:
        p = [r[m]["P"] for r in rows]
        mean = {k: sum(r[m][k] for r in rows) / len(rows) for k in ("features", "1-SSIM")}
        log.info(
            "%-20s P mean %.3f least %.3f, %d above 0.8; %s",
            m,
            sum(p) / len(p),
            min(p),
            sum(v > 0.8 for v in p),
            mean,
        )
    for m in methods[1:]:
        for k in ("features", "1-SSIM"):
            pairs = [(r[m]["AttnStyle there"][k], r[m][k]) for r in rows]
            won, mean = sum(a < b for a, b in pairs), [sum(v) / len(v) for v in zip(*pairs, strict=True)]
            log.info(
                "at equal score, AttnStyle closer than %s by %s: %d of %d (means %.3f and %.3f)",
                *(m, k, won, len(rows), *mean),
            )
    strips = [cv2.imread(str(p)) for p in sorted(folder.glob("[0-9]*.png"))]
    if len(strips) % 2:
        strips.append(strips[-1] * 0)
    half = len(strips) // 2
    sheet = cv2.hconcat([cv2.vconcat(strips[:half]), cv2.vconcat(strips[half:])])
    cv2.imwrite(str(folder / "sheet.png"), sheet)


if __name__ == "__main__":
    main()
