"""DiffStyler to look at, with the denoiser of our own (benchmarks/tiny_denoiser.py) and its style LoRAs.

    python benchmarks/diffstyler_pictures.py grid --weights ~/denoiser --data ../shared/data
        --loras glass.safetensors --styles glass --out grid.png
    python benchmarks/diffstyler_pictures.py steps   ... the same
    python benchmarks/diffstyler_pictures.py regions ... the same, with two of each

`grid` is the paper's Fig. 6: rows are SD, +LoRA, +prompt and both, columns what is injected (nothing,
features, self-attention, cross-attention, pairs, all). As in the paper, the row without a LoRA has a prompt
that describes the style picture (all words for its light and colours), the row with one a simple prompt.
`steps` is Fig. 7: features until 0, 10, 20, 30, 50 of 50 steps from left to right, attention from top to
bottom, for LoRA and prompt together. Under each picture stand the style distance (Gram matrices of
SqueezeNet) and the content distance (its deeper features); the same as lines of text. `regions`: two styles
in moving masks on a clip, outside the base model (eq. 7) and outside the content (eq. 6), with the PSNR
outside the masks against the plain reconstruction and against the clip, in latents (deviation 1) and in
pixels: the decoder looks some points around itself, so pixels beside a mask see the style a little even
where no latent has changed. LoRAs: benchmarks/lora_style.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
from temporal_clip import clip as frames_of
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d
from zstar_pictures import CONTENTS, Bench, distances

from reelbrush.lab import tiny_denoiser as own
from reelbrush.lab.made_styles import style_picture
from reelbrush.lab.pictures import square
from reelbrush.nodes.diffusion.inversion.inversion import psnr
from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.diffusion.nodes_inject import ApplyStyleLoRA, Inject
from reelbrush.nodes.stya2k.perceptual import load_perceptual

PROMPT = "painting"
EVERYTHING = ("features", "self", "cross")
COLUMNS = {
    "nothing": (),
    "features": ("features",),
    "SA": ("self",),
    "CA": ("cross",),
    "features, SA": ("features", "self"),
    "SA, CA": ("self", "cross"),
    "all": EVERYTHING,
}
CELL, LABEL = 192, 34
POINT = 8  # pixels of a latent's point


class Cells(Bench):
    """The denoiser with its content, LoRAs and prompts."""

    def __init__(self, given: argparse.Namespace):
        super().__init__(given.weights, given.steps, given.refine)
        self.cfg, self.given = given.cfg, given
        self.loras = [lora.load(Path(p)) for p in given.loras]
        self.styles = [style_picture(given.data, n, given.size) for n in given.styles]
        self.network = load_perceptual(given.data / "squeezenet_v1_0.fp16.safetensors").float()

    def injected(
        self, model: Any, path: Any, what: tuple, features: float = 0.6, attention: float = 0.5
    ) -> Any:
        ends = {"feature_end": features if "features" in what else 0.0, "attention_end": attention}
        kinds = ("self" in what, "cross" in what)
        return Inject().patch(model, path, self.given.blocks, "all", *kinds, blend="replace", **ends)[0]

    def sampled(self, model: Any, noise: dict, sigmas: Tensor, prompt: str) -> Tensor:
        """IMAGE; guidance where there is a prompt to guide to."""
        given = (model, self.tools.euler, noise["samples"], sigmas, own.encode_text(prompt), self.null)
        return self.vae.decode(self.tools.sample(*given, cfg=self.cfg if prompt else 1.0))

    def cell(self, shown: Tensor, content: Tensor, words: str = "") -> Tensor:
        """A picture, enlarged, with its distances below."""
        (pair,) = distances(self.network, shown, content, self.styles[0].expand_as(content))
        sys.stdout.write(f"{words:>44}  style distance {pair[0]:.3f}  content distance {pair[1]:.3f}\n")
        sys.stdout.flush()
        return labelled(shown[0], f"s {pair[0]:.2f} c {pair[1]:.2f}", words)


def labelled(image: Tensor, below: str = "", above: str = "") -> Tensor:
    """One picture [h, w, 3] as a cell of a sheet, uint8."""
    pixels = (image.clamp(0, 1) * 255).round().byte().numpy()[..., ::-1].copy()
    pixels = cv2.resize(pixels, (CELL, CELL), interpolation=cv2.INTER_AREA)
    pixels = cv2.copyMakeBorder(pixels, 16, LABEL - 16, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    for text, y in ((above, 12), (below, CELL + 29)):
        cv2.putText(pixels, text, (3, y), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (0, 0, 0), 1, cv2.LINE_AA)
    return torch.from_numpy(pixels)


def described(style: Tensor) -> str:
    """What the denoiser has words for in a picture."""
    fits = own.described(avg_pool2d(style.movedim(-1, 1), POINT).movedim(1, -1))[0].tolist()
    return " ".join([PROMPT, *(word for word, fit in zip(own.WORDS[-len(fits) :], fits, strict=True) if fit)])


def written(rows: list[list[Tensor]], out: Path) -> None:
    blank = torch.full_like(rows[0][0], 255)
    most = max(len(row) for row in rows)
    lines = [torch.cat(row + [blank] * (most - len(row)), dim=1) for row in rows]
    cv2.imwrite(str(out), torch.cat(lines).numpy())


@torch.inference_mode()
def grid(given: argparse.Namespace) -> None:
    """Fig. 6."""
    bench = Cells(given)
    content = square(given.data / "content" / given.content, given.size)
    noise, path, sigmas = bench.invert(content)
    styled = ApplyStyleLoRA().patch(bench.model, bench.loras[0], given.strength)[0]
    lines = [[labelled(content[0], above="content"), labelled(bench.styles[0][0], above="style")]]
    words = described(bench.styles[0])
    sys.stdout.write(f"the prompt without a LoRA: {words}\n")
    ways = {"SD": (bench.model, ""), "+LoRA": (styled, ""), "+prompt": (bench.model, words)}
    for name, (model, prompt) in {**ways, "+LoRA +prompt": (styled, PROMPT)}.items():
        line = []
        for column, what in COLUMNS.items():
            shown = bench.sampled(bench.injected(model, path, what), noise, sigmas, prompt)
            line.append(bench.cell(shown, content, f"{name}: {column}"))
        lines.append(line)
        written(lines, given.out)


@torch.inference_mode()
def steps(given: argparse.Namespace) -> None:
    """Fig. 7."""
    bench = Cells(given)
    content = square(given.data / "content" / given.content, given.size)
    noise, path, sigmas = bench.invert(content)
    styled = ApplyStyleLoRA().patch(bench.model, bench.loras[0], given.strength)[0]
    lines = [[labelled(content[0], above="content"), labelled(bench.styles[0][0], above="style")]]
    for attention in given.ends:
        lines.append([])
        for features in given.ends:
            model = bench.injected(styled, path, EVERYTHING, features, attention)
            shown = bench.sampled(model, noise, sigmas, PROMPT)
            words = f"f {features * 50:.0f}, A {attention * 50:.0f} of 50"
            lines[-1].append(bench.cell(shown, content, words))
        written(lines, given.out)


@torch.inference_mode()
def regions(given: argparse.Namespace) -> None:
    """Two styles in moving masks; what is outside them."""
    bench = Cells(given)
    size, count = given.size, given.frames
    content = frames_of(given, size)
    noise, path, sigmas = bench.invert(content)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = [torch.zeros(count, size, size) for _ in range(2)]
    for i in range(count):
        step = size // 3 * i // max(count - 1, 1)
        masks[0][i] = ((x - size // 4 - step) ** 2 + (y - size // 3) ** 2 < (size // 5) ** 2).float()
        masks[1][i] = (y > size * 3 // 4).float()
    text = own.encode_text(PROMPT)

    def drawn(contents: Any) -> Tensor:
        model = bench.model
        for region, mask in zip(bench.loras, masks, strict=True):
            more = {"mask": mask, "positive": text, "content": contents}
            model = ApplyStyleLoRA().patch(model, region, given.strength, **more)[0]
        model = bench.injected(model, path, EVERYTHING, *given.until)
        given_ = (model, bench.tools.euler, noise["samples"], sigmas, bench.null, bench.null)
        return bench.tools.sample(*given_, cfg=bench.cfg)

    plain = (bench.model, bench.tools.euler, noise["samples"], sigmas, bench.null)
    found = {
        "clip": bench.vae.encode(content),
        "reconstruction": bench.tools.sample(*plain),
        "eq. 7": drawn(None),
        "eq. 6": drawn(path),
    }
    shown = {name: bench.vae.decode(latent) for name, latent in found.items()}
    touched = max_pool2d((masks[0] + masks[1])[:, None], POINT)  # points that a mask reaches into
    say = sys.stdout.write
    for name in ("eq. 7", "eq. 6"):
        for where, far in (("outside", 0), ("4 points off the masks", 4)):
            out = max_pool2d(touched, 2 * far + 1, 1, far) == 0
            point, pixel = out.expand_as(found[name]), interpolate(out.float(), scale_factor=POINT)[:, 0] > 0
            for other in ("reconstruction", "clip"):
                latents = psnr(found[name][point], found[other][point])
                pixels = psnr(shown[name][pixel], shown[other][pixel])
                say(f"{name}, {where}, to the {other}: {pixels:.2f} dB, latents {latents:.2f} dB\n")
        inside = touched.expand_as(found[name]) > 0
        say(
            f"{name}, inside: latents {psnr(found[name][inside], found['clip'][inside]):.2f} dB to the clip\n"
        )
    say(f"the reconstruction: {psnr(shown['reconstruction'], shown['clip']):.2f} dB to the clip\n")
    shown["masks"] = torch.stack([masks[0], masks[1], masks[0] * 0], dim=-1)
    lines = [[labelled(s[0], above="style") for s in bench.styles]]
    lines += [[labelled(f, above=name) for f in images] for name, images in shown.items()]
    written(lines, given.out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["grid", "steps", "regions"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--loras", nargs="+", required=True, help="files that lora_style.py has made")
    parser.add_argument(
        "--styles", nargs="+", required=True, help="glass, lines, or files in the data's style/"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--content", default=CONTENTS[0])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--refine", type=int, default=1, help="fixed-point iterations of the inversion")
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--ends", type=float, nargs="+", default=(0.0, 0.2, 0.4, 0.6, 1.0), help="of `steps`")
    until = {"default": (0.6, 0.5), "help": "of `regions`: the ends of features and of attention"}
    parser.add_argument("--until", type=float, nargs=2, **until)
    parser.add_argument("--blocks", default="4-11", help="of features")
    given = parser.parse_args()
    {"grid": grid, "steps": steps, "regions": regions}[given.what](given)


if __name__ == "__main__":
    main()
