"""A chain of clip operations as data.

A node of a chain is a source (a file, or frames in memory), a trim, or a step. A step is a registered
name with parameters, tensors and files: it can be compared, fingerprinted, resumed, and rebuilt in
another process, where the registry gives the class that does the work. Two nodes with one fingerprint
are one computation.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import codec


@dataclass(frozen=True)
class Clip:
    """What is known of a clip before any of its frames is computed."""

    width: int
    height: int
    fps: Fraction
    frame_count: int
    exact: bool = True  # False: frame_count is an estimate
    bit_depth: int = 8
    alpha: bool = False


@dataclass(frozen=True)
class Window:
    """Which frames an operation is asked for: `count` from clip frame `index` on, with neighbours around."""

    index: int
    count: int
    before: int = 0
    after: int = 0

    @property
    def wanted(self) -> slice:
        """The wanted frames among those given."""
        return slice(self.before, self.before + self.count)


class Operation:
    """One step of a chain at work. Subclass it and register it with `@operation("wing.name")`."""

    name: ClassVar[str]
    neighbours: tuple[int, int] = (0, 0)
    """Frames looked at before and after each frame. More frames than that are never seen at once."""
    sequential: bool = False
    """True: frames come in order and state is carried; define `state` and `restore`."""
    costly: bool = True
    """True: worth keeping on disk when a run is interrupted."""

    def __init__(self, params: dict[str, Any], tensors: dict[str, Tensor], files: dict[str, str]):
        self.params, self.tensors, self.files = params, tensors, files
        self.objects: dict[str, Any] = {}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The output's size for an input's."""
        return width, height

    def start(self, clip: Clip) -> None:
        """Called once before the first `run`: load networks here, not before."""

    def run(self, frames: Tensor, *others: Tensor, window: Window) -> Tensor:
        """Frames [before + count + after, H, W, 3] in 0..1 to the `count` wanted ones."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Sequential only: all that is needed to go on after the frames run so far."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Sequential only: go on from a state."""

    def stop(self) -> None:
        """Called once after the last frame, and after a fault: drop device memory."""


_registry: dict[str, type[Operation]] = {}


def operation(name: str) -> Callable[[type[Operation]], type[Operation]]:
    """Register an operation under the name by which chains know it."""

    def register(cls: type[Operation]) -> type[Operation]:
        cls.name = name
        _registry[name] = cls
        return cls

    return register


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    plain = tensor.detach().to("cpu").contiguous()
    mark = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    mark.update(plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b"")
    return mark.hexdigest()


def _file_digest(path: str) -> str:
    here = Path(path)
    members = [here] if here.is_file() else sorted(p for p in here.rglob("*") if p.is_file())
    stats = [(p.stat().st_mtime_ns, p.stat().st_size) for p in members]
    return _digest(str(here.resolve()), stats)


@cache
def _code() -> str:
    """The pack's arithmetic: after an update nothing that older code computed counts as the same."""
    pack = Path(__file__).parent.parent.parent
    files = sorted(p for room in ("kernels", "nodes") for p in (pack / room).rglob("*.py"))
    return _digest([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])


class Node:
    """One node of a chain."""

    inputs: tuple["Node", ...] = ()
    costly = False  # True: worth keeping on disk

    @cached_property
    def fingerprint(self) -> str:  # equal for equal computations on equal sources
        raise NotImplementedError

    @cached_property
    def clip(self) -> Clip:
        raise NotImplementedError

    def need(self, index: int) -> int:
        """The first input frame that is needed to go on from output frame `index`."""
        return index

    def input_index(self, index: int) -> int:
        """The input frame that output frame `index` shows."""
        return index


@dataclass(frozen=True, eq=False)
class FileSource(Node):
    """A video file, a folder of PNG frames, or the bytes of a file."""

    source: str | io.BytesIO

    @cached_property
    def info(self) -> codec.VideoInfo:
        info = codec.probe(self.source)
        return info if info.exact else codec.probe(self.source, count=True)

    @cached_property
    def fingerprint(self) -> str:
        if isinstance(self.source, io.BytesIO):
            return _digest("bytes", hashlib.sha256(self.source.getbuffer()).hexdigest())
        return _digest("file", _file_digest(self.source))

    @cached_property
    def clip(self) -> Clip:
        i = self.info
        return Clip(i.width, i.height, i.fps, i.frame_count, i.exact, i.bit_depth, i.alpha)


@dataclass(frozen=True, eq=False)
class FrameSource(Node):
    """Frames [N, H, W, 3 or 4] in memory."""

    frames: Tensor
    fps: Fraction
    audio: dict | None = None
    bit_depth: int = 8

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] not in (3, 4):
            raise ValueError(f"a clip is made of frames [N, H, W, 3 or 4], not {tuple(self.frames.shape)}")
        if not len(self.frames):
            raise ValueError("a clip needs at least one frame, this one has none")

    @cached_property
    def fingerprint(self) -> str:
        return _digest("frames", _tensor_digest(self.frames), str(self.fps), self.bit_depth)

    @cached_property
    def clip(self) -> Clip:
        n, h, w, c = self.frames.shape
        return Clip(w, h, self.fps, n, True, self.bit_depth, c == 4)


@dataclass(frozen=True, eq=False)
class LatentSource(Node):
    """Latents [N, C, h, w] on their way to a decoder; `like` lends them its sound."""

    latents: Tensor
    fps: Fraction
    like: Node | None = None

    @cached_property
    def fingerprint(self) -> str:
        return _digest("latents", _tensor_digest(self.latents), str(self.fps))

    @cached_property
    def clip(self) -> Clip:
        n, _, h, w = self.latents.shape
        return Clip(w, h, self.fps, n)


@dataclass(frozen=True, eq=False)
class Trim(Node):
    """Frames start, start + every, ... of the input; `frames` of them at most (0: to the end)."""

    source: Node
    start: int = 0
    frames: int = 0
    every: int = 1

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.source,)

    @property
    def costly(self) -> bool:
        return self.source.costly

    @cached_property
    def fingerprint(self) -> str:
        return _digest("trim", self.source.fingerprint, self.start, self.frames, self.every)

    @cached_property
    def clip(self) -> Clip:
        of = self.source.clip
        if of.exact and self.start >= of.frame_count:
            raise ValueError(f"the clip has {of.frame_count} frames: it cannot start at frame {self.start}")
        count = max(1, -(-(of.frame_count - self.start) // self.every))
        known = of.exact
        if self.frames and self.frames <= count:
            count = self.frames
        return replace(of, fps=of.fps / self.every, frame_count=count, exact=known)

    def need(self, index: int) -> int:
        return self.start + index * self.every

    input_index = need


@dataclass(frozen=True, eq=False)
class Step(Node):
    """A registered operation on one or more inputs; the first gives size, rate, sound and alpha."""

    name: str
    params: Mapping[str, Any]
    inputs: tuple[Node, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    objects: Mapping[str, Any] = field(default_factory=dict)
    """What cannot travel as data (a VAE): known by its key, which must name its content."""

    def make(self) -> Operation:
        """The operation itself, not yet started."""
        if self.name not in _registry:
            raise ValueError(f"no operation is registered as {self.name!r}: import the wing that has it")
        made = _registry[self.name](dict(self.params), dict(self.tensors), dict(self.files))
        made.objects = dict(self.objects)
        return made

    @cached_property
    def neighbours(self) -> tuple[int, int]:
        return self.make().neighbours

    @cached_property
    def sequential(self) -> bool:
        return self.make().sequential

    @property
    def costly(self) -> bool:
        return _registry[self.name].costly or any(i.costly for i in self.inputs)

    @cached_property
    def fingerprint(self) -> str:
        return _digest(
            _code(),
            self.name,
            dict(self.params),
            {key: _tensor_digest(t) for key, t in self.tensors.items()},
            {key: _file_digest(f) for key, f in self.files.items()},
            sorted(self.objects),
            [i.fingerprint for i in self.inputs],
        )

    @cached_property
    def clip(self) -> Clip:
        clips = [i.clip for i in self.inputs]
        counts = {c.frame_count for c in clips if c.exact}
        if len(counts) > 1:
            raise ValueError(
                f"{self.label or self.name}: the clips have {' and '.join(map(str, sorted(counts)))} frames: "
                "give clips of one length (Trim Video cuts)"
            )
        width, height = self.make().size(clips[0].width, clips[0].height)
        exact = next((c for c in clips if c.exact), clips[0])
        return replace(clips[0], width=width, height=height, frame_count=exact.frame_count, exact=exact.exact)

    def need(self, index: int) -> int:
        return max(0, index - self.neighbours[0])


def walk(sinks: Iterable[Node]) -> Iterator[Node]:
    """Every distinct node that the sinks need, inputs before what uses them."""
    seen: set[str] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node.fingerprint not in seen:
            seen.add(node.fingerprint)
            for source in node.inputs:
                yield from visit(source)
            yield node

    for sink in sinks:
        yield from visit(sink)


def starts(
    sinks: Mapping[Node, int], resumable: Callable[[Node, int], bool] = lambda node, index: True
) -> dict[str, int]:
    """The frame from which each node must run so that each sink can go on from its own.

    A sequential step begins at the first frame, unless its state before a later one is at hand.
    """
    need: dict[str, int] = {}
    for sink, index in sinks.items():
        need[sink.fingerprint] = min(index, need.get(sink.fingerprint, index))
    for node in reversed(list(walk(sinks))):
        if isinstance(node, Step) and node.sequential and not resumable(node, need[node.fingerprint]):
            need[node.fingerprint] = 0
        for source in node.inputs:
            index = node.need(need[node.fingerprint])
            need[source.fingerprint] = min(index, need.get(source.fingerprint, index))
    return need
