"""Sampling a clip of any length: window by window, while the clip is saved.

A *window* is a number of neighbouring frames of one shot. Its frames are encoded, get their start (their own
DDIM inversion, noise that is the same for all frames, or both), are sampled together and decoded.
Neighbouring windows overlap, and their pictures are cross-faded there. After a cut the windows begin anew.

What a window gives depends on its frames, on the first frame of the shot, and on the colours of the window
before it. The first frame of the shot and the colours are the state of the operation, so that a cancelled
save continues bit for bit: it samples the windows again that reach over the border.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..flow.cuts import CutDetector
from ..video.operation import Operation, Worker
from .inversion import inversion
from .inversion.trajectory import Trajectory, WindowTrajectory
from .patching import unet
from .patching.rows import FRAMES

STARTS = ("inversion", "noise", "both")
COLORS = ("source", "previous", "off")


@dataclass(frozen=True)
class Window:
    """Frames `first` to `end` - 1, of the shot that begins at `shot`."""

    shot: int
    first: int
    end: int


def windows_at(frame: int, shot: int, end: int, size: int, overlap: int) -> list[Window]:
    """The windows, at most two, that show a frame of the shot from `shot` to `end` - 1, in order.

    `end` may be any later frame than `frame` + `size` - 1 where the shot's end is not known yet. A window
    exists if the one before it does not reach the end.
    """
    step, found = size - overlap, []
    last = (frame - shot) // step
    for number in range(max(0, last - 1), last + 1):
        first = shot + number * step
        exists = number == 0 or first - step + size < end
        if exists and first <= frame < first + size:
            found.append(Window(shot, first, min(first + size, end)))
    return found


class SampleFrames(Operation, name="diffusion.sample"):
    """The frames of a clip, sampled by ComfyUI."""

    source: Operation
    hints: Operation | None
    graph: str  # stands for the model, the conditionings and the other connected objects
    cfg: float
    start_from: str
    invert_steps: int
    refine: int
    window: int
    overlap: int
    match_color: str
    seed: int
    control_strength: float
    model: Any = field(compare=False)
    invert_model: Any = field(compare=False)
    positive: Any = field(compare=False)
    negative: Any = field(compare=False)
    vae: Any = field(compare=False)
    sampler: Any = field(compare=False)
    sigmas: Any = field(compare=False)
    control_net: Any = field(default=None, compare=False)

    sequential = True

    @property
    def neighbours(self) -> tuple[int, int]:
        return self.window - 1, self.window - 1

    def start(self) -> Worker:
        return WindowSampler(self)


@dataclass
class WindowResult:
    """A window's frames, and the gain and offset [2, 3] by which their colours were matched."""

    frames: Tensor  # [n, H, W, 3]
    colors: Tensor


class WindowSampler(Worker):
    """Samples the windows that the wanted frames need, and keeps those that later frames need too."""

    def __init__(self, op: SampleFrames):
        self.op = op
        inverts = op.start_from != "noise"
        self._levels = invert_levels(op.invert_model, op.invert_steps, op.sigmas) if inverts else None
        self._anchored = unet.is_attached(op.model, "temporal", rank=8)
        self._detector, self._seen, self._cuts = CutDetector(), -1, []
        self._shot, self._first = 0, []  # the shot's first frame, and its hint
        self._results: dict[Window, WindowResult] = {}
        self._known_colors: dict[int, Tensor] = {}  # of windows before a border, by their first frame

    def __call__(self, frames: Tensor, hints: Tensor | None = None, *, index: int, inner: slice) -> Tensor:
        low = index - inner.start
        self._find_cuts(frames, low)
        given = {low + i: frame for i, frame in enumerate(frames)}
        hinted = None if hints is None else {low + i: hint for i, hint in enumerate(hints)}
        shown = []
        for frame in range(index, index + inner.stop - inner.start):
            end = next((cut for cut in self._cuts if cut > frame), low + len(frames))
            if frame in self._cuts or not self._first:
                kinds = [given] if hinted is None else [given, hinted]
                self._shot, self._first = frame, [kind[frame].clone() for kind in kinds]
            shown.append(self._frame(frame, end, given, hinted))
            self._results = {w: r for w, r in self._results.items() if w.end > frame + 1}
        return torch.stack(shown)

    def _find_cuts(self, frames: Tensor, low: int) -> None:
        for number, frame in enumerate(frames, low):
            if number > self._seen:
                if self._detector.push(frame):
                    self._cuts.append(number)
                self._seen = number
        del self._cuts[: max(0, bisect.bisect_right(self._cuts, low) - 1)]

    def _frame(self, frame: int, end: int, frames: dict[int, Tensor], hints: dict | None) -> Tensor:
        op = self.op
        before, *after = windows_at(frame, self._shot, end, op.window, op.overlap)
        shown = self._result(before, frames, hints).frames[frame - before.first]
        for window in after:
            share = (frame - window.first + 1) / (op.overlap + 1)
            shown = shown.lerp(self._result(window, frames, hints).frames[frame - window.first], share)
        return shown

    def _result(self, window: Window, frames: dict[int, Tensor], hints: dict | None) -> WindowResult:
        known = next((w for w in self._results if w.first == window.first), None)
        if known is None:
            known = window
            self._results[window] = self._sampled(window, frames, hints)
        return self._results[known]

    # one window

    def _sampled(self, window: Window, frames: dict[int, Tensor], hints: dict | None) -> WindowResult:
        numbers = list(range(window.first, window.end))
        pictures = torch.stack([frames[n] for n in numbers])
        shown = None if hints is None else torch.stack([hints[n] for n in numbers])
        extra = self._anchored and window.first > window.shot
        if extra:  # Temporal Attention finds the shot's first frame in every window
            numbers = [window.shot, *numbers]
            pictures = torch.cat([self._first[0][None], pictures])
            shown = None if shown is None else torch.cat([self._first[1][None], shown])
        made = self._pictures(pictures, numbers, shown)[int(extra) :]
        return self._matched(window, made, pictures[int(extra) :])

    def _pictures(self, pictures: Tensor, numbers: list[int], hints: Tensor | None) -> Tensor:
        """Sampled frames [n, H, W, 3] for the frames with these numbers in the clip."""
        op = self.op
        latents = op.vae.encode(_whole_groups(pictures, op.vae))
        positive, negative = op.positive, op.negative
        if hints is not None:
            sides = (positive, negative)
            positive, negative = host.with_hints(sides, op.control_net, hints, op.control_strength, op.vae)
        contents = WindowTrajectory.of(op.model)
        try:
            latents = self._sampled_latents(latents, numbers, positive, negative, contents)
        finally:
            for filled in contents:
                filled.fill(None)
        made = op.vae.decode(latents).float().cpu()
        made = made.reshape(-1, *made.shape[-3:])[: len(pictures), ..., :3].clamp(0, 1)
        if made.shape != pictures.shape:
            sizes = (f"{t.shape[2]}x{t.shape[1]}" for t in (pictures, made))
            raise ValueError("the VAE made pictures of another size, {} to {}: use max_side".format(*sizes))
        return made

    def _sampled_latents(
        self, latents: Tensor, numbers: list[int], positive: list, negative: list, contents: list
    ) -> Tensor:
        op, start = self.op, latents
        noise = _same_noise(latents, op.seed)
        text = f"frames {numbers[-1] - len(numbers) + 2} to {numbers[-1] + 1}"
        if self._levels is not None:
            start, content = self._inverted(latents, numbers, text, save_steps=0 if contents else 2)
            for waiting in contents:
                waiting.fill(content, numbers)
            if op.start_from == "both":  # equal shares of two independent noises, on the clip itself
                top = float(op.sigmas[0]) / float(op.model.model.process_latent_in(torch.ones(1)))
                start = latents + (start - latents + noise * top) / 2**0.5
            noise = torch.zeros_like(latents)
        return host.run_sampler(
            _for_frames(op.model, numbers),
            op.sampler,
            op.sigmas,
            start,
            noise,
            positive,
            negative,
            cfg=op.cfg,
            seed=op.seed,
            report=_shown(f"{text}: sampling"),
            what="Sample Video",
        )

    def _inverted(
        self, latents: Tensor, numbers: list[int], text: str, save_steps: int
    ) -> tuple[Tensor, Trajectory]:
        op = self.op
        model = _for_frames(op.invert_model, numbers)
        settings = {"refine": op.refine, "save_steps": save_steps, "report": _shown(f"{text}: inverting")}
        return inversion.invert(model, op.positive, latents, self._levels, **settings)

    # colours

    def _matched(self, window: Window, made: Tensor, source: Tensor) -> WindowResult:
        """The frames with the colours of the source, or of the window before where both show a frame."""
        colors = self._known_colors.get(window.first)
        if colors is None:
            colors = torch.tensor([[1.0] * 3, [0.0] * 3])
            if self.op.match_color == "source":
                colors = _to_match(made, source)
            elif self.op.match_color == "previous" and window.first > window.shot:
                before = next((w for w in self._results if w.first < window.first < w.end), None)
                if before is not None:
                    old = self._results[before].frames[window.first - before.first :]
                    colors = _to_match(made[: len(old)], old)
        return WindowResult((made * colors[0] + colors[1]).clamp(0, 1), colors)

    # resuming

    def state(self) -> dict[str, Tensor]:
        colors = {f"colors {w.first}": r.colors for w, r in self._results.items()}
        first = {f"first {i}": t for i, t in enumerate(self._first)}
        return {"shot": torch.tensor(self._shot), **first, **colors}

    def restore(self, state: dict[str, Tensor]) -> None:
        if state:
            self._shot = int(state["shot"])
            self._first = [state[k] for k in ("first 0", "first 1") if k in state]
            self._known_colors = {int(k.split()[1]): v for k, v in state.items() if k.startswith("colors ")}


def invert_levels(model: Any, steps: int, sigmas: Tensor) -> Tensor:
    """The ascending levels of the inversion: even timesteps, up to the first level of the sampling."""
    even = inversion.levels(model, steps) if steps else inversion.levels(model, 0, sigmas)
    top = sigmas[0].detach().cpu().float()
    return torch.cat([even[even < top * 0.999], top[None]])


def _shown(text: str) -> Callable[[int, int], None]:
    """Shows the steps of a window below the running node. The bar counts frames."""
    return lambda step, steps: host.show_text(f"{text}, step {step} of {steps}")


def _for_frames(model: Any, numbers: list[int]) -> Any:
    """A clone whose patches know the numbers of the frames that are sampled."""
    clone = model.clone()
    options = clone.model_options.get("transformer_options", {})
    clone.model_options["transformer_options"] = {**options, FRAMES: tuple(numbers)}
    return clone


def _same_noise(latents: Tensor, seed: int) -> Tensor:
    """Noise that is the same for every frame."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(latents[:1].shape, generator=generator, dtype=torch.float32)
    return one.expand_as(latents).to(latents.dtype).clone()


def _whole_groups(pictures: Tensor, vae: Any) -> Tensor:
    """For a VAE that compresses time by c: 1 + k * c frames; the last one is repeated."""
    factor = getattr(vae, "temporal_compression_decode", lambda: None)() or 1
    missing = -(len(pictures) - 1) % factor
    return torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1)]) if missing else pictures


def _to_match(made: Tensor, wanted: Tensor) -> Tensor:
    """Gain and offset [2, 3] that give one batch of frames the mean and deviation of another, per channel."""
    (deviation, mean), (target_deviation, target_mean) = (
        torch.std_mean(x.flatten(0, -2), dim=0, correction=0) for x in (made, wanted)
    )
    gain = target_deviation / deviation.clamp(min=1 / 255)
    return torch.stack([gain, target_mean - gain * mean])
