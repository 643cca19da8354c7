"""Scene cuts: where two neighbouring frames show different places.

A cut changes two measurements at once. (1) The colour histogram changes. A fast pan hardly changes it.
(2) Optical flow finds no motion that explains the change: one thumbnail, warped along the flow, does not
look like the other, and forward and backward flow disagree. A flash changes only the
histogram, because the thumbnails are normalized in brightness and contrast. So a frame counts as a cut only
if both measurements are high.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...kernels.flow import returns, warp
from .estimate import Estimator, estimator

SIDE = 160  # longer side of a thumbnail
BINS = 8
# Measured on five clips with eight cuts: jump + mismatch is 1.02 to 1.64 at cuts (mismatch at least 0.34).
# Without a cut it reaches 0.90 in a truck race at 10 frames/s, 0.43 in a shaky bicycle ride, 0.22 elsewhere.
SUM, MISMATCH = 0.96, 0.25


@dataclass
class _Thumbnail:
    """What is kept of a frame."""

    picture: Tensor  # [1, 1, h, w] luma, mean 0 and deviation 1
    histogram: Tensor
    prepared: object  # for the flow estimator


class CutDetector:
    """Finds cuts in frames that are given one by one."""

    def __init__(self) -> None:
        self._flow: Estimator = estimator("dis-ultrafast")
        self._last: _Thumbnail | None = None

    def push(self, frame: Tensor) -> bool:
        """Whether the next frame [H, W, 3] starts a new scene."""
        thumbnail = self._thumbnail(frame)
        last, self._last = self._last, thumbnail
        if last is None or last.picture.shape != thumbnail.picture.shape:
            return False
        jump, mismatch = self._distance(last, thumbnail)
        return jump + mismatch > SUM and mismatch > MISMATCH

    def _thumbnail(self, frame: Tensor) -> _Thumbnail:
        small = frame[..., :3].float().cpu().permute(2, 0, 1)[None]
        h, w = small.shape[-2:]
        factor = min(1.0, SIDE / max(h, w))
        size = (max(1, round(h * factor)), max(1, round(w * factor)))
        small = interpolate(small, size, mode="area").clamp(0, 1)
        levels = (small[0].flatten(1) * (BINS - 1e-3)).long()
        index = (levels[0] * BINS + levels[1]) * BINS + levels[2]
        histogram = torch.bincount(index, minlength=BINS**3).float()
        luma = small.mean(dim=1, keepdim=True)
        picture = (luma - luma.mean()) / (luma.std(correction=0) + 0.02)
        grey = (picture * 0.2 + 0.5).clamp(0, 1)  # 2.5 deviations either way
        prepared = self._flow.prepare(grey[0, 0, :, :, None].expand(-1, -1, 3))
        return _Thumbnail(picture, histogram / histogram.sum(), prepared)

    def _distance(self, a: _Thumbnail, b: _Thumbnail) -> tuple[float, float]:
        """Histogram change and motion mismatch, from 0 (equal) to about 1 (nothing in common)."""
        jump = (a.histogram - b.histogram).abs().sum().item() / 2
        forward, backward = self._flow.both(a.prepared, b.prepared)
        rest = (warp(a.picture, backward) - b.picture).square()
        lost = (rest.mean() / 2).clamp(max=1).item()  # unrelated pictures of variance 1 differ by 2
        kept = returns(backward, forward).float().mean().item()
        return jump, (lost + 1 - kept) / 2


def find_cuts(frames: Tensor) -> list[int]:
    """The first frame after each cut of a clip [N, H, W, 3]."""
    detector = CutDetector()
    return [t for t, frame in enumerate(frames) if detector.push(frame)]
