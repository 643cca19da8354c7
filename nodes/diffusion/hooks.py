"""Hooks on modules that know which evaluation of the UNet is running.

A hook on a projection or a convolution sees a tensor and nothing else: not the noise level, not which rows
are whose, not whether this is the sampler's pass or one that only reads a style. What it needs, a part puts
into the `transformer_options` of its evaluation, under a key of its own; `Now` stands innermost, around
reading passes too, and holds the options of the evaluation that is running:

    now = Now()
    now.attach(clone, "mine")
    around(clone, path, lambda x, out: now.wish("my key").change(out) if now.wish("my key") else out)

So a pass that reads on behalf of another part is never mistaken for the sampler's, although it runs inside
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import unet
from .unet import REFERENCE, Pass


class Now:
    """The options of the evaluation that is running."""

    def __init__(self) -> None:
        self.options: dict = {}

    def __deepcopy__(self, memo: dict) -> Now:
        return self

    def attach(self, model: Any, name: str) -> None:
        """Stand innermost on a CLONE."""
        unet.attach(model, name, self._part, rank=10, reading=True)

    def _part(self, call: Pass) -> Tensor:
        before, self.options = self.options, call.options
        try:
            return call.run()
        finally:
            self.options = before

    def wish(self, key: str, *, reading: bool = False) -> Any:
        """What a part has put under `key`, None outside its evaluation; reading passes have it only when they
        are meant (a reading pass inside carries the options of the pass around it)."""
        if bool(self.options.get(REFERENCE)) != reading:
            return None
        return self.options.get(key)


def around(model: Any, path: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """On a CLONE: `change` gets what goes into a module and what comes out, and returns the latter. The
    callable is replaced, not the module, so that other LoRAs and offloading keep working. Hooks chain."""
    name = f"diffusion_model.{path}.forward"
    inner = model.get_model_object(name)
    model.add_object_patch(name, lambda x: change(x, inner(x)))
