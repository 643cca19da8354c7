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
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common import files
from . import codec
from .batch import Batch, Stream

_MAX_DEPTH = 150


class Worker:
    """An operation while it runs. Made when a run begins, dropped when it ends."""

    batch: int = 0
    """Frames wanted per call; 0: any number."""
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def __init__(self, function: Callable[..., Tensor] | None = None):
        self._function = function

    def __call__(self, *frames: Tensor, index: int, inner: slice) -> Tensor:
        """The frames of the output from frame `index` on, from frames [n, H, W, 3] of every input.

        `inner` is their place among the frames of the input, which have neighbours around them.
        """
        return self._function(*frames)

    def state(self) -> dict[str, Tensor]:
        """Sequential operations: what the next frame depends on."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Sequential operations: continue from a state."""


_registry: dict[str, type["Operation"]] = {}


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of a clip's graph.

    `class Sharpen(Operation, name="package.sharpen")` becomes a frozen dataclass, and is registered under
    the name that serialized graphs use.
    """

    name: ClassVar[str]
    sequential: ClassVar[bool] = False  # frames are computed in order; the worker has a state
    costly: ClassVar[bool] = True  # the result is worth caching on disk
    neighbours: ClassVar[tuple[int, int]] = (0, 0)  # how many frames before and after each frame are read
    is_stale: ClassVar[bool] = False  # a source that is not any more what the fingerprint says

    label: str = field(default="", compare=False, kw_only=True)  # names the node in error messages

    def __init_subclass__(cls, name: str) -> None:
        if name in _registry and _registry[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"two operations are named {name!r}: give each its own name")
        cls.name = name
        _registry[name] = dataclass(frozen=True, eq=False)(cls)

    def __post_init__(self) -> None:
        self.clip, self.cached, self.fingerprint  # noqa: B018  (wrong inputs give an error now)
        if self.depth > _MAX_DEPTH:
            name = self.label or self.name
            raise ValueError(f"{name}: more than {_MAX_DEPTH} operations in a row: save the clip in between")

    @cached_property
    def depth(self) -> int:
        """The length of the longest chain that ends here. Every operation needs some of Python's stack."""
        return 1 + max((i.depth for i in self.inputs), default=0)

    @property
    def inputs(self) -> tuple["Operation", ...]:
        """The operations whose frames this one reads."""
        return tuple(v for f, v in self.values() if f.compare and isinstance(v, Operation))

    @property
    def sound_from(self) -> "Operation | None":
        """The operation whose sound belongs to the frames."""
        return self.inputs[0] if self.inputs else None

    @cached_property
    def cached(self) -> bool:
        return self.costly or any(i.cached for i in self.inputs)

    @cached_property
    def clip(self) -> codec.VideoInfo:
        """The properties of the output: those of the first input."""
        clips = [i.clip for i in self.inputs]
        counts = {c.frame_count for c in clips}
        if len(counts) > 1:
            raise ValueError(
                f"{self.label or self.name}: the clips have {' and '.join(map(str, sorted(counts)))} frames: "
                "give clips of one length (Trim Video cuts)"
            )
        return clips[0]

    def input_frame(self, index: int) -> int:
        """The input frame that output frame `index` shows."""
        return index

    def first_input(self, index: int) -> int:
        """The first input frame that output frame `index` needs."""
        return max(0, self.input_frame(index) - self.neighbours[0])

    def start(self) -> Worker:
        """Load what the operation computes with. Its inputs' sizes are in `self.inputs[i].clip`."""
        return Worker()

    def frames(self, inputs: list[Stream], start: int, batch: int) -> Iterator[Batch] | None:
        """Batches of about `batch` frames from frame `start` on. None: the worker computes them."""
        return None

    def values(self) -> Iterator[tuple[Any, Any]]:
        """The fields and their values."""
        return ((f, getattr(self, f.name)) for f in fields(self))

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal computations on equal sources."""
        return digest(_code(), self.name, {f.name: value for f, value in self.values() if f.compare})


def ordered(sinks: Iterable[Operation]) -> list[Operation]:
    """Every operation that the sinks need, inputs before what reads them. Equal objects may repeat."""
    graph: dict[Operation, tuple[Operation, ...]] = {}
    todo = list(sinks)
    while todo:
        op = todo.pop()
        if op not in graph:
            graph[op] = op.inputs
            todo.extend(op.inputs)
    return list(TopologicalSorter(graph).static_order())


def _fingerprint(value: Any) -> str:
    """What stands for a value in a fingerprint that JSON has no form for."""
    match value:
        case Operation():
            return value.fingerprint
        case Tensor():
            plain = value.detach().cpu().contiguous()
            values = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b""
            return f"{plain.dtype}{tuple(plain.shape)}{hashlib.sha256(values).hexdigest()}"
        case Path():
            return files.fingerprint(value)
        case io.BytesIO():
            return hashlib.sha256(value.getbuffer()).hexdigest()
        case Fraction():
            return str(value)
    raise TypeError(f"an operation cannot have a {type(value).__name__} among its fields")


def digest(*parts: Any) -> str:
    """A hash of plain data, tensors and whatever else fields may hold."""
    text = json.dumps(parts, sort_keys=True, default=_fingerprint)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """The pack's code: after an update, frames that older code computed are not reused."""
    pack = Path(__file__).parent.parent.parent
    files = sorted(p for folder in ("kernels", "nodes") for p in (pack / folder).rglob("*.py"))
    return digest([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])


def to_data(sink: Operation) -> tuple[str, dict[str, Tensor]]:
    """A graph as JSON and tensors, for `from_data`."""
    number_of: dict[Operation, int] = {}
    tensors: dict[str, Tensor] = {}

    def tagged(value: Any) -> dict[str, Any]:
        match value:
            case Operation() if value in number_of:
                return {"$operation": number_of[value]}
            case Operation():
                number_of[value] = number = len(number_of)
                return {
                    "$new": value.name,
                    "number": number,
                    "fields": {f.name: v for f, v in value.values()},
                }
            case Tensor():
                tensors[str(len(tensors))] = value
                return {"$tensor": str(len(tensors) - 1)}
            case Path():
                return {"$file": str(value)}
            case io.BytesIO():
                return {"$bytes": torch.frombuffer(bytearray(value.getbuffer()), dtype=torch.uint8)}
            case Fraction():
                return {"$fraction": str(value)}
        raise ValueError(
            f"a {type(value).__name__} cannot be sent to another process: render this clip in one process"
        )

    return json.dumps(sink, default=tagged), tensors


def from_data(text: str, tensors: dict[str, Tensor]) -> Operation:
    """The graph that `to_data` described."""
    made: dict[int, Operation] = {}

    def value(data: dict[str, Any]) -> Any:
        match data:
            case {"$operation": number}:
                return made[number]
            case {"$new": name, "number": number, "fields": fields}:
                if name not in _registry:
                    raise ValueError(f"no operation is named {name!r}: import the package that defines it")
                lists_as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
                made[number] = _registry[name](**lists_as_tuples)
                return made[number]
            case {"$tensor": key}:
                return tensors[key]
            case {"$file": path}:
                return Path(path)
            case {"$bytes": tensor}:
                return io.BytesIO(tensor.numpy().tobytes())
            case {"$fraction": ratio}:
                return Fraction(ratio)
        return data

    return json.loads(text, object_hook=value)  # the innermost objects come first
