"""Progress bars with previews, and the interruption of a run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .comfyui import comfy, inside_comfyui, log

Preview = Tensor | Callable[[], Tensor] | None
"""A picture of the work in progress, or a function that makes one; it is called only when needed."""

_PREVIEW_INTERVAL = 0.5  # seconds
_strict: ContextVar[bool] = ContextVar("warnings are errors", default=False)
_warnings: ContextVar[tuple[list[str], ...]] = ContextVar("lists of warnings to show", default=())


@contextmanager
def strict(on: bool = True) -> Iterator[None]:
    """`warn` raises an error in this block."""
    before = _strict.get()
    _strict.set(on or before)
    try:
        yield
    finally:
        _strict.set(before)


def warn(text: str) -> None:
    """A warning about the result: in the log, and in ComfyUI below the running node."""
    if _strict.get():
        raise ValueError(text)
    log.warning("%s", text)
    show_text(text)
    for shown in _warnings.get():
        shown.append(text)


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
        self.total, self.done, self.unit = max(int(total), 1), 0, unit
        self._previewed, self._first = 0.0, 0
        self._start = self._begin = time.monotonic()
        self.warnings: list[str] = []
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
            self._comfyui_bar.update_absolute(done, self.total, self._news(preview))

    def _news(self, preview: Preview) -> tuple[str, Any, int] | None:
        """At most twice a second: shows the pace below the node, and gives a preview for ComfyUI's bar."""
        now = time.monotonic()
        if now - self._previewed < _PREVIEW_INTERVAL and self.done < self.total:
            return None
        self._previewed = now
        show_text("\n".join([self.pace(now), *self.warnings]))
        if preview is None or not previews_wanted():
            return None
        from PIL import Image

        picture = preview() if callable(preview) else preview
        pixels = picture.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
        return ("JPEG", Image.fromarray(pixels), 512)

    def pace(self, now: float) -> str:
        """The number of finished steps, the speed, and the time that is left."""
        if self.done == self.total:
            return f"{self.total} {self.unit} in {duration(now - self._start)}"
        text, seconds = f"{self.done} of {self.total} {self.unit}", now - self._begin
        if not self._first:  # what was there before, and the first steps' preparations, are no measure
            self._first, self._begin = self.done, now
        elif self.done > self._first and seconds > 0:
            speed = (self.done - self._first) / seconds
            text += f", {speed:.3g} {self.unit}/s, {duration((self.total - self.done) / speed)} left"
        return text

    def close(self) -> None:
        self._terminal_bar.close()


def duration(seconds: float) -> str:
    """ "2.5 s", "42 s", "3:20 min" or "1:05 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    whole, unit = (seconds, "min") if seconds < 3600 else (seconds / 60, "h")
    return f"{int(whole // 60)}:{int(whole % 60):02} {unit}"


def _server() -> Any:
    """ComfyUI's running server, or None."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def previews_wanted() -> bool:
    """False if the user set "Preview method" to "none" for the running prompt."""
    server, node = _server(), executing_node()
    if server is None or node is None:
        return True
    running = list(server.prompt_queue.currently_running.values())
    settings = (extra for _, prompt_id, _, extra, *_ in running if prompt_id == node.prompt_id)
    return all(extra.get("preview_method") != "none" for extra in settings)


def show_text(text: str) -> None:
    """Show a text below the running node in ComfyUI."""
    server, node = _server(), executing_node()
    if server is not None and node is not None:
        server.send_progress_text(text, node.node_id)


@contextmanager
def progress(total: int, label: str = "", unit: str = "frames") -> Iterator[Progress]:
    """`with progress(len(frames), "Stylizing") as bar: ... bar.step()`; every step can be interrupted."""
    bar = Progress(total, label, unit)
    before = _warnings.get()
    _warnings.set((*before, bar.warnings))
    try:
        yield bar
    finally:
        _warnings.set(before)
        bar.close()


def executing_node() -> Any:
    """ComfyUI's context of the running node; None outside ComfyUI and in versions without it."""
    if not inside_comfyui():
        return None
    try:
        return comfy("comfy_execution.utils").get_executing_context()
    except ImportError:
        return None
