"""Running chains: one stream for each distinct node, however many read it.

A source that two branches share is so decoded once, and a step that two branches share runs once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from .. import host
from . import chain
from .streams import (
    Batch,
    Buffer,
    DecodeStream,
    FrameStream,
    LatentStream,
    Shared,
    StepStream,
    Stream,
    TrimStream,
)


def state_key(fingerprint: str, index: int) -> str:
    """The name of an operation's state before its frame `index`."""
    return f"{fingerprint}@{index}"


class Pipeline:
    """The streams of one run. `sinks` maps each wanted node to the frame from which it is wanted."""

    def __init__(
        self,
        sinks: Mapping[chain.Node, int],
        *,
        border: int = 0,
        states: Mapping[str, dict[str, Tensor]] | None = None,
    ):
        self._border, self._sinks = border, dict(sinks)
        self._streams: dict[str, Shared] = {}
        states = states or {}
        begin = chain.starts(sinks, lambda node, index: state_key(node.fingerprint, index) in states)
        try:
            for node in chain.walk(sinks):
                stream = self._stream(node, begin[node.fingerprint])
                self._streams[node.fingerprint] = Shared(stream)
                state = states.get(state_key(node.fingerprint, stream.start))
                if state is not None:
                    stream.restore(state)
            self.feeds = [self._streams[node.fingerprint].feed(index) for node, index in sinks.items()]
        except BaseException:
            self.close()
            raise

    def _stream(self, node: chain.Node, start: int) -> Stream:
        match node:
            case chain.FileSource():
                return DecodeStream(node, start)
            case chain.FrameSource():
                return FrameStream(node, start)
            case chain.LatentSource():
                return LatentStream(node, start)
            case chain.Trim():
                return TrimStream(node, self._streams[node.source.fingerprint].feed(node.need(start)), start)
            case chain.Step():
                inputs = [self._streams[i.fingerprint].feed(node.need(start)) for i in node.inputs]
                return StepStream(node, inputs, start, self._marks(node))
        raise TypeError(f"{type(node).__name__} is no node of a chain")

    def _marks(self, node: chain.Step) -> Callable[[int], int | None]:
        """The frames of `node` at which the sinks' chunk borders lie."""
        if not self._border:
            return lambda after: None

        def next_mark(after: int) -> int:
            chunk = after // self._border
            while True:
                at = chain.starts(dict.fromkeys(self._sinks, chunk * self._border))[node.fingerprint]
                if at > after:
                    return at
                chunk += 1

        return next_mark

    def states_at(self, border: int) -> dict[str, dict[str, Tensor]]:
        """What the sequential operations need to go on from a border that the sinks have reached."""
        at = chain.starts(dict.fromkeys(self._sinks, border))
        found = {}
        for mark, shared in self._streams.items():
            kept = shared.stream.states if isinstance(shared.stream, StepStream) else {}
            if at[mark] in kept:
                found[state_key(mark, at[mark])] = kept[at[mark]]
            for old in [k for k in kept if k < at[mark]]:
                del kept[old]
        return found

    def close(self) -> None:
        for shared in reversed(list(self._streams.values())):
            shared.close()
        host.trim_heap()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rebatch(streams: Sequence[Stream], size: int) -> Iterator[tuple[Batch, ...]]:
    """Batches of exactly `size` frames (the last may be shorter) from streams read in lockstep."""
    buffers = [Buffer(stream) for stream in streams]
    at = streams[0].start
    while True:
        for buffer in buffers:
            while not buffer.ended and buffer.end < at + size:
                buffer.pull()
        ends = {min(b.end, at + size) for b in buffers}
        if len(ends) > 1:
            raise ValueError(
                f"the clips differ in length: one ends after {min(ends)} frames: "
                "give clips of one length (Trim Video cuts)"
            )
        last = ends.pop()
        if last == at:
            return
        yield tuple(buffer.cut(at, last) for buffer in buffers)
        at = last
        for buffer in buffers:
            buffer.drop(at)
