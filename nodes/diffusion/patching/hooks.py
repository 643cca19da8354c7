"""Hooks on modules of the UNet that depend on the evaluation that is running.

A hook on a projection or a convolution gets a tensor, but neither the noise level nor the rows, and it cannot
tell the sampler's evaluation from a reading pass. A patch therefore puts what its hooks need into the
`transformer_options` of its evaluation, under a key of its own. `RunningOptions` is the innermost patch, also
in reading passes, and keeps the options of the evaluation that is running:

    running = RunningOptions()
    running.attach(clone, "mine")
    hook_output(clone, path, lambda x, out: change(out) if running.get("my key") else out)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .layers import DecoderBlock
from .unet import READING, UNetCall, attach


class RunningOptions:
    """The options of the UNet evaluation that is running."""

    def __init__(self) -> None:
        self.options: dict = {}

    def __deepcopy__(self, memo: dict) -> RunningOptions:
        return self

    def attach(self, model: Any, name: str) -> None:
        """Add the innermost patch to a CLONE."""
        attach(model, name, self._patch, rank=10, reading=True)

    def _patch(self, call: UNetCall) -> Tensor:
        before, self.options = self.options, call.options
        try:
            return call.run()
        finally:
            self.options = before

    def get(self, key: str, *, reading: bool = False) -> Any:
        """What a patch has put under `key`, None outside its evaluation.

        A reading pass copies the options of the evaluation around it. So `reading` says which of the two the
        value is for.
        """
        return self.options.get(key) if bool(self.options.get(READING)) == reading else None


def hook_output(model: Any, path: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """On a CLONE: `change` gets a module's first input and its output, and returns the output.

    The module's `forward` is replaced, not the module: LoRAs and offloading keep working. Hooks chain.
    """
    name = f"diffusion_model.{path}.forward"
    forward = model.get_model_object(name)

    def hooked(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return change(x, forward(x, *args, **kwargs))

    model.add_object_patch(name, hooked)


def on_resblock(model: Any, block: DecoderBlock, change: Callable[[Tensor], Tensor]) -> None:
    """On a CLONE: `change` gets what a residual block adds to its skip path, and returns it."""
    hook_output(model, f"{block.path}.out_layers.3", lambda x, out: change(out))
