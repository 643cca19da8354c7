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
        self.limit, self.peak, self._alive = limit, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                reference = StorageWeakRef(storage)
                self._alive[reference.cdata] = reference, storage.nbytes()
        used = self.used
        if used > self.limit:
            raise torch.OutOfMemoryError(f"simulated: {used} of {self.limit} bytes")
        self.peak = max(self.peak, used)
        return result

    @property
    def used(self) -> int:
        """The bytes in use now."""
        self._alive = {number: pair for number, pair in self._alive.items() if not pair[0].expired()}
        return sum(size for _, size in self._alive.values())
