"""Progress bars with previews, and the interruption of a run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .comfyui import comfy, inside_comfyui

Preview = Tensor | Callable[[], Tensor] | None
"""A picture of the work in progress, or a function that makes one; it is called only when needed."""

_PREVIEW_INTERVAL = 0.5  # seconds


def interrupt_types() -> tuple[type[BaseException], ...]:
    """The exceptions of a cancelled run. Always re-raise them."""
    if inside_comfyui():
        return (comfy("comfy.model_management").InterruptProcessingException, KeyboardInterrupt)
    return (KeyboardInterrupt,)


def check_interrupt() -> None:
    """Raise ComfyUI's interrupt exception if the user has cancelled the run."""
    if inside_comfyui():
        comfy("comfy.model_management").throw_exception_if_processing_interrupted()


class Progress:
    """ComfyUI's progress bar, which raises when the user cancels; without ComfyUI a tqdm bar."""

    def __init__(self, total: int, label: str, unit: str):
        self.total, self.done = max(int(total), 1), 0
        self._previewed = 0.0
        self._comfyui_bar = comfy("comfy.utils").ProgressBar(self.total) if inside_comfyui() else None
        hidden = self._comfyui_bar is not None or not sys.stderr.isatty()
        self._terminal_bar = tqdm(
            total=self.total, desc=label or "working", unit=f" {unit}", disable=hidden, dynamic_ncols=True
        )

    def step(self, n: int = 1, preview: Preview = None) -> None:
        """`n` more are done; `preview` is a picture [H, W, 3] in 0..1 of the work in progress."""
        self.at(self.done + n, preview)

    def at(self, done: int, preview: Preview = None) -> None:
        """Set the number of finished steps."""
        self._terminal_bar.update(done - self.done)
        self.done = done
        if self._comfyui_bar is not None:
            check_interrupt()
            self._comfyui_bar.update_absolute(done, self.total, self._jpeg(preview))

    def _jpeg(self, preview: Preview) -> tuple[str, Any, int] | None:
        """A preview as ComfyUI expects it, at most twice a second."""
        now = time.monotonic()
        if preview is None or now - self._previewed < _PREVIEW_INTERVAL:
            return None
        from PIL import Image

        self._previewed = now
        picture = preview() if callable(preview) else preview
        pixels = picture.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
        return ("JPEG", Image.fromarray(pixels), 512)

    def close(self) -> None:
        self._terminal_bar.close()


@contextmanager
def progress(total: int, label: str = "", unit: str = "frames") -> Iterator[Progress]:
    """`with progress(len(frames), "Stylizing") as bar: ... bar.step()`; every step can be interrupted."""
    bar = Progress(total, label, unit)
    try:
        yield bar
    finally:
        bar.close()


def executing_node() -> Any:
    """ComfyUI's context of the running node; None outside ComfyUI and in versions without it."""
    if not inside_comfyui():
        return None
    try:
        return comfy("comfy_execution.utils").get_executing_context()
    except ImportError:
        return None
