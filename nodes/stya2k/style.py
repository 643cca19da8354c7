"""Loaded stylizers and styles: the values of the types STYA2K and STYLE.

A `Style` is one or several pictures with weights that sum to 1 everywhere. A weight may vary within the
frame (a mask) and over time (a mask of N frames). Mixing makes a new style from the same pictures. Each
picture is encoded once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional

from .. import host
from ..common.files import fingerprint
from ..common.inputs import picture_weights
from ..video.operation import digest
from . import checkpoint, library

log = logging.getLogger("reelbrush")
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        """The compute type; "auto" is half precision on a GPU."""
        chosen = PRECISIONS[self.precision]
        return chosen or (torch.float16 if host.device().type == "cuda" else torch.float32)

    def load(self) -> torch.nn.Module:
        """The network on the computing device."""
        return self.managed.load()


_live: WeakValueDictionary = WeakValueDictionary()  # models that are loaded: an operation uses them again


def load_model(path: str | Path, precision: str = "auto", compiled: bool = False) -> Model:
    """A stylizer from a file or a folder of official files."""
    path = Path(path)
    key = (fingerprint(path), precision, compiled)
    model = _live.get(key)
    if model is None:
        model = _live[key] = Model(checkpoint.load(path), path, precision, compiled)
        if compiled:
            for name in ("encode", "decode"):
                setattr(model.network, name, _compiled(getattr(model.network, name)))
    return model


def _compiled(plain: Callable) -> Callable:
    """A function through torch.compile. If the compiler fails once, the plain function is used."""
    ways = [torch.compile(plain, dynamic=False)]  # once per size: dynamic sizes fail

    def call(*args: Any) -> Any:
        if not ways:
            return plain(*args)
        try:
            return ways[0](*args)
        except Exception as error:
            if host.is_out_of_memory(error) or isinstance(error, host.interrupt_types()):
                raise
            log.warning(
                "torch.compile failed (%s): continuing without it", (str(error).splitlines() or [""])[0]
            )
            ways.clear()
            return plain(*args)

    return call


_encoded: WeakKeyDictionary[Model, dict[str, Any]] = WeakKeyDictionary()
_ENCODED = 16  # pictures kept per model


def encoded(model: Model, network: torch.nn.Module, picture: Tensor) -> Any:
    """A style picture [1, h, w, 3] as the network needs it. Encoded once, for all clips and mixes."""
    kept, key = _encoded.setdefault(model, {}), digest(picture)
    if key not in kept:
        planes = picture.permute(0, 3, 1, 2).to(host.device(), model.dtype)
        kept[key] = network.encode_style(planes.contiguous(memory_format=torch.channels_last))
        if len(kept) > _ENCODED:
            del kept[next(iter(kept))]
    return kept[key]


@dataclass(frozen=True, eq=False)
class StylePart:
    """A style picture [1, h, w, 3], its weight, and where it applies (mask [1 or N, H, W])."""

    picture: Tensor
    weight: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Style:
    """The value of the type STYLE: a model, and pictures whose weights sum to 1 everywhere."""

    model: Model
    parts: tuple[StylePart, ...]


def fit_picture(picture: Tensor, size: int) -> Tensor:
    """A picture [1, h, w, 3] resized to a short side of `size`, cropped to at most twice that length."""
    h, w = picture.shape[1:3]
    if min(h, w) < 16:
        raise ValueError(
            f"the style picture has {w} x {h} pixels, too few for a style: give 16 or more each way"
        )
    scale = size / min(h, w)
    shape = (max(size, round(h * scale)), max(size, round(w * scale)))
    planes = picture[..., :3].permute(0, 3, 1, 2)
    if shape != (h, w):
        planes = functional.interpolate(planes, shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = max(0, shape[0] - 2 * size) // 2, max(0, shape[1] - 2 * size) // 2
    planes = planes[..., top : top + 2 * size, left : left + 2 * size]
    return planes.permute(0, 2, 3, 1).clamp(0, 1).contiguous()


def make_style(model: Model, pictures: Tensor, weights: str = "", size: int = 512) -> Style:
    """Pictures [n, h, w, 3] averaged with weights "1, 2, ..." (empty: equal weights)."""
    shares = picture_weights(weights, len(pictures))
    return Style(
        model,
        tuple(
            StylePart(fit_picture(p[None], size), share)
            for p, share in zip(pictures, shares, strict=True)
            if share > 0
        ),
    )


def style_of(style: Style | Tensor) -> Style:
    """A style; a picture is encoded with the first model of the pack."""
    if not isinstance(style, Tensor):
        return style
    return make_style(load_model(library.path(library.embedded()[0])), style)


def mix_styles(a: Style, b: Style, amount: float, mask: Tensor | None = None) -> Style:
    """`amount` of b in a; with a mask, b where it is white."""
    if a.model is not b.model and a.model.path != b.model.path:
        raise ValueError(
            f"the two styles belong to different models ({a.model.path.name} and {b.model.path.name}): "
            "connect both to the same Load StyA2K"
        )
    if amount == 0:
        return a
    if mask is None and amount == 1:
        return Style(a.model, b.parts)
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
        mask = resize_mask(mask, tuple(other.shape[1:]))
    if len(mask) != len(other) and 1 not in (len(mask), len(other)):
        raise ValueError(
            f"the masks have {len(mask)} and {len(other)} frames: give masks of one length, or of 1 frame"
        )
    return mask * other


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, h, w] at another size."""
    return functional.interpolate(mask[:, None], size, mode="bilinear", antialias=True, align_corners=False)[
        :, 0
    ]
