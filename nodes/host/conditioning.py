"""ComfyUI's prepared conditioning, cut to some frames of a clip: per-frame tensors and ControlNet hints.

A ControlNet keeps the scaled hint of its first call. Every slice therefore has a copy of the ControlNet,
which shares its network and has the hints of its own frames.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class FrameSlice:
    """Some frames of a batch, and how conditioning is cut to them."""

    places: list[int]  # positions in the batch that is split
    frames: list[int]  # frame numbers in the clip
    total: int  # frames in the batch that is split
    controls: dict[tuple, Any]  # copies of ControlNets, shared by the slices of a run

    def rows(self, t: Tensor) -> Tensor:
        """The rows of a per-frame tensor. Like ComfyUI, it takes tensors that are as long as the batch or as
        the clip, and repeats short ones."""
        if t.ndim == 0 or len(t) == 1:
            return t
        rows = self.places if len(t) == self.total else self.frames
        return t[[i % len(t) for i in rows]]

    def cond(self, cond: dict) -> dict:
        """One prepared conditioning entry."""
        new = dict(cond)
        new["model_conds"] = {key: self._model_cond(c) for key, c in cond["model_conds"].items()}
        if torch.is_tensor(cond.get("mask")):
            new["mask"] = self.rows(cond["mask"])
        if cond.get("control") is not None:
            new["control"] = self.control(cond["control"])
        return new

    def _model_cond(self, cond: Any) -> Any:
        tensor = getattr(cond, "cond", cond)
        if not torch.is_tensor(tensor) or len(tensor) == 1:
            return cond
        return self.rows(tensor) if tensor is cond else cond._copy_with(self.rows(tensor))

    def control(self, control: Any) -> Any:
        """A shallow copy with the hints of these frames, one per slice and run: ComfyUI batches positive and
        negative only if they have the identical object. Unlike `control.copy()`, it keeps what `pre_run`
        has prepared."""
        key = (id(control), tuple(self.frames))
        if key not in self.controls:
            new = copy.copy(control)
            new.reelbrush_original = control  # a reference, so that its id is not used again
            new.cond_hint = new.extra_concat = None
            if hasattr(control, "sub_idxs"):  # Advanced-ControlNet slices by itself
                new.sub_idxs = list(self.frames)
                new.full_latent_length = max(self.total, max(self.frames) + 1)
                new.context_length = len(self.frames)
            elif torch.is_tensor(control.cond_hint_original):
                new.cond_hint_original = self._hint(control.cond_hint_original)
                new.extra_concat_orig = [self._hint(t) for t in control.extra_concat_orig]
            if control.previous_controlnet is not None:
                new.previous_controlnet = self.control(control.previous_controlnet)
            self.controls[key] = new
        return self.controls[key]

    def _hint(self, hint: Tensor) -> Tensor:
        return self.rows(hint)


def with_hints(
    conditionings: Iterable[list], control_net: Any, hints: Tensor, strength: float, vae: Any
) -> list[list]:
    """CONDITIONINGs with a ControlNet; its hints [n, H, W, 3] are those of the n frames that are sampled."""
    made: dict[int, Any] = {}  # the same for both sides: ComfyUI evaluates them together only then

    def control(before: Any) -> Any:
        if id(before) not in made:
            own = control_net.copy().set_cond_hint(hints.movedim(-1, 1), strength, (0.0, 1.0), vae=vae)
            own.set_previous_controlnet(before)
            made[id(before)] = own
        return made[id(before)]

    return [
        [
            [text, {**options, "control": control(options.get("control")), "control_apply_to_uncond": False}]
            for text, options in conditioning
        ]
        for conditioning in conditionings
    ]


def drop_controls(controls: dict[tuple, Any]) -> None:
    """Release the hints of a run's ControlNet copies."""
    for control in controls.values():
        control.cond_hint = control.extra_concat = None
    controls.clear()
