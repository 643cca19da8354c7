"""A labelled contact sheet of a method: a row for each content and style, a column for each setting.

    python benchmarks/sheet.py                                        lists the methods
    python benchmarks/sheet.py diffusion.zstar --set weights=~/denoiser --vary style_scale=0.8,1.2,1.6 \\
        --contents ../shared/data/content --styles ../shared/data/style --out sheet.png
    python benchmarks/sheet.py stya2k.stylize --vary model=a.safetensors,b.safetensors --table \\
        --contents FOLDER --styles FOLDER --judge squeezenet.safetensors --held-out a.safetensors

A method is a function in benchmarks/methods: from a content, a style and its settings it makes pictures,
and optionally numbers. With `--clip` the content is a clip, and a setting has a row of its frames.
`weights` is a folder that lab/tiny_denoiser.py has written.

`--table` prints numbers (benchmarks/measures.py): the mean, and its standard error over the styles, or over
the contents of a single style. Then the differences to the first column, pair by pair, and in how many they
are below zero. Clips have the optical-flow error (mse, 0-255, valid pixels). `--judge` is a SqueezeNet.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush.benchmarks.measures import contrast, distances
from reelbrush.benchmarks.settings import combinations, function, listing, words
from reelbrush.lab.pictures import square
from reelbrush.nodes.common import pictures
from reelbrush.nodes.common.contact_sheet import contact_sheet, spread
from reelbrush.nodes.common.perceptual import load_perceptual
from reelbrush.nodes.flow.conventions import Convention
from reelbrush.nodes.flow.measure import versions
from reelbrush.nodes.stya2k.data import pictures_in, twins
from reelbrush.nodes.video.lazy_video import LazyVideo

LINE = 13  # pixels of a line of a label
Numbers = dict[str, float]
Values = dict[str, list[Numbers]]  # by column: the numbers of each pair of content and style


def held_out(model: str, kind: str) -> list[str] | None:
    """The pictures that a StyA2K model's training left out (kind: contents or styles)."""
    from safetensors import safe_open

    if not model:
        return None
    with safe_open(model, "pt") as file:
        return json.loads((file.metadata() or {}).get("stya2k", "{}"))[f"held_out_{kind}"]


def load(folder: Path, count: int, side: int, names: list[str] | None = None) -> list[Tensor]:
    """Square pictures of a folder or file; `names` chooses among them."""
    files = [folder] if folder.is_file() else pictures_in(folder)
    if names is not None:
        files = [folder / name for name in names]
    return [square(file, side) for file in files[:count]]


def without_copies(folder: Path, names: list[str] | None) -> list[str] | None:
    """The names whose picture is in the folder only once: the training may have seen a copy."""
    if names is None:
        return None
    small = {p.relative_to(folder).as_posix(): square(p, 64)[0].movedim(-1, 0) for p in pictures_in(folder)}
    others = {n: [(other, x) for other, x in small.items() if other != n] for n in names}
    return [n for n in names if not twins([(n, small[n])], others[n])]


def load_clip(path: Path, frames: int, side: int) -> Tensor:
    """The first frames of a clip or of a folder of PNG frames, cut to squares."""
    clip = torch.cat(list(LazyVideo.from_file(path).trim(0, frames).chunks()))
    short = min(clip.shape[1:3])
    top, left = ((n - short) // 2 for n in clip.shape[1:3])
    planes = clip[:, top : top + short, left : left + short].movedim(-1, 1)
    return interpolate(planes, size=side, mode="area").movedim(1, -1).contiguous()


def labelled(picture: Tensor, text: str, cell: int) -> Tensor:
    """A picture [h, w, 3] as a cell with lines of text above it."""
    lines = text.split("\n")
    small = interpolate(picture.movedim(-1, 0)[None].float(), (cell, cell), mode="area")[0].movedim(0, -1)
    strip = Image.new("RGB", (cell, LINE * len(lines) + 3), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(strip).text((2, 1 + LINE * i), line, "black")
    return torch.cat([torch.from_numpy(np.asarray(strip) / 255).float(), small.clamp(0, 1)])


def run(args: argparse.Namespace) -> tuple[list[list[Tensor]], Values, int]:
    """The rows of cells, the numbers by column, and the number of styles."""
    method = function("methods", args.method)
    fixed, columns = combinations(method, args.set)[0], combinations(method, args.vary)
    judge = load_perceptual(args.judge).float() if args.judge else None
    styles = load(
        args.styles, args.pictures, args.size, without_copies(args.styles, held_out(args.held_out, "styles"))
    )
    if args.clip:
        contents = [load_clip(args.clip, args.frames, args.size)]
    else:
        contents = load(args.contents, args.pictures, args.size, held_out(args.held_out, "contents"))
    rows: list[list[Tensor]] = []
    values: Values = {}
    for style in styles:
        for content in contents:
            outputs = {"content": content}
            numbers: dict[str, Numbers] = {"content": {}}
            for settings in columns:
                name = words(settings) or args.method
                made = method(content, style, **fixed, **settings)
                outputs[name], numbers[name] = made if isinstance(made, tuple) else (made, {})
            measure(judge, outputs, numbers, content, style)
            for name, row in numbers.items():
                values.setdefault(name, []).append(row)
            rows += cells(outputs, numbers, style, args)
    return rows, values, len(styles)


def measure(judge: Any, outputs: dict[str, Tensor], numbers: dict, content: Tensor, style: Tensor) -> None:
    """Add the distances that fit the outputs' shapes."""
    same = {name: out for name, out in outputs.items() if out.shape == content.shape}
    for name, out in same.items():
        numbers[name] |= distances(judge, out, content, style)
    if len(content) > 1:
        for report in versions(same, content, Convention(), "dis-medium"):
            numbers[report.name] |= {"flow": report.error, "contrast": contrast(same[report.name])}


def cells(
    outputs: dict[str, Tensor], numbers: dict[str, Numbers], style: Tensor, args: argparse.Namespace
) -> list[list[Tensor]]:
    """A row with content, style and a picture per column; of a clip, a row of frames per column."""

    def text(name: str) -> str:
        shown = {key: f"{v:.2f}" for key, v in numbers[name].items() if key in args.show}
        return f"{name}\n{words(shown)}"

    if not args.clip:
        row = [
            labelled(outputs["content"][0], "content\n", args.cell),
            labelled(style[0], "style\n", args.cell),
        ]
        return [row + [labelled(x[0], text(n), args.cell) for n, x in outputs.items() if n != "content"]]
    return [
        [labelled(style[0], text(n), args.cell)]
        + [labelled(x[i], f"frame {i}\n", args.cell) for i in spread(len(x), args.columns)]
        for n, x in outputs.items()
    ]


def table(values: Values, groups: int) -> str:
    """Means and differences to the first setting, in Markdown. Each of `groups` styles counts once."""
    names = list(values)

    def column(name: str, key: str) -> list[float]:
        each = [row[key] for row in values[name] if key in row]
        size = len(each) // groups if groups > 1 and len(each) % groups == 0 else 1
        return [mean(each[i : i + size]) for i in range(0, len(each), size)] if each else []

    def with_error(v: list[float], signed: bool) -> str:
        if not v:
            return ""
        error = f" ± {stdev(v) / len(v) ** 0.5:.3f}" if len(v) > 1 else ""
        below = f" ({sum(x < 0 for x in v)} of {len(v)})" if signed else ""
        return f"{mean(v):{'+' if signed else ''}.3f}{error}{below}"

    keys = list(dict.fromkeys(key for rows in values.values() for key in rows[0]))
    head = f"| | {' | '.join(keys)} |\n{'|---' * (len(keys) + 1)}|\n"
    lines = [[n, *(with_error(column(n, k), False) for k in keys)] for n in names]
    for a, b in [(names[1], name) for name in names[2:]]:
        pairs = {k: list(zip(column(a, k), column(b, k), strict=False)) for k in keys}
        lines.append([f"{b} - {a}", *(with_error([y - x for x, y in pairs[k]], True) for k in keys)])
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs="?", help="without a method, all are listed")
    parser.add_argument("--set", nargs="*", default=[], metavar="name=value", help="settings of all columns")
    parser.add_argument("--vary", nargs="*", default=[], metavar="name=a,b,c", help="a column for each")
    parser.add_argument("--contents", type=Path, help="a folder of pictures, or a picture")
    parser.add_argument("--styles", type=Path, help="a folder of pictures, or a picture")
    parser.add_argument("--clip", type=Path, help="a clip in place of contents")
    parser.add_argument("--pictures", type=int, default=3, help="at most so many of each folder")
    parser.add_argument("--frames", type=int, default=12, help="of the clip")
    parser.add_argument("--columns", type=int, default=6, help="frames of a clip that are shown")
    parser.add_argument("--size", type=int, default=256, help="pixels of contents and styles")
    parser.add_argument("--cell", type=int, default=192, help="pixels of a cell")
    parser.add_argument(
        "--held-out", default="", help="a StyA2K model: the pictures that it was not trained on"
    )
    parser.add_argument("--judge", type=Path, help="SqueezeNet, for distances of features")
    parser.add_argument("--show", nargs="*", default=["style", "content", "flow"], help="numbers in labels")
    parser.add_argument("--table", action="store_true", help="print numbers")
    parser.add_argument("--out", type=Path, help="the sheet; the numbers go beside it (.json)")
    args = parser.parse_args(arguments)
    if args.method is None:
        sys.stdout.write(listing("methods"))
        return
    function("methods", args.method)  # an unknown name is the first error
    if not args.styles or not (args.contents or args.clip):
        parser.error("give --styles, and --contents or --clip")
    with torch.inference_mode():
        rows, values, styles = run(args)
    if args.out:
        tall = torch.stack([cell for row in rows for cell in row])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        pictures.write(args.out, contact_sheet(tall, columns=len(rows[0]))[0])
        args.out.with_suffix(".json").write_text(json.dumps(values, indent=1))
    if args.table:
        sys.stdout.write(table(values, styles))


if __name__ == "__main__":
    main()
