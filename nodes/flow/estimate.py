"""Optical flow between the frames of a clip: DIS and Farneback of OpenCV, RAFT of torchvision.

A `Flow` holds both directions and both validity masks of every pair (t, t + stride):
`forward[t]` starts on frame t and `backward[t]` on frame t + stride.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.flow import resize_flow, resize_weights, validity
from .. import host

METHODS = ("dis-medium", "dis-ultrafast", "dis-fast", "farneback", "raft-small", "raft-large")
CONSISTENCY = (0.5, 0.01)

# OpenCV's DIS fails on small frames, crashes on some wide ones, and rejects aspect ratios above 8.
MIN_SIDE, MAX_ASPECT = 32, 8
OPENCV = tuple(f"opencv{kind}-python{end}" for kind in ("", "-contrib") for end in ("", "-headless"))
RAFT_SMALLEST = 128  # below, its coarsest correlation level is empty


@dataclass(frozen=True)
class Flow:
    """The motion of a clip of N frames, in pixels of the frames it was estimated on; P = N - stride pairs."""

    forward: Tensor  # [P, 2, H, W]
    backward: Tensor  # [P, 2, H, W]
    forward_valid: Tensor  # [P, H, W] bool
    backward_valid: Tensor  # [P, H, W] bool
    stride: int = 1
    method: str = "unknown"
    consistency: tuple[float, float] = CONSISTENCY
    cuts: tuple[int, ...] = ()  # the first frame after each cut

    @classmethod
    def of(cls, forward: Tensor, backward: Tensor, **about: Any) -> "Flow":
        """A flow from both directions. The validity masks are computed."""
        absolute, relative = about.get("consistency", CONSISTENCY)
        masks = (
            validity(*ways, absolute=absolute, relative=relative)
            for ways in ((forward, backward), (backward, forward))
        )
        return cls(forward, backward, *masks, **about)

    @property
    def height(self) -> int:
        return self.forward.shape[-2]

    @property
    def width(self) -> int:
        return self.forward.shape[-1]

    @property
    def pairs(self) -> int:
        return len(self.forward)

    @property
    def frames(self) -> int:
        return self.pairs + self.stride

    def pair(self, index: int) -> "Flow":
        """The flow of one pair."""
        one = slice(index, index + 1)
        return replace(
            self,
            forward=self.forward[one],
            backward=self.backward[one],
            forward_valid=self.forward_valid[one],
            backward_valid=self.backward_valid[one],
        )

    def at(self, height: int, width: int) -> "Flow":
        """The same motion for frames of another size."""
        if (height, width) == (self.height, self.width):
            return self
        return replace(
            self,
            forward=resize_flow(self.forward, height, width),
            backward=resize_flow(self.backward, height, width),
            forward_valid=resize_weights(self.forward_valid, height, width),
            backward_valid=resize_weights(self.backward_valid, height, width),
        )

    def crosses_cut(self, index: int) -> bool:
        """True when a cut lies between the two frames of a pair."""
        return any(index < cut <= index + self.stride for cut in self.cuts)

    def check_frames(self, count: int, what: str = "images") -> None:
        """Reject a batch that is not the clip that the flow was estimated on."""
        if count != self.frames:
            raise ValueError(
                f"the flow belongs to {self.frames} frames (stride {self.stride}), but there are {count} "
                f"{what}: connect the frames that the flow was estimated on"
            )


class Estimator(Protocol):
    """Estimates flow between two frames. Each frame is prepared once."""

    def prepare(self, frame: Tensor) -> Any: ...

    def both(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        """a -> b and b -> a, each [1, 2, H, W]."""
        ...


@cache
def opencv() -> ModuleType:
    """The OpenCV module, or an error message that says what to install."""
    try:
        import cv2
    except ImportError as error:
        raise RuntimeError(
            f"optical flow needs OpenCV, and importing cv2 failed ({error}): "
            "install opencv-python, or opencv-python-headless where there is no display"
        ) from error
    found = [name for name in OPENCV if _is_installed(name)]
    if len(found) > 1:
        host.log.warning(
            "%s are installed together, and all contain the module cv2: if it fails, uninstall all but one",
            ", ".join(found),
        )
    return cv2


def _is_installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def padded(frame: Tensor, smallest: int = MIN_SIDE, multiple: int = 1) -> Tensor:
    """A frame [C, H, W] enlarged to a size that the method accepts, by repeating its right and lower edge."""
    h, w = frame.shape[-2:]
    height, width = (max(side, smallest, -(-max(h, w) // MAX_ASPECT)) for side in (h, w))
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    if (height, width) == (h, w):
        return frame
    return pad(frame[None], (0, width - w, 0, height - h), mode="replicate")[0]


class _OpenCV:
    """DIS or Farneback on 8-bit luma."""

    def __init__(self, calculate: Callable[[Any, Any], Any]):
        self._calculate = calculate

    def prepare(self, frame: Tensor) -> Any:
        luma = frame[..., :3].float().cpu() @ torch.tensor([0.299, 0.587, 0.114])
        grey = padded(luma.clamp(0, 1).mul(255).round()[None])[0].to(torch.uint8)
        return grey.contiguous().numpy(), luma.shape

    def both(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        (first, (h, w)), (second, _) = a, b
        return tuple(
            torch.from_numpy(self._calculate(*pair))[:h, :w].permute(2, 0, 1)[None].contiguous()
            for pair in ((first, second), (second, first))
        )


def _dis(preset: str) -> _OpenCV:
    cv2 = opencv()
    method = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    return _OpenCV(lambda a, b: method.calc(a, b, None))


def _farneback() -> _OpenCV:
    cv2 = opencv()
    return _OpenCV(lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 5, 15, 3, 7, 1.5, 0))


class _Raft:
    """torchvision's RAFT, with weights from a file in models/flow."""

    UPDATES = 12

    def __init__(self, size: str):
        self._name = f"raft-{size}"
        self._path = raft_weights(self._name)
        try:
            from torchvision.models import optical_flow
        except (ImportError, RuntimeError) as error:
            raise RuntimeError(
                f"{self._name} needs torchvision, but importing it failed ({error}): "
                "install reelbrush[raft], or choose a dis method"
            ) from error
        self._build = getattr(optical_flow, f"raft_{size}")

    @cached_property
    def _managed(self) -> host.Managed:
        if self._path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(self._path)
        else:
            weights = torch.load(self._path, map_location="cpu", weights_only=True)
        network = self._build(weights=None, progress=False)
        try:
            network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
        except (RuntimeError, AttributeError) as error:
            raise ValueError(
                f"{self._path.name} is not a {self._name} checkpoint of torchvision: "
                "put the file that torchvision publishes into models/flow/"
            ) from error
        return host.managed(network.requires_grad_(False))

    def prepare(self, frame: Tensor) -> Any:
        picture = frame[..., :3].float().permute(2, 0, 1)
        return padded(picture * 2 - 1, RAFT_SMALLEST, 8), picture.shape[-2:]

    @torch.no_grad()
    def both(self, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        (first, (h, w)), (second, _) = a, b
        one, two = torch.stack([first, second]), torch.stack([second, first])
        device = host.device()
        flow = self._managed.load()(one.to(device), two.to(device), num_flow_updates=self.UPDATES)[-1]
        flow = flow[..., :h, :w].float().cpu()
        return flow[:1].clone(), flow[1:].clone()


def raft_weights(method: str) -> Path:
    """The file in models/flow that holds a RAFT's weights."""
    words = method.split("-")
    for name in host.model_names("flow", (".safetensors", ".pth", ".pt")):
        stem = name.rsplit("/", 1)[-1].lower().replace("-", "_")
        if stem.startswith("_".join(words)):
            return host.model_path("flow", name)
    raise RuntimeError(
        f"{method} has no weights: put torchvision's {'_'.join(words)}_*.pth into models/flow/, "
        "or choose a dis method, which needs none"
    )


def method_files(method: str) -> tuple[Path, ...]:
    """The files that a method's result depends on."""
    return (raft_weights(method),) if method.startswith("raft") else ()


def estimator(method: str) -> Estimator:
    """The estimator of a method. A method that is not installed is rejected with an error message."""
    if method not in METHODS:
        raise ValueError(f"the flow method {method!r} is none of {', '.join(METHODS)}")
    family, _, kind = method.partition("-")
    if family == "dis":
        return _dis(kind)
    return _farneback() if family == "farneback" else _Raft(kind)


def estimate(
    frames: Tensor,
    method: str = "dis-medium",
    stride: int = 1,
    consistency: tuple[float, float] = CONSISTENCY,
    *,
    cuts: tuple[int, ...] = (),
) -> Flow:
    """The flow of a clip [N, H, W, 3] in 0..1. A clip that is not longer than the stride has no pairs."""
    if stride < 1:
        raise ValueError(f"the stride is {stride}: give 1 or more")
    n, h, w = frames.shape[:3]
    pairs = max(n - stride, 0)
    flow = Flow(
        torch.empty(pairs, 2, h, w),
        torch.empty(pairs, 2, h, w),
        torch.empty(pairs, h, w, dtype=torch.bool),
        torch.empty(pairs, h, w, dtype=torch.bool),
        min(stride, n),  # so that `frames` is N also for a clip shorter than the stride
        method,
        consistency,
        tuple(cuts),
    )
    source = estimator(method)
    ready = [source.prepare(frame) for frame in frames[:stride]] if pairs else []
    with host.progress(pairs, f"Optical flow ({method})", "pairs") as bar:
        for t in range(pairs):
            ready.append(source.prepare(frames[t + stride]))
            one = Flow.of(*source.both(ready.pop(0), ready[-1]), consistency=consistency)
            for name in ("forward", "backward", "forward_valid", "backward_valid"):
                getattr(flow, name)[t] = getattr(one, name)[0]
            bar.step()
    return flow
