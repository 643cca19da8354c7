"""The table of the small StyA2K on held-out pictures, and its contact sheets.

    python benchmarks/stya2k_table.py --contents FOLDER --styles FOLDER --clips FOLDER --judge SQUEEZENET \
        ours=stya2k-small.safetensors adain=adain.safetensors all-to-all=all.safetensors --out OUT

The models to compare are trained alike, only the attention swapped: the commands of the model card
(nodes/stya2k/weights/stya2k-small.md) with another `--attention` ("adain", "all-to-all") from the second
stage on; for the parts of all-to-key attention, trained from nothing:

    for kind in all-to-key "distributed only" "progressive only" "no region matching" "one head"; do
        reelbrush train stya2k "runs/$kind" --attention "$kind" --steps N --seed 0 --contents FOLDER \
            --styles FOLDER --perceptual SQUEEZENET --save-as "runs/$kind.safetensors"
    done

Held-out pictures are those of the first model's metadata, less styles that the folder holds once more (then
another copy was trained on); `--trained` takes as many of the others, to choose a strength by. Columns, all
lower is better: `style`, mean and deviation of SqueezeNet features as trained; `swd`, sliced Wasserstein
distance of 5x5 patches at three scales, which no training saw; `strokes`, the same of 9x9 patches of grey
alone, each without its mean, the picture's contrast taken out, so that neither colour nor brightness counts;
`content`, instance-normalised features; `flow`, the optical-flow error (mse, 0-255, valid pixels), mean over
the clips (video files and folders of PNG frames). Rows beside the models: the input itself, and plain colour
transfer (mean and deviation in Lab). Every content is shown once, spread over the styles, and the clips in
three styles; `--shift` pairs others with each style, `--all` takes every pair, and the clips in every style.
A second table holds the models against each other: the mean difference, its standard error over the styles,
and in how many of them it is below zero; a third has the flow clip by clip. `values.json` has every style's
numbers.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import cv2
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush.lab.pictures import square
from reelbrush.nodes.common.contact_sheet import spread
from reelbrush.nodes.flow.conventions import Convention
from reelbrush.nodes.flow.measure import versions
from reelbrush.nodes.stya2k.data import pictures_in, twins
from reelbrush.nodes.stya2k.losses import content_loss, moments_loss
from reelbrush.nodes.stya2k.perceptual import Perceptual, load_perceptual
from reelbrush.nodes.stya2k.style import Style, StylePart, load_model
from reelbrush.nodes.stya2k.stylize import Look, stylize
from reelbrush.nodes.video.lazy_video import LazyVideo

PROJECTIONS, SCALES, PATCH, STROKE = 128, 3, 5, 9


def picture(path: Path, side: int) -> Tensor:
    """The middle of a picture as the network takes it, [1, 3, side, side]."""
    return square(path, side).movedim(-1, 1).contiguous()


def lab_transfer(content: Tensor, style: Tensor) -> Tensor:
    """Mean and deviation of each Lab channel."""

    def lab(x: Tensor) -> np.ndarray:
        return cv2.cvtColor(x[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2Lab)

    a, b = lab(content), lab(style)
    a = (a - a.mean((0, 1))) / (a.std((0, 1)) + 1e-5) * b.std((0, 1)) + b.mean((0, 1))
    rgb = cv2.cvtColor(a.astype(np.float32), cv2.COLOR_Lab2RGB)
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].clamp(0, 1)


def projected(x: Tensor, patch: int, scale: int) -> np.ndarray:
    """Some patches of a picture along some directions, [directions, patches], each row in order; patches of
    one channel lose their mean."""
    g = torch.Generator().manual_seed(scale)
    directions = torch.randn(x.shape[1] * patch**2, PROJECTIONS, generator=g)
    directions = directions / directions.norm(dim=0)
    small = interpolate(x, scale_factor=0.5**scale, mode="area") if scale else x
    patches = torch.nn.functional.unfold(small, patch)[0]
    choice = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(7))[:8192]
    patches = patches[:, choice]
    if x.shape[1] == 1:
        patches = patches - patches.mean(0)
    return np.sort((directions.T @ patches).numpy(), 1)  # many times faster than torch's


def sliced(pictures: Tensor, style: Tensor, patch: int) -> list[float]:
    """Sliced Wasserstein distance of the patches of each picture to the style's, mean over scales."""
    totals = [0.0] * len(pictures)
    for scale in range(SCALES):
        wanted = projected(style, patch, scale)
        for i, x in enumerate(pictures):
            sides = [projected(x[None], patch, scale), wanted]
            n = min(s.shape[1] for s in sides)
            sides = [s[:, np.linspace(0, s.shape[1] - 1, n).round().astype(int)] for s in sides]
            totals[i] += float(np.abs(sides[0] - sides[1]).mean()) / SCALES
    return totals


def swd(pictures: Tensor, style: Tensor) -> list[float]:
    """How far the patches of pictures are from a style's, of 255."""
    return [255 * d for d in sliced(pictures, style, PATCH)]


def strokes(pictures: Tensor, style: Tensor) -> list[float]:
    """The same of grey patches at one contrast, in hundredths of the picture's deviation."""
    grey = [x.mean(1, keepdim=True) for x in (pictures, style)]
    flat = [torch.stack([g / g.std().clamp_min(1e-3) for g in x]) for x in grey]
    return [100 * d for d in sliced(*flat, STROKE)]


def model(text: str) -> tuple[str, tuple[Path, Look]]:
    """What `name=file` or `name=file@strength` stands for."""
    parts = re.fullmatch(
        r"(?P<name>[^=]+)=(?P<file>.+\.safetensors)(@(?P<strength>0(\.\d+)?|1(\.0+)?))?", text
    )
    if not parts:
        raise argparse.ArgumentTypeError(f"{text!r}: give name=FILE.safetensors or name=FILE.safetensors@0.9")
    return parts["name"], (Path(parts["file"]), Look(float(parts["strength"] or 1)))


Method = Callable[[Tensor, Tensor], Tensor]  # contents, a style -> pictures in 0..1


def methods(models: dict[str, tuple[Path, Look]]) -> dict[str, Method]:
    """The rows of the table."""
    found = {"input": lambda c, s: c, "colour": lambda c, s: torch.cat([lab_transfer(x[None], s) for x in c])}
    for name, (path, look) in models.items():
        loaded = load_model(path, "float32")

        def run(c: Tensor, s: Tensor, loaded=loaded, look=look) -> Tensor:
            style = Style(loaded, (StylePart(s.permute(0, 2, 3, 1)),))
            return stylize(style, c.permute(0, 2, 3, 1), look, 1).permute(0, 3, 1, 2).clamp(0, 1)

        found[name] = run
    return found


def unseen(folder: Path, there: list[str], names: list[str], side: int) -> list[Tensor]:
    """Those of the pictures that the folder, where the names `there` are, holds only once."""
    all_of = {name: picture(folder / name, side) for name in there}
    found = []
    missing = [name for name in names if name not in all_of]
    if missing:
        raise FileNotFoundError(f"{folder} lacks the held-out pictures {', '.join(missing)}")
    for name in names:
        others = ((other, x[0]) for other, x in all_of.items() if other != name)
        if twins([(name, all_of[name][0])], others):
            sys.stderr.write(f"{name} is left out: the folder holds it once more\n")
        else:
            found.append(all_of[name])
    return found


def trained(there: list[str], held: list[str]) -> list[str]:
    """As many pictures that were not held out, spread over the folder."""
    names = [name for name in there if name not in held]
    return [names[i] for i in spread(len(names), len(held))]


def trained_how(path: Path) -> dict:
    """What a model's file says of its training; nothing where it was not trained here."""
    with safe_open(path, "pt") as f:
        return json.loads((f.metadata() or {}).get("stya2k", "{}"))


def sheet(rows: list[list[Tensor]], path: Path, width: int = 192) -> None:
    """Pictures on a grid as a PNG."""
    lines = [torch.cat([interpolate(x, (width, width), mode="area")[0] for x in row], 2) for row in rows]
    image = torch.cat(lines, 1).permute(1, 2, 0).clamp(0, 1).mul(255).byte().numpy()
    cv2.imwrite(str(path), image[..., ::-1].copy())


BESIDE = ("input", "colour")  # rows that are no model
HELD = ("held_out_contents", "held_out_styles")
COLUMNS = ("style", "swd", "strokes", "content", "flow")
Columns = dict[str, list[float]]
Table = dict[str, Columns]


def judge_pictures(
    table: Table,
    run: dict[str, Method],
    contents: Tensor,
    pairs: list[tuple[slice, Tensor]],
    judge: Perceptual,
) -> None:
    """Into the table, for every style: means over the contents that are paired with it."""
    shown = judge(contents)
    for some, style in pairs:
        mine, wanted, target = contents[some], {k: v[some] for k, v in shown.items()}, judge(style)
        for name, made in run.items():
            out = made(mine, style)
            seen, row = judge(out), table[name]
            row["style"].append(float(moments_loss(seen, target, judge.style)))
            row["content"].append(float(content_loss(seen, wanted, judge.content)))
            for column, measure in (("swd", swd), ("strokes", strokes)):
                row[column].append(mean(measure(out, style)))


def opened(folder: Path, frames: int) -> dict[str, LazyVideo]:
    """The beginnings of a folder's clips, files or folders of PNG frames."""
    if frames < 2:
        raise ValueError(f"the flow error needs at least 2 frames of a clip, --frames is {frames}")
    clips = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        clips[path.name] = video = LazyVideo.from_file(path).fit(512).trim(0, frames)
        if video.frame_count < 2:
            raise ValueError(f"{path} has one frame: the flow error needs at least 2")
    return clips


def judge_clip(run: dict[str, Method], frames: Tensor, styles: list[Tensor], file: Path) -> Columns:
    """Every method's flow error in each style, and a sheet per style: five frames, a row for each model."""
    flow: Columns = {name: [] for name in run}
    planes = frames.permute(0, 3, 1, 2)
    for i, style in enumerate(styles):
        seen = {name: made(planes, style).permute(0, 2, 3, 1) for name, made in run.items()}
        for report in versions(seen, frames, Convention(), "dis-medium"):
            flow[report.name].append(report.error)
        rows = [
            [video[j].permute(2, 0, 1)[None] for j in spread(len(frames), 5)]
            for name, video in seen.items()
            if name not in BESIDE
        ]
        sheet(rows, file.with_name(f"{file.name}-{i}.png"))
    return flow


def as_table(rows: Table, show: Callable[[list[float]], str]) -> str:
    """Markdown, a line per row; nothing where nothing was measured."""
    columns = next(iter(rows.values()))
    head = f"| | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|\n"
    cells = {name: [show(values) if values else "" for values in row.values()] for name, row in rows.items()}
    return head + "".join(f"| {name} | {' | '.join(row)} |\n" for name, row in cells.items())


def with_error(values: list[float]) -> str:
    """A mean difference, its standard error, and how many are below zero."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):+.3f}{error} ({sum(v < 0 for v in values)} of {len(values)})"


def differences(table: Table, names: list[str]) -> Table:
    """Every later model less every earlier one, number by number."""
    return {
        f"{b} - {a}": {
            column: [y - x for x, y in zip(table[a][column], table[b][column], strict=True)]
            for column in table[a]
        }
        for a, b in combinations(names, 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        type=model,
        help="name=file or name=file@strength; held out is what the first says",
    )
    parser.add_argument("--contents", type=Path, required=True)
    parser.add_argument("--styles", type=Path, required=True)
    parser.add_argument("--clips", type=Path, help="folder of clips for the flow error")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--shift", type=int, default=0, help="each style gets the contents of another one")
    parser.add_argument("--all", action="store_true", help="every content with every style: takes long")
    parser.add_argument("--trained", action="store_true", help="judge on pictures trained on: to choose by")
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--frames", type=int, default=12)
    args = parser.parse_args()
    models = dict(args.models)
    if len(models) < len(args.models) or set(BESIDE) & set(models):
        parser.error("models need names of their own, other than input and colour")
    if args.pictures < 1:
        parser.error("--pictures is at least 1")
    about, *others = (trained_how(path) for path, _ in models.values())
    if not all(held in about for held in HELD):
        parser.error("the first model's file does not say what its training held out")
    for held in HELD:
        if any(set(about[held]) - set(other.get(held, about[held])) for other in others):
            parser.error(f"a model was trained on what the first one held out ({held})")
    try:
        clips = opened(args.clips, args.frames) if args.clips else {}
    except ValueError as e:
        parser.error(str(e))
    judge = load_perceptual(args.judge)
    there = []
    for folder in (args.contents, args.styles):
        found = (p.relative_to(folder).as_posix() for p in pictures_in(folder))
        there.append([name for name in found if name not in about.get("skipped", [])])
    names, looks = (
        trained(all_of, about[held]) if args.trained else about[held]
        for all_of, held in zip(there, HELD, strict=True)
    )
    contents = torch.cat([picture(args.contents / name, args.side) for name in names[: args.pictures]])
    styles = unseen(args.styles, there[1], looks, args.side)
    if len(contents) < len(styles) and not args.all:
        parser.error(f"{len(contents)} contents do not go round {len(styles)} styles: give --all or more")
    args.out.mkdir(parents=True, exist_ok=True)
    run = methods(models)
    table: Table = {name: {column: [] for column in COLUMNS} for name in run}
    n = len(styles)
    with torch.inference_mode():
        some = [slice(None) if args.all else slice((i + args.shift) % n, None, n) for i in range(n)]
        judge_pictures(table, run, contents, list(zip(some, styles, strict=True)), judge)
        for name, made in list(run.items())[1:]:
            rows = [[torch.ones_like(styles[0]), *styles[:6]]]
            rows += [[c[None], *(made(c[None], s) for s in styles[:6])] for c in contents[:4]]
            sheet(rows, args.out / f"sheet-{name}.png")
        flows = {}
        for name, video in clips.items():
            frames = torch.cat(list(video.chunks(8)))
            chosen = styles if args.all else styles[:3]
            flows[name] = judge_clip(run, frames, chosen, args.out / f"clip-{name}")
    for name, row in table.items():
        row["flow"] = [mean(values) for values in zip(*(flow[name] for flow in flows.values()), strict=True)]
    by_clip = {name: {clip: flow[name] for clip, flow in flows.items()} for name in run}
    (args.out / "values.json").write_text(json.dumps({"styles": table, "clips": by_clip}))
    text = as_table(table, lambda values: f"{mean(values):.3f}")
    if len(models) > 1:
        text += "\n" + as_table(differences(table, list(models)), with_error)
    if flows:
        text += "\n" + as_table(by_clip, lambda values: f"{mean(values):.1f}")
    (args.out / "table.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
