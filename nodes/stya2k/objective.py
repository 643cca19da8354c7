"""What a training step sees, and the sum of terms that it minimises: eq. 18 and ours."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.perceptual import Perceptual
from .losses import (
    MovedFrame,
    content_loss,
    edge_loss,
    gram_loss,
    match_loss,
    moments_loss,
    palette_loss,
    sliced_loss,
    temporal_loss,
    variation_loss,
)
from .recipe import Recipe

WIDEST, DIRECTIONS = 512, 24  # channels of the widest layer that is judged; directions of the sliced terms


@dataclass(frozen=True)
class TrainingBatch:
    """The data of one step: N contents and styles; random directions for the sliced terms; a moved content
    for the temporal loss; and `base`, all frames (the contents, then the moved one) in their styles'
    palettes, for networks that start from it."""

    content: Tensor
    style: Tensor
    directions: Tensor
    motion: MovedFrame | None = None
    base: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        motion = (self.motion.frame, self.motion.flow, self.motion.valid) if self.motion else ()
        return [
            self.content,
            self.style,
            self.directions,
            *motion,
            *([] if self.base is None else [self.base]),
        ]

    def like(self, tensors: list[Tensor]) -> "TrainingBatch":
        """The same batch of other tensors, in the order of `tensors`."""
        content, style, directions, *rest = tensors
        motion = MovedFrame(*rest[:3]) if self.motion else None
        return TrainingBatch(content, style, directions, motion, rest[-1] if self.base is not None else None)


def _full_weight(_: Tensor) -> float:
    """The weight of a style that covers the whole frame."""
    return 1.0


def pictures(
    network: nn.Module, frames: Tensor, styles: Tensor, batch: TrainingBatch, every_pair: bool
) -> Tensor:
    """Frames in their styles; with `every_pair` all frames in the first style, then all in the next ..."""
    if not every_pair:
        base = {} if batch.base is None else {"base": batch.base}
        return network(frames, network.encode_style(styles), **base)
    content = network.encode(frames)
    codes = [network.encode_style(style[None]) for style in styles]
    return torch.cat([network.blend(content, frames, [(code, _full_weight)]) for code in codes])


def terms(r: Recipe, network: nn.Module, net: Perceptual, batch: TrainingBatch) -> dict[str, Tensor]:
    """The weighted terms of a step."""
    content, style, motion, n = batch.content, batch.style, batch.motion, len(batch.content)
    with torch.autocast(content.device.type, torch.bfloat16, enabled=r.half):
        frames = torch.cat([content, motion.frame]) if motion else content
        keys = torch.cat([style, style[:1]]) if motion and not r.every_pair else style
        out = pictures(network, frames, keys, batch, r.every_pair)
        if r.every_pair:
            rows = out.view(len(style), len(frames), *out.shape[1:])
            judged, first, moved = rows[:, :n].flatten(0, 1), rows[:1, 0], rows[:1, -1]
        else:
            judged, first, moved = out[:n], out[:1], out[n:]
        # The perceptual network was trained on pictures from 0 to 1: far outside, its features mean nothing.
        made = net(judged if r.literal else judged.clamp(-0.25, 1.25))
        with torch.no_grad():
            both = net(torch.cat([content, style]))
    made = {k: v.float() for k, v in made.items()}
    wanted = {k: v[:n].float() for k, v in both.items()}
    styled = {k: v[n:].float() for k, v in both.items()}
    if r.every_pair:
        wanted = {k: v.repeat(len(style), 1, 1, 1) for k, v in wanted.items()}
        styled = {k: v.repeat_interleave(n, 0) for k, v in styled.items()}
        content, style = content.repeat(len(style), 1, 1, 1), style.repeat_interleave(n, 0)
    judged = judged.float()
    found = {"style": r.style_weight * moments_loss(made, styled, net.style, r.equations, r.bounded)}
    if r.gram_weight:
        found["gram"] = r.gram_weight * gram_loss(made, styled, net.gram, r.bounded)
    if r.sliced_weight:
        found["sliced"] = r.sliced_weight * sliced_loss(made, styled, net.match, batch.directions)
    if r.palette_weight:
        found["palette"] = r.palette_weight * palette_loss(judged, style, batch.directions)
    if r.content_weight:
        found["content"] = r.content_weight * content_loss(made, wanted, net.content, net.weights)
    if r.edge_weight:
        found["edges"] = r.edge_weight * edge_loss(judged, content)
    if r.match_weight:
        shallow = net.style[:1] if r.equations == "official" else ()
        found["match"] = r.match_weight * match_loss(
            made, wanted, styled, net.match, shallow, net.sizes, equations=r.equations
        )
    if r.identity_weight:
        same = network(content[:1], network.encode_style(content[:1])).float()
        found["identity"] = r.identity_weight * (same - content[:1]).abs().mean()
    if r.variation_weight:
        found["variation"] = r.variation_weight * variation_loss(out.float())
    if motion:
        found["temporal"] = r.temporal_weight * temporal_loss(first.float(), moved.float(), motion)
    return found
