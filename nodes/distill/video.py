"""Attention distillation of a clip of any length, frame by frame, while the clip is saved.

The first frame of each shot starts from its content and takes all steps. Every later frame starts from its
own content, changed as the frame before it was changed (clip.py), and takes a few steps. The frame before it,
its result and the lag of the change are the state of the operation, so that a cancelled save continues bit
for bit. The style's features are read once per timestep for the whole clip, as far as memory allows.
"""

from collections import Counter
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from ...kernels.flow import resize_flow
from .. import host
from ..flow.cuts import CutDetector
from ..flow.estimate import estimator
from ..video.operation import Operation, Worker
from .clip import Schedule, move
from .features import FeatureReader, opened
from .optimize import DistillRecipe, References, distill
from .run import STYLE_MEMORY, in_model_space
from .vae import fit

METHOD = "dis-medium"


class DistillFrames(Operation, name="distill.video"):
    """The frames of a clip, redrawn in the style of pictures."""

    source: Operation
    graph: str  # stands for the model, the conditioning and the VAE
    style: Tensor  # [S, H, W, 3]
    content_weight: float
    steps: int
    warm_steps: int
    model: Any = field(compare=False)
    null: Any = field(compare=False)
    vae: Any = field(compare=False)

    sequential = True

    def start(self) -> Worker:
        return FrameDistiller(self)


class FrameDistiller(Worker):
    """Redraws frames one after the other."""

    batch = 8

    def __init__(self, op: DistillFrames):
        self.op = op
        self.schedule = Schedule(op.steps, op.warm_steps)
        self._flow, self._cuts = estimator(METHOD), CutDetector()
        self._style: Tensor | None = None  # latents
        self._references: References | None = None
        self._frame: Tensor | None = None  # the frame before, [H, W, 3]
        self._content = self._result = self._lag = None  # of the frame before, in model space

    def __call__(self, frames: Tensor, *, index: int, **_: Any) -> Tensor:
        op = self.op
        encoded = [op.vae.encode(frame[None]) for frame in frames]  # alone: the same result in any batch
        if self._style is None:
            self._style = op.vae.encode(fit(op.style, op.vae))
        results = []
        with opened(op.model, op.null) as (_, reader):  # the VAE does not run with gradients
            self._prepare(reader)
            reader.frames_per_call(
                in_model_space(encoded[0], reader), 1, 1
            )  # recomputing, where memory is short
            for number, (frame, latent) in enumerate(zip(frames, encoded, strict=True), index):
                z = self._distilled(reader, frame.clone(), in_model_space(latent, reader), number)
                results.append(reader.base.process_latent_out(z).float().cpu())
        made = [op.vae.decode(result).float().cpu() for result in results]
        return torch.cat([m.reshape(-1, *m.shape[-3:])[..., :3] for m in made]).clamp(0, 1)

    def _prepare(self, reader: FeatureReader) -> None:
        if self._references is None:
            cold, warm = (set(self.schedule.timesteps(warm)) for warm in (False, True))
            reads = Counter(dict.fromkeys(cold, 2)) + Counter(dict.fromkeys(warm, 100))  # warm ones first
            memory = min(STYLE_MEMORY, host.free_memory(host.offload_device()) // 4)
            self._references = References(
                reader, in_model_space(self._style, reader), memory=memory, reads=reads
            )
        self._references.reader = reader

    def _distilled(self, reader: FeatureReader, frame: Tensor, content: Tensor, number: int) -> Tensor:
        """The redrawn latent [1, C, h, w] of the next frame."""
        warm = not self._cuts.push(frame) and self._frame is not None and self.schedule.warm_steps > 0
        start, lag = content, torch.zeros(1, 2, *content.shape[-2:], device=content.device)
        if warm:
            before, now = (self._flow.prepare(f) for f in (self._frame, frame))
            flow = resize_flow(self._flow.both(before, now)[1], *content.shape[-2:]).to(content)
            moved, lag = move(self._result - self._content, flow, self._lag)
            start = content + moved
        references = self._references
        references.content = content
        references.release_content()
        recipe = DistillRecipe(content_weight=self.op.content_weight)
        timesteps = self.schedule.timesteps(warm)
        text = f"frame {number + 1}: step {{}} of {len(timesteps)}"
        report = lambda step: host.show_text(text.format(step.number + 1))  # noqa: E731
        z = distill(references, start, timesteps, recipe, frames=[number], warm=warm, report=report)
        self._frame, self._content, self._result, self._lag = frame, content, z, lag
        return z

    def state(self) -> dict[str, Tensor]:
        state = {"frame": self._frame, "content": self._content, "result": self._result, "lag": self._lag}
        return {} if self._frame is None else state

    def restore(self, state: dict[str, Tensor]) -> None:
        if state:
            self._frame = state["frame"]
            self._cuts.push(self._frame)
            device = host.device()
            self._content, self._result, self._lag = (
                state[name].to(device) for name in ("content", "result", "lag")
            )
