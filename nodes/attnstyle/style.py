"""Trained text styles: as a value between nodes, as a file, and as an operation on clips."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..common.files import replacing
from ..common.weights import check_finite
from ..video.operation import Operation, Worker
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

    with replacing(path) as temporary:
        save_file(style.tensors, temporary, metadata={MARK: json.dumps(style.about)})
    return path


def load(path: Path) -> TextStyle:
    """Read a style that `save` wrote. Any other file is rejected with an error message."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(MARK, "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()} if about else {}  # noqa: SIM118
        if not about:
            raise ValueError("it was not written by Save AttnStyle")
        check_finite(path, tensors)
        style = TextStyle(tensors, about)
        style.network()
    except (SafetensorError, OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        raise ValueError(
            f"{path.name} is damaged or not an AttnStyle model{why}: choose a file of Save AttnStyle"
        ) from error
    return style


def checked(style: Any) -> TextStyle:
    """The style that is connected to a node. Anything else is rejected with an error message."""
    if not isinstance(style, TextStyle):
        raise ValueError(
            f"model is a {type(style).__name__}: connect AttnStyle: Text to Style or Load AttnStyle"
        )
    return style


def batch(height: int, width: int) -> int:
    """Frames per call whose working memory fits into half of what is free."""
    fits = int(host.free_memory() * 0.5 / (BYTES_PER_PIXEL * height * width))
    return max(1, min(16, fits))


def stylize(network: AttnStyleNet, frames: Tensor, strength: float = 1.0) -> Tensor:
    """Frames [n, H, W, C] through a loaded network. A fourth channel is kept. Strength 0 is off."""
    if strength == 0:
        return frames
    x = frames[..., :3].permute(0, 3, 1, 2).to(host.device(), memory_format=torch.channels_last)
    drawn = x.lerp(network(x), strength).permute(0, 2, 3, 1).to(frames.device)
    return torch.cat([drawn, frames[..., 3:]], dim=-1)


def apply(style: TextStyle, images: Tensor, strength: float = 1.0) -> Tensor:
    """A style on a batch of pictures, as many per call as memory allows."""
    if strength == 0:
        return images
    network = host.managed(style.network()).load()
    parts = []
    with host.progress(len(images), "AttnStyle") as bar:
        for part in images.split(batch(*images.shape[1:3])):
            parts.append(stylize(network, part, strength))
            bar.step(len(parts[-1]), preview=parts[-1][0, ..., :3])
    return torch.cat(parts)


class ApplyTextStyle(Operation, name="attnstyle.apply"):
    """A text style on every frame, each frame by itself."""

    source: Operation
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    strength: float

    def start(self) -> Worker:
        network = host.managed(TextStyle(self.tensors, self.about).network()).load()
        worker = Worker(lambda frames: stylize(network, frames, self.strength))
        worker.batch, worker.device = batch(self.clip.height, self.clip.width), host.device()
        return worker
