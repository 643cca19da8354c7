"""Draws workflows/<name>.jpg for workflows whose result needs published weights: what goes in, and the idea.

    python lab/thumbnails.py [--out FOLDER] [name ...]

ComfyUI's template browser shows these pictures. Workflows that run without a checkpoint show their result.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib.font_manager
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "nodes" / "sample" / "files"
SIZE, SIDE, TOP = (640, 360), 200, 88
BACKGROUND, WORDS, QUIET = (32, 33, 37), (240, 240, 240), (190, 190, 195)
SWIRLS, GLASS = "reelbrush_style_swirls.png", "reelbrush_style_glass.png"
CARDS = {
    "sample_video_sd15": ("A clip of any length, Z*", [("clip", "clip"), (SWIRLS, "style")]),
    "zstar_official_sd15": ("Z* as in the authors' code", [("clip", "clip"), (SWIRLS, "style")]),
    "ad_video_sd15": ("A clip of any length, Attention Distillation", [("clip", "clip"), (SWIRLS, "style")]),
    "diffstyler_video_sd15": (
        "DiffStyler: a style per region",
        [("clip", "clip"), ("reelbrush_mask_far.mp4", "mask"), (SWIRLS, "style")],
    ),
    "ad_layout_sd15": ("A layout of your own", [("layout", "layout"), (SWIRLS, "style")]),
    "ad_texture_sampled_sd15": ("Textures, sampled", [(GLASS, "example"), ("noise", "noise")]),
}


def picture(name: str) -> Image.Image:
    """A square picture: a file of the sample, its clip's first frame, a drawn layout, or noise."""
    if name == "noise":
        return Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    if name == "layout":
        made = Image.new("RGB", (SIDE, SIDE), (90, 140, 200))
        draw = ImageDraw.Draw(made)
        draw.rectangle((0, 130, SIDE, SIDE), fill=(70, 120, 60))
        draw.ellipse((130, 20, 175, 65), fill=(240, 220, 120))
        draw.polygon([(10, 130), (75, 45), (140, 130)], fill=(120, 110, 110))
        return made
    name = name.replace("clip", "reelbrush_sample.mp4")
    if name.endswith(".mp4"):
        _, frame = cv2.VideoCapture(str(SAMPLE / name)).read()
        made = Image.fromarray(frame[..., ::-1])
    else:
        made = Image.open(SAMPLE / name).convert("RGB")
    side = min(made.size)
    left, top = ((length - side) // 2 for length in made.size)
    return made.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def card(title: str, parts: list[tuple[str, str]]) -> Image.Image:
    """The title, and the pictures with their names below and a plus sign between them."""
    font = matplotlib.font_manager.findfont("DejaVu Sans")
    large, small = (ImageFont.truetype(font, size) for size in (26, 17))
    side = min(SIDE, (SIZE[0] - 20) // len(parts) - 40)
    made = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(made)
    draw.text((24, 28), title, WORDS, large)
    gap = (SIZE[0] - len(parts) * side) // (len(parts) + 1)
    for number, (name, label) in enumerate(parts):
        left = gap + number * (side + gap)
        made.paste(picture(name).resize((side, side)), (left, TOP))
        draw.text((left, TOP + side + 14), label, QUIET, small)
        if number:
            draw.text((left - gap // 2, TOP + side // 2), "+", WORDS, large, anchor="mm")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--out", type=Path, default=ROOT / "workflows")
    args = parser.parse_args()
    for name in args.names or CARDS:
        card(*CARDS[name]).save(args.out / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
