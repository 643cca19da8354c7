"""Stylizing frames: styles encoded once, frames in chunks, strength, colours, masks, tiles.

A `Style` is one or several pictures with weights, which may differ from place to place (masks) and from
frame to frame (masks of N frames). The features that the pictures give are summed by weight and decoded
once. Strength s decodes (1 - s) times the content's own features plus s times the stylized ones, and adds
(1 - s) times what the decoder loses of the content: 0 is the input, 1 is the method, no jump between.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional

from .. import host
from ..video.reel import Clip, Operation, Window, operation
from . import checkpoint

log = logging.getLogger("reelbrush")
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LUMA = (0.2126, 0.7152, 0.0722)


@dataclass(eq=False)
class Model:
    """A loaded stylizer."""

    network: torch.nn.Module
    path: Path
    precision: str = "auto"
    compiled: bool = False
    managed: host.Managed = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not known: one of {', '.join(PRECISIONS)}")
        self.network.to(self.dtype, memory_format=torch.channels_last)
        self.managed = host.managed(self.network)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; "auto" is half precision on a GPU."""
        chosen = PRECISIONS[self.precision]
        return chosen or (torch.float16 if host.device().type == "cuda" else torch.float32)

    def load(self) -> torch.nn.Module:
        """The network on the computing device."""
        return self.managed.load()


_live: WeakValueDictionary = WeakValueDictionary()  # a clip's chain finds the model that its nodes hold


def load_model(path: str | Path, precision: str = "auto", compiled: bool = False) -> Model:
    """A stylizer from a file or a folder of official files."""
    path = Path(path)
    members = sorted(path.iterdir()) if path.is_dir() else [path]
    key = (path.resolve(), *(p.stat().st_mtime_ns for p in members), precision, compiled)
    model = _live.get(key)
    if model is None:
        model = _live[key] = Model(checkpoint.load(path), path, precision, compiled)
        if compiled:
            model.network.encode = torch.compile(model.network.encode, dynamic=True)
            model.network.decode = torch.compile(model.network.decode, dynamic=True)
    return model


@dataclass(eq=False)
class Part:
    """A style picture [1, h, w, 3], its weight, and where (mask [1 or N, H, W])."""

    picture: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    code: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Style:
    """What STYLE carries: a model and pictures whose weights sum to 1 everywhere."""

    model: Model
    parts: tuple[Part, ...]

    def codes(self, network: torch.nn.Module) -> list[Any]:
        """The pictures encoded, once for all frames."""
        for part in self.parts:
            if part.code is None:
                picture = part.picture.permute(0, 3, 1, 2).to(host.device(), self.model.dtype)
                part.code = network.encode_style(picture.contiguous(memory_format=torch.channels_last))
        return [part.code for part in self.parts]


def fit_picture(picture: Tensor, size: int) -> Tensor:
    """A picture [1, h, w, 3] with a short side of `size`; long ones are cut to twice that."""
    h, w = picture.shape[1:3]
    scale = size / min(h, w)
    shape = (max(size, round(h * scale)), max(size, round(w * scale)))
    planes = picture[..., :3].permute(0, 3, 1, 2)
    if shape != (h, w):
        planes = functional.interpolate(planes, shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = max(0, shape[0] - 2 * size) // 2, max(0, shape[1] - 2 * size) // 2
    planes = planes[..., top : top + 2 * size, left : left + 2 * size]
    return planes.permute(0, 2, 3, 1).clamp(0, 1).contiguous()


def make_style(model: Model, pictures: Tensor, weights: str = "", size: int = 512) -> Style:
    """Pictures [n, h, w, 3] averaged with weights "1, 2, ..." (empty: alike)."""
    try:
        given = [float(w) for w in weights.replace(";", ",").split(",") if w.strip()]
    except ValueError:
        raise ValueError(f"the weights {weights!r} are not numbers: give some like 1, 0.5") from None
    shares = given or [1.0] * len(pictures)
    if len(shares) != len(pictures):
        raise ValueError(f"{len(shares)} weights for {len(pictures)} style pictures: give one per picture")
    if min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"the weights {weights!r} must not be negative, and not all be 0")
    return Style(
        model,
        tuple(
            Part(fit_picture(p[None], size), share / sum(shares))
            for p, share in zip(pictures, shares, strict=True)
            if share > 0
        ),
    )


def mix_styles(a: Style, b: Style, amount: float, mask: Tensor | None = None) -> Style:
    """`amount` of b in a; with a mask, b where it is white."""
    if a.model is not b.model and a.model.path != b.model.path:
        raise ValueError(
            f"the two styles are of different models ({a.model.path.name} and {b.model.path.name}): "
            "encode both with the same Load StyA2K"
        )
    if amount == 0:
        return a
    if mask is None:
        parts = [replace(p, weight=p.weight * (1 - amount)) for p in a.parts]
        return Style(a.model, (*parts, *(replace(p, weight=p.weight * amount) for p in b.parts)))
    white = mask.clamp(0, 1) * amount
    parts = [replace(p, mask=_times(p.mask, 1 - white)) for p in a.parts]
    return Style(a.model, (*parts, *(replace(p, mask=_times(p.mask, white)) for p in b.parts)))


def _times(mask: Tensor | None, other: Tensor) -> Tensor:
    if mask is None:
        return other
    if mask.shape[1:] != other.shape[1:]:
        mask = _resize(mask, tuple(other.shape[1:]))
    if len(mask) != len(other) and 1 not in (len(mask), len(other)):
        raise ValueError(f"masks of {len(mask)} and of {len(other)} frames: give one length, or 1 frame")
    return mask * other


def _resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(mask[:, None], size, mode="bilinear", antialias=True, align_corners=False)[
        :, 0
    ]


@dataclass(frozen=True)
class Look:
    """How frames are stylized."""

    strength: float = 1.0
    keep_color: bool = False
    attention: str | None = None


class Stylizer:
    """A style at work on frames of one size; networks are loaded when it is made."""

    def __init__(self, style: Style, look: Look, size: tuple[int, int], tile: int = 0):
        self.style, self.look, self.size, self.tile = style, look, size, tile
        self.network = style.model.load()
        self.codes = style.codes(self.network)
        self.masks = [None if p.mask is None else _resize(p.mask, size) for p in style.parts]

    def chunk(self, wanted: int = 0) -> int:
        """Frames per call: as asked, else what free memory allows (on a CPU more than 2 gain nothing)."""
        if wanted:
            return wanted
        where = host.device()
        element = torch.finfo(self.style.model.dtype).bits / 32
        need = self.network.bytes_per_pixel * element * self.size[0] * self.size[1]
        return int(max(1, min(2 if where.type == "cpu" else 16, host.free_memory(where) * 0.6 // need)))

    def __call__(self, frames: Tensor, index: int = 0) -> Tensor:
        """Frames [n, H, W, 3] from number `index` of the clip on; fewer at once when memory ends."""
        try:
            return self._finish(frames, self._stylize(frames, index))
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
        host.release_memory()
        if len(frames) > 1:
            n = len(frames) // 2
            log.info("out of memory: %d frames at a time", n)
            return torch.cat([self(frames[:n], index), self(frames[n:], index + n)])
        smaller = (self.tile or -(-max(self.size) // 64) * 64) // 2 // 64 * 64
        if smaller < 128:
            raise RuntimeError(
                f"a frame of {self.size[1]}x{self.size[0]} does not fit into memory even in tiles: "
                "free memory, or set max_side"
            )
        log.info("out of memory: tiles of %d", smaller)
        self.tile = smaller
        return self(frames, index)

    def _planes(self, frames: Tensor) -> Tensor:
        planes = frames[..., :3].permute(0, 3, 1, 2).to(host.device(), self.style.model.dtype)
        return planes.contiguous(memory_format=torch.channels_last)

    def _stylize(self, frames: Tensor, index: int) -> Tensor:
        planes = self._planes(frames)
        if self.tile and max(self.size) > self.tile:
            return self._tiled(planes, index)
        return self._decode(self.network.encode(planes), planes, index)

    def _decode(
        self,
        content: Any,
        planes: Tensor,
        index: int,
        stats: list | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Encoded content to pictures; a tile gives the whole's statistics and its corner in the frame."""
        net, s = self.network, self.look.strength
        total: list[Tensor] = []
        for code, part, mask in zip(self.codes, self.style.parts, self.masks, strict=True):
            made = net.transfer(content, code, self.look.attention, stats)
            if mask is not None or part.weight != 1:
                numbers = torch.arange(index, index + len(planes))
                made = [z * _share(part, mask, z, content.size, numbers, corner) for z in made]
            total = [a + b for a, b in zip(total, made, strict=True)] if total else made
        if s == 1:
            return net.decode(total, content.size)
        plain = net.plain(content)
        out = net.decode([c.lerp(z, s) for c, z in zip(plain, total, strict=True)], content.size)
        return out + (1 - s) * (planes - net.decode(plain, content.size))

    def _tiled(self, planes: Tensor, index: int) -> Tensor:
        """The same through tiles: once for the whole frame's statistics, once to stylize.

        Tiles start on the grid of the regions and reach as far beyond themselves as the networks look.
        """
        align, reach = self.network.align, self.network.reach
        tile = max(align, self.tile // align * align)
        boxes = list(_boxes(self.size, tile, reach, align))
        sums: list[list[Tensor]] = []
        for box in boxes:
            content = self.network.encode(box.outer(planes))
            for level, m in enumerate(_maps(content)):
                inner = box.inner(m, content.size).double()
                flat = inner.flatten(2)
                moment = [torch.full((), flat.shape[-1]), flat.sum(-1), flat @ flat.transpose(1, 2)]
                if m.shape[1] != 3:
                    moment[2] = flat.square().sum(-1)
                if level == len(sums):
                    sums.append(moment)
                else:
                    sums[level] = [a + b for a, b in zip(sums[level], moment, strict=True)]
        stats = [_stats(s, planes.dtype) for s in sums]
        out = torch.empty_like(planes)
        for box in boxes:
            part = box.outer(planes)
            made = self._decode(self.network.encode(part), part, index, stats, (box.top, box.left))
            y, x = box.y - box.top, box.x - box.left
            out[..., box.y : box.y + box.h, box.x : box.x + box.w] = made[..., y : y + box.h, x : x + box.w]
            host.check_interrupt()
        return out

    def _finish(self, frames: Tensor, made: Tensor) -> Tensor:
        out = made.float().permute(0, 2, 3, 1).to(frames.device).contiguous()
        if self.look.keep_color:
            luma = torch.tensor(LUMA, device=out.device)
            out = frames[..., :3] + ((out - frames[..., :3]) @ luma)[..., None]
        return out.clamp_(0, 1)


def _share(
    part: Part,
    mask: Tensor | None,
    z: Tensor,
    size: tuple[int, int],
    numbers: Tensor,
    corner: tuple[int, int],
) -> Tensor | float:
    """A part's weight on the cells of a map z of the `size` pixels at `corner`, for some frame numbers."""
    if mask is None:
        return part.weight
    (y, x), (h, w) = corner, size
    here = mask[numbers.clamp_max(len(mask) - 1).to(mask.device)][:, None, y : y + h, x : x + w]
    step = cell(h, z.shape[-2])
    here = functional.pad(here, (0, z.shape[-1] * step - w, 0, z.shape[-2] * step - h), mode="replicate")
    return part.weight * functional.avg_pool2d(here, step).to(z)


def cell(pixels: int, cells: int) -> int:
    """Pixels a side of a map's cell; maps are rounded up to whole cells."""
    return 1 << round(math.log2(max(1.0, pixels / cells)))


@dataclass(frozen=True)
class _Box:
    """A tile y, x, h, w and what is computed around it: top, left, bottom, right."""

    y: int
    x: int
    h: int
    w: int
    top: int
    left: int
    bottom: int
    right: int

    def outer(self, planes: Tensor) -> Tensor:
        return planes[..., self.top : self.bottom, self.left : self.right].contiguous(
            memory_format=torch.channels_last
        )

    def inner(self, m: Tensor, size: tuple[int, int]) -> Tensor:
        """The tile's own part of a map of the outer box."""
        step = cell(size[0], m.shape[-2])
        y, x = (self.y - self.top) // step, (self.x - self.left) // step
        return m[..., y : y + -(-self.h // step), x : x + -(-self.w // step)]


def _boxes(size: tuple[int, int], tile: int, reach: int, align: int):
    reach = -(-reach // align) * align
    for y in range(0, size[0], tile):
        for x in range(0, size[1], tile):
            h, w = min(tile, size[0] - y), min(tile, size[1] - x)
            ends = min(size[0], y + h + reach), min(size[1], x + w + reach)
            yield _Box(y, x, h, w, max(0, y - reach), max(0, x - reach), *ends)


def _maps(content: Any) -> list[Tensor]:
    image = getattr(content, "image", None)
    return [*([] if image is None else [image]), *content.maps]


def _stats(sums: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Moments from count, sum and sum of squares (or of products, for colours)."""
    count, total, square = sums
    mean = total / count
    if square.ndim == 3:
        cov = (square - count * mean[..., None] * mean[:, None]) / (count - 1).clamp_min(1)
        return mean.float(), cov.float()
    var = (square - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)
    return mean[..., None, None].to(dtype), (var + 1e-5).sqrt()[..., None, None].to(dtype)


def stylize(style: Style, images: Tensor, look: Look, chunk: int = 0) -> Tensor:
    """Frames [N, H, W, 3] in the style."""
    if look.strength == 0:
        return images
    for part in style.parts:
        if part.mask is not None and len(part.mask) not in (1, len(images)):
            raise ValueError(
                f"the style's mask has {len(part.mask)} frames, the images {len(images)}: give 1 or as many"
            )
    run = Stylizer(style, look, tuple(images.shape[1:3]))
    size, out = run.chunk(chunk), torch.empty_like(images[..., :3])
    with host.progress(len(images), "Stylizing") as bar:
        for i in range(0, len(images), size):
            out[i : i + size] = run(images[i : i + size], i)
            bar.step(len(images[i : i + size]), preview=out[i])
    return out


@operation("stya2k.stylize")
class StylizeVideo(Operation):
    """Frames are independent of each other; the style is encoded when the run starts."""

    def start(self, clip: Clip) -> None:
        given = self.params
        model = load_model(self.files["model"], given["precision"], given["compiled"])
        parts = [
            Part(self.tensors[f"picture{i}"], weight, self.tensors.get(f"mask{i}"))
            for i, weight in enumerate(given["weights"])
        ]
        look = Look(given["strength"], given["keep_color"])
        self._run = Stylizer(Style(model, tuple(parts)), look, (clip.height, clip.width))
        self._chunk = self._run.chunk()

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        outs = []
        for i in range(0, len(frames), self._chunk):
            host.check_interrupt()
            outs.append(self._run(frames[i : i + self._chunk], window.index + i))
        return torch.cat(outs)

    def stop(self) -> None:
        self.__dict__.pop("_run", None)


def stylize_video(style: Style, video: Any, look: Look) -> Any:
    """A lazy VIDEO in the style."""
    if look.strength == 0:
        return video
    tensors = {f"picture{i}": p.picture for i, p in enumerate(style.parts)}
    tensors |= {f"mask{i}": p.mask for i, p in enumerate(style.parts) if p.mask is not None}
    params = {
        "weights": [p.weight for p in style.parts],
        "strength": look.strength,
        "keep_color": look.keep_color,
        "precision": style.model.precision,
        "compiled": style.model.compiled,
    }
    return video.then(
        "stya2k.stylize",
        params,
        tensors=tensors,
        files={"model": style.model.path},
        node="StyA2K Stylize Video",
    )
