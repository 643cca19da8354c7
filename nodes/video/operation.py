"""Operations: what is done to a clip, as data.

A clip is a graph of operations. Each operation is a frozen dataclass: its fields are its inputs (other
operations), its parameters, tensors and files. Fingerprint and serialized form come from the fields, so
equal graphs are found in the frame cache, and a graph can be rebuilt in another process.

Nothing is computed here. `start` makes the `Worker` that computes, when a run begins.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common import files
from .batch import Batch, FrameBuffer

_MAX_DEPTH = 150


@dataclass(frozen=True)
class Clip:
    """The properties of a clip, known before any frame is computed."""

    width: int
    height: int
    fps: Fraction
    frame_count: int
    exact: bool = True  # False: frame_count is an estimate
    bit_depth: int = 8
    alpha: bool = False


@dataclass(frozen=True)
class Window:
    """Which frames a worker computes: `count` from clip frame `index` on, with neighbours around them."""

    index: int
    count: int
    before: int = 0
    after: int = 0


class Worker:
    """An operation while it runs. Made when a run begins, closed when it ends."""

    batch: int = 0
    """Frames wanted per call; 0: any number."""
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __init__(self, function: Callable[..., Tensor] | None = None):
        self._function = function

    def __call__(self, *frames: Tensor, window: Window) -> Tensor:
        """Frames [before + count + after, H, W, 3] of every input to the `count` frames of the output."""
        return self._function(*frames)

    def state(self) -> dict[str, Tensor]:
        """Sequential operations: what the next frame depends on."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Sequential operations: continue from a state."""

    def close(self) -> None:
        """Release device memory. Also called after an error."""


@dataclass(frozen=True)
class LiveObject:
    """An object that is not data, such as a VAE. `mark` is a hash of its content."""

    value: Any
    mark: str


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of a clip's graph. Subclass it and register it with `@operation("package.name")`."""

    name: ClassVar[str]
    sequential: ClassVar[bool] = False  # frames are computed in order; the worker has a state
    costly: ClassVar[bool] = True  # the result is worth caching on disk

    label: str = field(default="", compare=False, kw_only=True)  # names the node in error messages

    def __post_init__(self) -> None:
        self.clip, self.cached  # noqa: B018  (wrong inputs give an error now)
        if self.depth > _MAX_DEPTH:
            raise ValueError(
                f"{self.label or self.name}: more than {_MAX_DEPTH} operations in a row: save the clip "
                "before, and load the file here"
            )

    @cached_property
    def depth(self) -> int:
        """The length of the longest chain that ends here. Every operation needs some of Python's stack."""
        return 1 + max((i.depth for i in self.inputs), default=0)

    @property
    def inputs(self) -> tuple["Operation", ...]:
        """The operations whose frames this one reads."""
        return tuple(v for f, v in self.values() if f.compare and isinstance(v, Operation))

    @property
    def neighbours(self) -> tuple[int, int]:
        """How many frames before and after each frame are read."""
        return 0, 0

    @cached_property
    def cached(self) -> bool:
        return self.costly or any(i.cached for i in self.inputs)

    @cached_property
    def clip(self) -> Clip:
        """The properties of the output. Rate, times, sound and alpha are those of the first input."""
        clips = [i.clip for i in self.inputs]
        counts = {c.frame_count for c in clips if c.exact}
        if len(counts) > 1:
            raise ValueError(
                f"{self.label or self.name}: the clips have {' and '.join(map(str, sorted(counts)))} frames: "
                "give clips of one length (Trim Video cuts)"
            )
        width, height = self.size(clips[0].width, clips[0].height)
        exact = next((c for c in clips if c.exact), clips[0])
        return replace(clips[0], width=width, height=height, frame_count=exact.frame_count, exact=exact.exact)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The output's size for the first input's."""
        return width, height

    def input_frame(self, index: int) -> int:
        """The input frame that output frame `index` shows."""
        return index

    def first_input(self, index: int) -> int:
        """The first input frame that output frame `index` needs."""
        return max(0, self.input_frame(index) - self.neighbours[0])

    def start(self) -> Worker:
        """Load what the operation computes with. Its inputs' sizes are in `self.inputs[i].clip`."""
        return Worker()

    def frames(self, inputs: list[FrameBuffer], start: int, batch: int) -> Iterator[Batch] | None:
        """Batches of about `batch` frames from frame `start` on. None: the worker computes them."""
        return None

    def values(self) -> Iterator[tuple[Any, Any]]:
        """The fields and their values."""
        return ((f, getattr(self, f.name)) for f in fields(self))

    @property
    def fingerprint(self) -> str:
        """Equal for equal computations on equal sources."""
        if "_digest" not in self.__dict__:
            known = all("_digest" in i.__dict__ for i in self.inputs)
            for op in [self] if known else ordered([self]):  # inputs first: a long chain does not recurse
                if "_digest" not in op.__dict__:
                    parts = {f.name: _plain(value, _fingerprint) for f, value in op.values() if f.compare}
                    op.__dict__["_digest"] = _digest(_code(), op.name, parts)
        return self.__dict__["_digest"]


_registry: dict[str, type[Operation]] = {}


def operation(name: str) -> Callable[[type], type]:
    """Make a class a frozen dataclass, and register it under the name that serialized graphs use."""

    def register(cls: type) -> type:
        if name in _registry and _registry[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two operations are named {name!r}: give each its own name")
        made = dataclass(frozen=True, eq=False)(cls)
        made.name = name
        _registry[name] = made
        return made

    return register


def ordered(sinks: Iterable[Operation]) -> list[Operation]:
    """Every operation that the sinks need, inputs before what reads them. Equal objects may repeat."""
    graph: dict[int, list[int]] = {}
    by_id: dict[int, Operation] = {}
    todo = list(sinks)
    while todo:
        op = todo.pop()
        if id(op) not in by_id:
            by_id[id(op)], graph[id(op)] = op, [id(i) for i in op.inputs]
            todo.extend(op.inputs)
    return [by_id[key] for key in TopologicalSorter(graph).static_order()]


# -- fields as plain data --------------------------------------------------------------------------


def _plain(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A field's value as JSON data. `leaf` converts operations, tensors, files and objects."""
    if isinstance(value, (Operation, Tensor, Path, io.BytesIO, LiveObject)):
        return leaf(value)
    if isinstance(value, Fraction):
        return {"fraction": str(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v, leaf) for v in value]
    if isinstance(value, dict):
        return {"dict": {key: _plain(v, leaf) for key, v in value.items()}}
    return value


def _fingerprint(value: Any) -> Any:
    match value:
        case Operation():
            return value.fingerprint
        case Tensor():
            return tensor_digest(value)
        case Path():
            return files.fingerprint(value)
        case io.BytesIO():
            return hashlib.sha256(value.getbuffer()).hexdigest()
        case LiveObject():
            return value.mark


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """A digest of a tensor's type, shape and values."""
    plain = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b"")
    return digest.hexdigest()


@cache
def _code() -> str:
    """The pack's code: after an update, frames that older code computed are not reused."""
    pack = Path(__file__).parent.parent.parent
    files = sorted(p for folder in ("kernels", "nodes") for p in (pack / folder).rglob("*.py"))
    return _digest([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])


def to_data(sink: Operation) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A graph as JSON rows (inputs by row number) and tensors; `from_data` rebuilds it."""
    rows: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    row_of: dict[int, int] = {}

    def store(tensor: Tensor) -> str:
        tensors[str(len(tensors))] = tensor
        return str(len(tensors) - 1)

    def leaf(value: Any) -> Any:
        match value:
            case Operation():
                return {"row": add(value)}
            case Tensor():
                return {"tensor": store(value)}
            case Path():
                return {"file": str(value)}
            case io.BytesIO():
                return {"bytes": store(torch.frombuffer(bytearray(value.getbuffer()), dtype=torch.uint8))}
            case LiveObject():
                raise ValueError(
                    f"a {type(value.value).__name__} cannot be sent to another process: "
                    "render this clip in one process"
                )

    def add(op: Operation) -> int:
        if id(op) not in row_of:
            row = {f.name: _plain(value, leaf) for f, value in op.values()}
            row_of[id(op)] = len(rows)
            rows.append({"operation": op.name, "fields": row})
        return row_of[id(op)]

    for op in ordered([sink]):
        add(op)
    return rows, tensors


def from_data(rows: list[dict[str, Any]], tensors: dict[str, Tensor]) -> Operation:
    """The graph that `to_data` described."""
    made: list[Operation] = []

    def value(plain: Any) -> Any:
        if isinstance(plain, list):
            return tuple(value(p) for p in plain)
        if not isinstance(plain, dict):
            return plain
        ((kind, inner),) = plain.items()
        match kind:
            case "row":
                return made[inner]
            case "tensor":
                return tensors[inner]
            case "file":
                return Path(inner)
            case "bytes":
                return io.BytesIO(tensors[inner].numpy().tobytes())
            case "fraction":
                return Fraction(inner)
            case "dict":
                return {key: value(v) for key, v in inner.items()}
        raise ValueError(f"{kind!r} is not a kind of value in a serialized graph")

    for row in rows:
        name = row["operation"]
        if name not in _registry:
            raise ValueError(f"no operation is registered as {name!r}: import the package that defines it")
        made.append(_registry[name](**{key: value(v) for key, v in row["fields"].items()}))
    return made[-1]
