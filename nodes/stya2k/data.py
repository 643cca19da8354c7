"""Training pictures: any folder, shrunk once into one packed file, and drawn at random without state.

`pack` decodes and shrinks every picture of a folder into one safetensors file (a uint8 tensor [H, W, 3] per
name), which later runs read. Larger folders (MS-COCO at 512 has 80 GB of pixels) are read picture by
picture. Corrupt pictures are skipped and counted. The data of step k depends only on (seed, k), so a
resumed run needs no state of the data.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ..common import pictures
from ..common.files import fingerprint, replacing
from ..common.weights import reading

log = logging.getLogger("reelbrush")
PACKED = 4 << 30  # bytes of pixels that are packed at most


def _read(path: Path, side: int) -> np.ndarray | None:
    """A picture with short side `side`, None where it cannot be read or is too small."""
    import cv2

    try:
        picture, _ = pictures.read(path)
    except (ValueError, OSError):
        return None
    h, w = picture.shape[:2]
    if min(h, w) < 32:
        return None
    scale = side / min(h, w)
    size = (max(side, round(w * scale)), max(side, round(h * scale)))
    pixels = (picture * 255).round().byte().numpy()
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.ascontiguousarray(pixels[: 2 * side, : 2 * side])  # panoramas are cut


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and its sub-folders, sorted."""
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in pictures.EXTENSIONS)


def pack(folder: Path, file: Path, side: int) -> int:
    """Write `folder`'s pictures, short side `side`, into `file`. Returns how many could not be read."""
    paths = pictures_in(folder)
    packed: dict[str, Tensor] = {}
    skipped = []
    for path in paths:
        image = _read(path, side)
        name = path.relative_to(folder).as_posix()
        if image is None:
            skipped.append(name)
            log.warning("training picture %s cannot be read: skipped", name)
        else:
            packed[name] = torch.from_numpy(image)
    if not packed:
        raise ValueError(
            f"the folder {Path(folder).name!r} has no readable picture ({', '.join(pictures.EXTENSIONS)})"
        )
    about = {"side": str(side), "stamp": fingerprint(*paths), "skipped": json.dumps(skipped)}
    with replacing(file) as temporary:
        save_file(packed, temporary, metadata=about)
    return len(skipped)


class Pictures:
    """A folder of training pictures, packed on first use into `cache`, or read as they are drawn."""

    def __init__(self, folder: Path, cache: Path, side: int, limit: int = PACKED):
        folder = Path(folder)
        self.folder, self.cache, self.side = folder, cache, side
        self.skipped: list[str] = []
        self._open: Any = None
        if folder.suffix == ".safetensors":
            return self._use(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder.name!r} is no folder of pictures")
        paths = pictures_in(folder)
        if len(paths) * side * side * 4 > limit:  # 3 bytes per pixel, and most pictures are not square
            self.names = [p.relative_to(folder).as_posix() for p in paths]
            return None
        file = cache / f"{folder.name}-{side}.safetensors"
        if not self._fresh(file, side, paths):
            pack(folder, file, side)
        return self._use(file)

    def _use(self, file: Path) -> None:
        with reading(file, "file of packed pictures"):
            self._open = safe_open(file, "pt")
            self.names = sorted(self._open.keys())
            self.skipped = json.loads((self._open.metadata() or {}).get("skipped", "[]"))

    @staticmethod
    def _fresh(file: Path, side: int, paths: list[Path]) -> bool:
        if not file.is_file():
            return False
        try:
            with safe_open(file, "pt") as f:
                meta = f.metadata() or {}
        except SafetensorError:  # damaged: it is packed again
            return False
        return meta.get("side") == str(side) and meta.get("stamp") == fingerprint(*paths)

    def get(self, name: str) -> Tensor | None:
        """[3, H, W] in 0..1; None, with one warning, if it cannot be read."""
        if self._open is not None:
            return self._open.get_tensor(name).permute(2, 0, 1).float() / 255
        image = _read(self.folder / name, self.side)
        if image is not None:
            return torch.from_numpy(image).permute(2, 0, 1).float() / 255
        if name not in self.skipped:
            log.warning("training picture %s cannot be read: skipped", name)
            self.skipped.append(name)
        return None

    def some(self, names: list[str], first: int = 0) -> Iterator[Tensor]:
        """The pictures of `names` that can be read, from number `first` on, then from the beginning."""
        for i in range(len(names)):
            picture = self.get(names[(first + i) % len(names)])
            if picture is not None:
                yield picture

    def draw(self, names: list[str], rng: torch.Generator) -> Tensor:
        """A random one of `names`, or the one after it if it cannot be read."""
        first = int(torch.randint(len(names), (1,), generator=rng))
        for picture in self.some(names, first):
            return picture
        raise ValueError(f"the folder {self.folder.name!r} has no readable picture")

    def apart(self, held: list[str]) -> list[str]:
        """The names to train on: without the held-out pictures, and without other files of the same pictures
        (another size or name). In folders that are too large to pack, only names are compared."""
        kept = [n for n in self.names if n not in set(held)]
        if self._open is None:
            return kept
        same = set(twins(((n, self.get(n)) for n in kept), ((n, self.get(n)) for n in held)))
        left = [n for n in kept if n not in same]
        if not left:  # all pictures show the same: train on all of them instead of stopping with an error
            return kept
        if same:
            log.info("%d pictures are copies of held-out pictures and are not used for training", len(same))
        return left

    def hold_out(self, count: int, seed: int) -> list[str]:
        """`count` names chosen by the seed, at most a third of the folder."""
        order = torch.randperm(len(self.names), generator=torch.Generator().manual_seed(seed)).tolist()
        return sorted(self.names[i] for i in order[: min(count, len(order) // 3)])


Named = Iterable[tuple[str, Tensor]]
ALIKE = 0.98  # correlation of thumbnails: other sizes of a picture 0.999, the nearest other pictures 0.93


def twins(pictures: Named, of: Named) -> list[str]:
    """Names of `pictures` that show the same as one of `of`, at any size."""

    def thumbnail(picture: Tensor) -> Tensor:
        small = functional.interpolate(picture[None], (16, 16), mode="area").flatten()
        small = small - small.mean()
        return small / small.norm().clamp_min(1e-3)

    others = [thumbnail(picture) for _, picture in of]
    if not others:
        return []
    known = torch.stack(others)
    return [name for name, picture in pictures if float((known @ thumbnail(picture)).max()) > ALIKE]


ZOOM = (0.4, 0.8)  # crops of many scales: one set of weights sees strokes of many sizes


def crop(picture: Tensor, size: int, rng: torch.Generator, zoom: tuple[float, float] = ZOOM) -> Tensor:
    """A random square of `size`. `zoom` is its share of the short side."""
    h, w = picture.shape[-2:]
    short = min(h, w)
    low, high = max(zoom[0], min(1.0, size / short) * 0.75), zoom[1]
    u, v, flip, t = torch.rand(4, generator=rng).tolist()
    side = max(8, min(short, round(short * (low + max(0.0, high - low) * t))))
    y, x = round(u * (h - side)), round(v * (w - side))
    cut = picture[None, :, y : y + side, x : x + side]
    if side != size:
        cut = functional.interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (cut.flip(-1) if flip < 0.5 else cut)[0]


def recolor(style: Tensor, rng: torch.Generator, share: float) -> Tensor:
    """Colour augmentation: with probability `share`, permuted channels and sometimes a negative."""
    u, which, invert = torch.rand(3, generator=rng).tolist()
    if u >= share:
        return style
    order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][int(which * 6)]
    style = style[list(order)]
    return 1 - style if invert < 0.15 else style


def step_rng(seed: int, step: int) -> torch.Generator:
    """The random generator of one training step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
