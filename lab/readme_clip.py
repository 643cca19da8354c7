"""Makes web/docs/before_after.webp, the moving picture of the README: the sample clip, and its styles.

python lab/readme_clip.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reelbrush import nodes
from reelbrush.nodes.common import pictures
from reelbrush.nodes.sample import CLIP, STYLES, copy_missing
from reelbrush.nodes.stya2k import library
from reelbrush.nodes.video.lazy_video import LazyVideo, in_step

ROOT = Path(__file__).resolve().parents[1]
WIDTH, EVERY = 320, 2


def main() -> None:
    folder = ROOT / "build" / "readme"
    copy_missing(folder)
    clip = LazyVideo.from_file(folder / CLIP)
    stylize = nodes.NODE_CLASS_MAPPINGS["ReelBrushStylizeVideo"]()
    look = {"strength": 1.0, "stroke_size": 512, "stabilize": 0.8, "keep_color": False, "max_side": 0}
    columns = [clip]
    for name in STYLES:
        style = pictures.read(folder / name)[0][None]
        made = stylize.stylize(video=clip, style=style, model=library.embedded()[0], **look)
        columns.append(made[0])
    height = round(WIDTH * clip.height / clip.width)
    shown = []
    for cells in in_step(columns, EVERY):
        first = [cell[0] for cell in cells]
        rows = torch.cat([torch.cat(first[:2], 1), torch.cat(first[2:], 1)])
        image = Image.fromarray((rows.numpy() * 255).round().astype(np.uint8))
        shown.append(image.resize((2 * WIDTH, 2 * height), Image.LANCZOS))
    target = ROOT / "web" / "docs" / "before_after.webp"
    shown[0].save(
        target,
        save_all=True,
        append_images=shown[1:],
        duration=round(1000 * EVERY / clip.fps),
        loop=0,
        quality=55,
    )


if __name__ == "__main__":
    main()
