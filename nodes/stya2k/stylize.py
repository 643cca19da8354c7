"""Stylizing frames in batches, with a strength, in tiles if memory is short, and as an operation on clips.

The features from a style's pictures are summed by weight and decoded once. Strength 0 is the input, 1 is the
method, and between them it is continuous (mixing.py).
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .. import host
from ..video.lazy_video import LazyVideo
from ..video.operation import Operation, Worker
from . import tiles
from .attention import MODES
from .mixing import Mix
from .style import Style, StylePart, encoded, load_model, resize_mask

log = logging.getLogger("reelbrush")
LUMA = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True)
class Options:
    """How frames are stylized."""

    strength: float = 1.0
    keep_color: bool = False
    attention: str | None = None


class Stylizer(Worker):
    """Stylizes frames of one size. The network is loaded when it is made."""

    def __init__(self, style: Style, options: Options, size: tuple[int, int], tile: int = 0):
        if options.attention not in (None, *MODES):
            raise ValueError(f"attention {options.attention!r} is not known: one of {', '.join(MODES)}")
        self.style, self.options, self.size, self.tile = style, options, size, tile
        self.network = style.model.load()
        self.codes = [encoded(style.model, self.network, part.picture) for part in style.parts]
        self.batch, self.device, self.dtype = self.chunk(), host.device(), style.model.dtype

    def chunk(self, wanted: int = 0) -> int:
        """Frames per call: `wanted`, or as many as free memory allows (at most 2 on a CPU)."""
        if wanted:
            return wanted
        where = host.device()
        element = torch.finfo(self.style.model.dtype).bits / 32
        need = self.network.bytes_per_pixel * element * self.size[0] * self.size[1]
        return int(max(1, min(2 if where.type == "cpu" else 16, host.free_memory(where) * 0.6 // need)))

    def __call__(self, frames: Tensor, *, index: int, inner: slice) -> Tensor:
        return self.run(frames, index)

    def run(self, frames: Tensor, index: int = 0) -> Tensor:
        """Frames [n, H, W, 3] from number `index` of the clip on; fewer at once when memory is short."""
        try:
            return self._finish(frames, self._stylize(frames, index))
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
        host.release_memory()
        if len(frames) > 1:
            n = len(frames) // 2
            log.info("out of memory: %d frames at a time", n)
            return torch.cat([self.run(frames[:n], index), self.run(frames[n:], index + n)])
        if any(how.count for how in self.network.arithmetic):
            raise RuntimeError(
                f"a frame of {self.size[1]}x{self.size[0]} does not fit into memory, and this model divides "
                "every frame into a fixed number of regions, so tiles would change the result: set max_side"
            )
        smaller = (self.tile or -(-max(self.size) // 64) * 64) // 2 // 64 * 64
        if smaller < 128:
            raise RuntimeError(
                f"a frame of {self.size[1]}x{self.size[0]} does not fit into memory even in tiles: "
                "free memory, or set max_side"
            )
        log.info("out of memory: tiles of %d", smaller)
        self.tile = smaller
        return self.run(frames, index)

    def _planes(self, frames: Tensor) -> Tensor:
        planes = frames[..., :3].permute(0, 3, 1, 2).to(host.device(), self.style.model.dtype)
        return planes.contiguous(memory_format=torch.channels_last)

    def _stylize(self, frames: Tensor, index: int) -> Tensor:
        planes = self._planes(frames)
        masks = [self._mask(part, index, len(frames)) for part in self.style.parts]
        if self.tile and max(self.size) > self.tile:
            return self._tiled(planes, masks)
        content = self.network.encode(planes)
        mix = self._mix(masks, self.size)
        return self.network.blend(content, planes, mix, self.options.strength, self.options.attention)

    def _mask(self, part: StylePart, index: int, count: int) -> Tensor | None:
        """The mask of a style part for frames index..index+count, [1 or count, H, W]."""
        if part.mask is None:
            return None
        numbers = torch.arange(index, index + (count if len(part.mask) > 1 else 1))
        here = part.mask[numbers.clamp_max(len(part.mask) - 1).to(part.mask.device)]
        return resize_mask(here.to(host.device()).float(), self.size)

    def _mix(
        self, masks: list[Tensor | None], size: tuple[int, int], corner: tuple[int, int] = (0, 0)
    ) -> Mix:
        """The styles, each with its share of any map of the `size` pixels at `corner` of the frame."""
        return [
            (code, lambda z, part=part, mask=mask: _share(part, mask, z, size, corner))
            for code, part, mask in zip(self.codes, self.style.parts, masks, strict=True)
        ]

    def _tiled(self, planes: Tensor, masks: list[Tensor | None]) -> Tensor:
        """Stylize in tiles: first measure the statistics of the whole frame, once per transfer, then stylize.

        Tiles start on the grid of the regions, and include a border as wide as the receptive field.
        """
        net, options = self.network, self.options
        tile = max(net.align, self.tile // net.align * net.align)
        places = list(tiles.boxes(self.size, tile, net.reach, net.align))
        mixes = [
            self._mix(masks, (box.bottom - box.top, box.right - box.left), (box.top, box.left))
            for box in places
        ]
        stats = net.measure_images(planes)
        for number in range(net.stages):
            total = tiles.Sums()
            for box, mix in zip(places, mixes, strict=True):
                content = net.encode(box.outer(planes))
                total.add(net.stage(number, content, mix, options.attention, stats), content.size, box)
                host.check_interrupt()
            stats += total.stats(planes.dtype)
        out = torch.empty_like(planes)
        for box, mix in zip(places, mixes, strict=True):
            part = box.outer(planes)
            made = net.blend(net.encode(part), part, mix, options.strength, options.attention, stats)
            y, x = box.y - box.top, box.x - box.left
            out[..., box.y : box.y + box.h, box.x : box.x + box.w] = made[..., y : y + box.h, x : x + box.w]
            host.check_interrupt()
        return out

    def _finish(self, frames: Tensor, made: Tensor) -> Tensor:
        out = made.permute(0, 2, 3, 1).to(frames).contiguous()
        if self.options.keep_color:
            luma = torch.tensor(LUMA, device=out.device)
            out = frames[..., :3] + ((out - frames[..., :3]).float() @ luma)[..., None].to(out)
        return out.clamp_(0, 1)


def _share(
    part: StylePart, mask: Tensor | None, z: Tensor, size: tuple[int, int], corner: tuple[int, int]
) -> Tensor | float:
    """A part's weight on the cells of a map z of the `size` pixels at `corner` of the frame."""
    if mask is None:
        return part.weight
    (y, x), (h, w) = corner, size
    here = mask[:, None, y : y + h, x : x + w]
    step = tiles.cell(h, z.shape[-2])
    here = functional.pad(here, (0, z.shape[-1] * step - w, 0, z.shape[-2] * step - h), mode="replicate")
    return part.weight * functional.avg_pool2d(here, step).to(z)


def _check_masks(style: Style, frames: int, what: str) -> None:
    """Reject a mask of several frames if the clip has another length."""
    for part in style.parts:
        if part.mask is not None and len(part.mask) not in (1, frames):
            raise ValueError(
                f"the style's mask has {len(part.mask)} frames, the {what} {frames}: give 1 or as many"
            )


def stylize(style: Style, images: Tensor, options: Options, chunk: int = 0) -> Tensor:
    """Frames [N, H, W, 3] in the style."""
    if options.strength == 0:
        return images
    _check_masks(style, len(images), "images")
    run = Stylizer(style, options, tuple(images.shape[1:3]))
    size, out = run.chunk(chunk), torch.empty_like(images[..., :3])
    with host.progress(len(images), "Stylizing") as bar:
        for i in range(0, len(images), size):
            out[i : i + size] = run.run(images[i : i + size], i)
            bar.step(len(images[i : i + size]), preview=out[i])
    return out


class StylizeFrames(Operation, name="stya2k.stylize"):
    """A clip in a style. Frames are independent of each other."""

    source: Operation
    model: Path
    precision: str
    compiled: bool
    pictures: tuple[Tensor, ...]
    weights: tuple[float, ...]
    masks: tuple[Tensor | None, ...]
    strength: float
    keep_color: bool

    def start(self) -> Worker:
        parts = zip(self.pictures, self.weights, self.masks, strict=True)
        style = Style(
            load_model(self.model, self.precision, self.compiled), tuple(StylePart(*part) for part in parts)
        )
        return Stylizer(style, Options(self.strength, self.keep_color), (self.clip.height, self.clip.width))


def stylize_video(style: Style, video: LazyVideo, options: Options) -> LazyVideo:
    """A lazy VIDEO in the style."""
    if options.strength == 0:
        return video
    _check_masks(style, video.frame_count, "clip")
    return video.then(
        StylizeFrames,
        model=Path(style.model.path),
        precision=style.model.precision,
        compiled=style.model.compiled,
        pictures=tuple(part.picture for part in style.parts),
        weights=tuple(part.weight for part in style.parts),
        masks=tuple(part.mask for part in style.parts),
        strength=float(options.strength),
        keep_color=options.keep_color,
        node="StyA2K Stylize Video",
    )
