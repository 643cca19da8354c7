"""Makes the pictures of the help pages (web/docs), each with the node that the page is about.

    python lab/help_pictures.py                        all of them, in a few minutes on a CPU
    python lab/help_pictures.py flow_warp.jpg          the named ones
    python lab/help_pictures.py --list
    python lab/help_pictures.py --out FOLDER

They are made from the sample, at most 720 pixels wide and 60 KB large, and for a panel of 260 pixels: two
columns and large labels. Nodes that need a checkpoint of Stable Diffusion have no picture, but for those
whose effect shows without trained weights: Seamless Tiling has a decoder with random weights, and Match
Latent Statistics and Reference from Noise get a picture in place of latents. AttnStyle has the judge of
textures of attnstyle_texture.py.
"""

import argparse
import io
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush import nodes
from reelbrush.lab import attnstyle_texture, tiny_vae
from reelbrush.nodes import sample
from reelbrush.nodes.common import pictures
from reelbrush.nodes.common.contact_sheet import spread
from reelbrush.nodes.stya2k import library
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.tests.diffusion.tiny import conditioning, tiny_model

log = logging.getLogger("help_pictures")
DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"
WIDTH, PLOT, BYTES = 560, 720, 60_000  # ComfyUI shows them 260 pixels wide
GAP, LINE, FONT = 6, 34, 25
PICTURES: dict[str, Callable[[], Tensor]] = {}
Cell = tuple[str, Tensor]  # a label, and a picture [h, w, 3]


def named(name: str) -> Callable:
    """Register the function that makes a picture [h, w, 3]."""

    def register(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
        PICTURES[name] = make
        return make

    return register


def run(node_id: str, **inputs: Any) -> tuple:
    """The outputs of a node; inputs that are not given have their defaults."""
    node = nodes.NODE_CLASS_MAPPINGS[f"ReelBrush{node_id}"]
    declared = {k: v for group in node.INPUT_TYPES().values() for k, v in group.items()}
    defaults = {name: options["default"] for name, (_, options) in declared.items() if "default" in options}
    result = getattr(node(), node.FUNCTION)(**defaults | inputs)
    return result["result"] if isinstance(result, dict) else result


# -- layout ----------------------------------------------------------------------------------------


def sheet(cells: Sequence[Cell], columns: int = 2) -> Tensor:
    """Labelled pictures in rows of `columns`, `WIDTH` pixels wide in all."""
    wide = (WIDTH - GAP * (columns - 1)) // columns
    drawn = [labelled(text, resized(picture, wide)) for text, picture in cells]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(len(cell) for cell in row) for row in rows]
    page = torch.ones(sum(heights) + GAP * (len(rows) - 1), wide * columns + GAP * (columns - 1), 3)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            page[top : top + len(cell), i * (wide + GAP) : i * (wide + GAP) + wide] = cell
        top += height + GAP
    return page


def resized(picture: Tensor, width: int) -> Tensor:
    planes = picture[..., :3].movedim(-1, 0)[None].float()
    size = (max(1, round(width * picture.shape[0] / picture.shape[1])), width)
    return interpolate(planes, size, mode="bilinear", antialias=True)[0].movedim(0, -1).clamp(0, 1)


def labelled(text: str, picture: Tensor) -> Tensor:
    strip = Image.new("RGB", (picture.shape[1], LINE), "white")
    ImageDraw.Draw(strip).text((2, 1), text, "black", ImageFont.load_default(FONT))
    return torch.cat([torch.from_numpy(np.asarray(strip) / 255).float(), picture])


def encoded(picture: Tensor) -> bytes:
    """A JPEG of at most `BYTES`, of the best quality that fits."""
    image = Image.fromarray((picture.clamp(0, 1).numpy() * 255).round().astype(np.uint8))
    for quality in range(90, 30, -4):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= BYTES:
            break
    return file.getvalue()


def grey(mask: Tensor) -> Tensor:
    """A mask [h, w] as a picture."""
    return mask[..., None].expand(-1, -1, 3)


# -- what the pictures are made of -----------------------------------------------------------------


def clip(name: str = sample.CLIP) -> LazyVideo:
    return LazyVideo.from_file(sample.FOLDER / name)


@cache
def frames(name: str = sample.CLIP, count: int = 48) -> Tensor:
    return torch.cat(list(clip(name).trim(0, count).chunks()))


def picture(name: str) -> Tensor:
    return pictures.read(sample.FOLDER / name)[0][..., :3]


def styles() -> list[Tensor]:
    return [picture(name) for name in sample.STYLES]


@cache
def style(number: int = 0, size: int = 512) -> Any:
    (model,) = run("LoadStyA2K", model=library.embedded()[0])
    return run("StyA2KStyle", model=model, style=styles()[number][None], size=size)[0]


# -- video -----------------------------------------------------------------------------------------


@named("video_preview.jpg")
def preview() -> Tensor:
    return resized(run("PreviewVideo", video=clip())[0][0], WIDTH)


@named("key_frames.jpg")
def key_frames() -> Tensor:
    images, numbers = run("KeyFrames", video=clip(sample.CLIP_CUT), count=4)
    return sheet([(f"frame {n}", image) for n, image in zip(numbers.split(", "), images, strict=True)])


# -- flow ------------------------------------------------------------------------------------------


FLICKERS = sample.CLIP_STYLIZED


@cache
def flow() -> tuple:
    return run("OpticalFlow", images=frames())


@cache
def stabilized() -> Tensor:
    return run("Stabilize", stylized=frames(FLICKERS), content=frames(), flow=flow()[0])[0]


@named("flow_optical.jpg")
def optical() -> Tensor:
    _, valid, colours = flow()
    cells = [(f"frame {n}", frames()[n]) for n in (19, 20)]
    return sheet([*cells, ("picture", colours[20]), ("valid", grey(valid[20]))])


@named("flow_warp.jpg")
def warped() -> Tensor:
    moved, valid = run("FlowWarp", images=frames(), flow=flow()[0])
    before, now = frames()[19:21]
    cells = [("frame 20", now), ("minus frame 19", (now - before).abs() * 3)]
    cells += [("minus 19, moved", (now - moved[20]).abs() * 3), ("valid", grey(valid[20]))]
    return sheet(cells)


@named("flow_stabilize.jpg")
def stabilize() -> Tensor:
    return sheet(
        [
            (f"{name} {i}", shown[i])
            for i in (20, 21)
            for name, shown in (("stylized", frames(FLICKERS)), ("stabilized", stabilized()))
        ],
    )


@named("flow_error_plot.jpg")
def error_plot() -> Tensor:
    return resized(run("FlowError", stylized=frames(FLICKERS), content=frames())[1][0], PLOT)


@named("flow_error_heatmap.jpg")
def error_heatmap() -> Tensor:
    return resized(run("FlowErrorVideo", stylized=clip(FLICKERS), content=clip())[2][0], PLOT)


@named("flow_report.jpg")
def report() -> Tensor:
    versions = {"a": frames(FLICKERS), "b": stabilized(), "names": "stylized,stabilized"}
    return resized(run("StabilityReport", content=frames(), **versions)[0][0], PLOT)


# -- StyA2K ----------------------------------------------------------------------------------------


@named("stya2k_video.jpg")
def stylized_clip() -> Tensor:
    cells = [("clip", frames()[12])]
    for name, art in zip(("swirls", "waves", "glass"), styles(), strict=True):
        made = run("StylizeVideo", video=clip().trim(0, 13), style=art[None], model=library.embedded()[0])[0]
        cells.append((name, made.frames_at([12])[0]))
    return sheet(cells)


@named("stya2k_frames.jpg")
def stylized_frames() -> Tensor:
    (made,) = run("StyA2KApplyVideo", style=style(), video=clip())
    numbers = spread(made.frame_count, 3)
    before, after = clip().frames_at(numbers), made.frames_at(numbers)
    pairs = zip(numbers, before, after, strict=True)
    return sheet([cell for n, a, b in pairs for cell in ((f"frame {n}", a), ("stylized", b))])


@named("stya2k_apply.jpg")
def stylized() -> Tensor:
    frame = frames()[12:13]
    shown = {"strength 0.5": {"strength": 0.5}, "strength 1": {}, "keep_color": {"keep_color": True}}
    made = {k: run("StyA2KApply", style=style(), images=frame, **v)[0][0] for k, v in shown.items()}
    return sheet([("images", frame[0]), *made.items()])


@named("stya2k_style.jpg")
def stroke_sizes() -> Tensor:
    frame = frames()[12:13]
    made = [
        (f"size {n}", run("StyA2KApply", style=style(1, n), images=frame)[0][0]) for n in (192, 512, 1024)
    ]
    return sheet([("style", fitted(styles()[1], frame[0])), *made])


def fitted(inner: Tensor, like: Tensor) -> Tensor:
    """A picture in the middle of a white one with the shape of another one."""
    height, width = like.shape[:2]
    small = resized(inner, round(height * inner.shape[1] / inner.shape[0]))[:height]
    left = (width - small.shape[1]) // 2
    page = torch.ones(height, width, 3)
    page[: len(small), left : left + small.shape[1]] = small
    return page


@named("stya2k_mix.jpg")
def mixed() -> Tensor:
    frame = frames()[12:13]
    height, width = frame.shape[1:3]
    ramp = torch.linspace(-1, 2, width).clamp(0, 1).expand(1, height, width)
    shown = {f"amount {n:g}": {"amount": n} for n in (0.0, 0.5, 1.0)}
    shown["mask"] = {"amount": 1.0, "mask": ramp}
    cells = []
    for name, settings in shown.items():
        (mixture,) = run("StyA2KMix", a=style(0), b=style(1), **settings)
        cells.append((name, run("StyA2KApply", style=mixture, images=frame)[0][0]))
    masked = [("mask", grey(ramp[0])), ("amount 1, mask", cells.pop()[1])]
    return sheet([("images", frame[0]), *cells, *masked])


# -- diffusion -------------------------------------------------------------------------------------


def as_latent(image: Tensor) -> dict[str, Tensor]:
    return {"samples": image.movedim(-1, 0)[None]}


@named("match_latent.jpg")
def matched() -> Tensor:
    frame, art = frames()[12], styles()[0]
    cells = [("latent", frame), ("reference", fitted(art, frame))]
    for strength in (0.5, 1.0):
        inputs = {"latent": as_latent(frame), "reference": as_latent(art), "strength": strength}
        (made,) = run("MatchLatent", **inputs)
        cells.append((f"strength {strength:g}", made["samples"][0].movedim(0, -1)))
    return sheet(cells)


# -- textures --------------------------------------------------------------------------------------


LABELS = torch.tensor([[0.2, 0.3, 0.9], [0.2, 0.65, 0.3], [0.95, 0.75, 0.2]])


@named("texture_init.jpg")
def texture_init() -> Tensor:
    """The swirls by rows: sky, hills, fields; the target has them as discs."""
    source = resized(styles()[0], 384)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 384)] * 2, indexing="ij")
    source_labels = LABELS[(y > 0.15).long() + (y > 0.6).long()]
    r = (x.square() + y.square()).sqrt()
    target_labels = LABELS[(r < 0.85).long() + (r < 0.45).long()]
    inputs = {"source": source, "source_labels": source_labels, "target_labels": target_labels}
    image = run("TextureInit", **{name: x[None] for name, x in inputs.items()})[0]
    return sheet([*inputs.items(), ("image", image[0])])


class Patcher:
    """ComfyUI's ModelPatcher, as far as Seamless Tiling needs it."""

    def __init__(self):
        self.patches: dict[str, Callable] = {}

    def clone(self) -> "Patcher":
        return Patcher()

    def add_object_patch(self, name: str, value: Callable) -> None:
        self.patches[name] = value


@named("seamless.jpg")
@torch.no_grad()
def seamless() -> Tensor:
    torch.manual_seed(0)
    network = tiny_vae.Autoencoder()
    tiny_vae.initialize(network, torch.rand(4, 3, 64, 64))
    network.taesd_decoder[-1].weight.mul_(2)
    vae = SimpleNamespace(first_stage_model=network, patcher=Patcher(), upscale_ratio=8)
    noise = torch.randn(1, 4, 12, 12)
    cells = [("without", network.decode(noise))]
    _, tiles = run("Seamless", model=tiny_model("sd15"), vae=vae)
    for path, convolve in tiles.patcher.patches.items():
        network.get_submodule(path.rpartition(".")[0])._conv_forward = convolve
    cells.append(("with the node", network.decode(noise)))
    return sheet([(name, x[0].movedim(0, -1).clamp(0, 1).repeat(2, 2, 1)) for name, x in cells])


@named("reference_noise.jpg")
def reference_noise() -> Tensor:
    model, art = tiny_model("sd15"), resized(styles()[0], 70)
    scale = model.model.process_latent_in(torch.ones(1))
    latent = as_latent((art - 0.5) * 4 / scale)  # about unit variance in the model, as latents have
    sigmas = torch.tensor([5.0, 1.5, 0.5, 0.0])
    (made,) = run("ReferenceNoise", latent=latent, model=model, positive=conditioning(model), sigmas=sigmas)
    shown = [(x[0] / 4 + 0.5).movedim(0, -1) for x in made.latents]
    return sheet([(f"sigma {s:g}", x) for s, x in zip(made.sigmas.tolist(), shown, strict=True)])


# -- AttnStyle -------------------------------------------------------------------------------------


@named("attnstyle.jpg")
def attnstyle() -> Tensor:
    with torch.inference_mode(False):  # gradients go through the judge
        judge = attnstyle_texture.TextureJudge()
    frame = resized(frames()[12], 192)[None]
    others = "\n".join(w for w in attnstyle_texture.WORDS if w not in ("striped", "photo"))
    settings = {"patches": 16, "threshold": 0.2, "other_texts": others}
    images, *_ = run("AttnStyle", judge=judge, images=frame, style_text="striped", **settings)
    return sheet([("images", frame[0]), ("style_text: striped", images[0])])


# -- the command -----------------------------------------------------------------------------------


def make(names: Sequence[str], out: Path) -> None:
    """Make pictures and write them to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        begin = time.monotonic()
        file = encoded(PICTURES[name]())
        (out / name).write_bytes(file)
        log.info("%s: %.0f KB, %.0f s", name, len(file) / 1000, time.monotonic() - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="the files to make; all if none is named")
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder; web/docs by default")
    parser.add_argument("--list", action="store_true", help="list the names")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - PICTURES.keys():
        parser.error(f"there is no picture {', '.join(sorted(unknown))}: --list shows the names")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.list:
        sys.stdout.write("\n".join([*PICTURES, ""]))
        return
    with torch.inference_mode():
        make(args.names or list(PICTURES), args.out)


if __name__ == "__main__":
    main()
