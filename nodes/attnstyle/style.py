"""A trained text style: what travels between nodes, in a file, and in a chain of clip operations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..video.chain import Clip, Operation, Window, operation
from .network import AttnStyleNet

KIND = "attnstyle"
SUFFIX = ".safetensors"
MARK = "reelbrush.attnstyle"
BYTES_PER_PIXEL = 1500  # of working memory, measured


@dataclass(frozen=True)
class TextStyle:
    """A network's weights and what they were trained for (texts, layer widths, the size of the pictures)."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @classmethod
    def of(cls, network: AttnStyleNet, **about: Any) -> "TextStyle":
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in network.state_dict().items()}
        return cls(tensors, {"widths": list(network.widths), **about})

    def network(self) -> AttnStyleNet:
        with torch.inference_mode(False):
            network = AttnStyleNet(tuple(self.about["widths"]))
            network.load_state_dict(self.tensors)
        return network.requires_grad_(False).train(False).to(memory_format=torch.channels_last)


def save(style: TextStyle, path: Path) -> Path:
    """Write a style; the file appears under its name when it is whole."""
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    try:
        save_file(style.tensors, part, metadata={MARK: json.dumps(style.about)})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load(path: Path) -> TextStyle:
    """A style that `save` wrote; one sentence for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(MARK, "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()} if about else {}  # noqa: SIM118
        if not about:
            raise ValueError("it was not written by Save AttnStyle")
        style = TextStyle(tensors, about)
        style.network()
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path.name} is no AttnStyle model ({why}): choose one that Save AttnStyle wrote"
        ) from error
    return style


def checked(style: Any) -> TextStyle:
    """The style that a node was given; one sentence for anything else."""
    if not isinstance(style, TextStyle):
        raise ValueError(
            f"model is a {type(style).__name__}: connect AttnStyle: Text to Style or Load AttnStyle"
        )
    return style


def changed(kind: str, name: str) -> str:
    """What makes a loader run again: the age and size of what it loads."""
    try:
        path = host.model_path(kind, name)
    except ValueError as error:
        return str(error)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return str([(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files])


def portions(count: int, height: int, width: int) -> Iterator[slice]:
    """Slices of a batch whose working memory fits into half of what is free."""
    fits = int(host.free_memory() * 0.5 / (BYTES_PER_PIXEL * height * width))
    size = max(1, min(16, fits))
    for first in range(0, count, size):
        yield slice(first, first + size)


def stylize(network: AttnStyleNet, frames: Tensor, strength: float = 1.0) -> Tensor:
    """Frames [n, H, W, C] through a loaded network; a fourth channel stays as it is. Strength 0 is off."""
    if strength == 0:
        return frames
    x = frames[..., :3].permute(0, 3, 1, 2).to(host.device(), memory_format=torch.channels_last)
    drawn = x.lerp(network(x), strength).permute(0, 2, 3, 1).to(frames.device)
    return torch.cat([drawn, frames[..., 3:]], dim=-1)


def apply(style: TextStyle, images: Tensor, strength: float = 1.0) -> Tensor:
    """A style on a batch of pictures, as many at a time as memory holds."""
    if strength == 0:
        return images
    network = host.managed(style.network()).load()
    parts = []
    with host.progress(len(images), "AttnStyle") as bar:
        for part in portions(*images.shape[:3]):
            parts.append(stylize(network, images[part], strength))
            bar.step(len(parts[-1]), preview=parts[-1][0, ..., :3])
    return torch.cat(parts)


@operation("attnstyle.apply")
class Apply(Operation):
    """A text style on every frame, each frame by itself."""

    def start(self, clip: Clip) -> None:
        if self.params["strength"]:
            style = TextStyle(self.tensors, self.params["about"])
            self._network = host.managed(style.network()).load()

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        strength = self.params["strength"]
        if not strength:
            return frames
        parts = [stylize(self._network, frames[p], strength) for p in portions(*frames.shape[:3])]
        return torch.cat(parts)

    def stop(self) -> None:
        self._network = None
