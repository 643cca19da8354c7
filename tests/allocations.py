"""A simulated device: the bytes of all tensors that operations make, with a limit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """`with Allocations(limit) as seen: ...` raises torch's out-of-memory error beyond `limit` bytes, also in
    the backward pass; `seen.peak` is the most that was in use."""

    def __init__(self, limit: float = float("inf")):
        super().__init__()
        self.limit, self.peak, self._alive, self._at_most = limit, 0, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                reference = StorageWeakRef(t.untyped_storage())
                if reference.cdata not in self._alive:
                    self._alive[reference.cdata] = reference, t.untyped_storage().nbytes()
                    self._at_most += t.untyped_storage().nbytes()
        if self._at_most > min(self.peak, self.limit):  # else what has been freed meanwhile does not matter
            if self.used > self.limit:
                raise torch.OutOfMemoryError(f"simulated: {self._at_most} of {self.limit} bytes")
            self.peak = max(self.peak, self._at_most)
        return result

    @property
    def used(self) -> int:
        """The bytes in use now."""
        self._alive = {number: pair for number, pair in self._alive.items() if not pair[0].expired()}
        self._at_most = sum(size for _, size in self._alive.values())
        return self._at_most
