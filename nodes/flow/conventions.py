"""How an optical-flow error is computed: every choice in which published numbers differ, and presets.

web/docs/optical-flow-error.md has the formulas. A preset is named after the public code that it follows,
including that code's own rule for which pixels count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from ...kernels.flow import NORMS as COLOUR_NORMS
from ...kernels.flow import difference, energy, inside, motion_edges, returns, warp
from . import lpips
from .estimate import Flow

DIRECTIONS = ("previous to next", "next to previous")
NORMS = (*COLOUR_NORMS, "lpips")
RANGES = ("0-255", "0-1")
MASKS = ("valid only", "all pixels")
NORMALISERS = ("counted pixels", "all pixels")

Rule = Callable[
    [Tensor, Tensor], Tensor
]  # the flow along which is warped, the flow back, to weights [N, H, W]


def soft_reliability(flow: Tensor, back: Tensor) -> Tensor:
    """The weights of artistic-videos: -1, 0 or 1 per pixel, smoothed by a Gaussian (0.8 px), clipped at 0.

    The last row and the last column count as outside, as in its consistency checker.
    """
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device) + flow[:, 0]
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    outside = (x < 0) | (x >= w - 1) | (y < 0) | (y >= h - 1)
    weights = torch.ones_like(x)
    weights[motion_edges(flow)] = 0
    weights[~returns(flow, back)] = -1
    weights[outside] = 0
    taps = torch.exp(torch.arange(-2.0, 3.0, device=flow.device).square() / (-2 * 0.8**2))
    taps = (taps / taps.sum()).view(1, 1, -1)
    for axis in (-1, -2):
        rows = _mirrored(weights.movedim(axis, -1), 2)
        smooth = conv1d(rows.reshape(-1, 1, rows.shape[-1]), taps)
        weights = smooth.view(*rows.shape[:-1], -1).movedim(-1, axis)
    return weights.clamp(0, 1)


def _mirrored(rows: Tensor, size: int) -> Tensor:
    """Rows with their mirror image added at both ends; the end itself is repeated."""
    if rows.shape[-1] < size:
        return pad(rows, (size, size), mode="replicate")
    return torch.cat([rows[..., :size].flip(-1), rows, rows[..., -size:].flip(-1)], dim=-1)


def lai_mask(flow: Tensor, back: Tensor) -> Tensor:
    """The mask of fast_blind_video_consistency: motion edges by forward differences, no border test."""
    dx = pad(flow[..., 1:] - flow[..., :-1], (0, 1))
    dy = pad(flow[..., 1:, :] - flow[..., :-1, :], (0, 0, 0, 1))
    steep = (dx.square() + dy.square()).sum(dim=1) > 0.01 * energy(flow) + 0.002
    there = warp(back, flow)
    lost = energy(flow + there) > 0.01 * (energy(flow) + energy(there)) + 0.5
    return (~lost & ~steep).float()


def rerender_mask(flow: Tensor, back: Tensor) -> Tensor:
    """The mask of Rerender_A_Video: compares lengths, not squares. The backward flow counts as 0 outside the
    frame. Motion edges are not excluded."""
    there = torch.where(inside(flow)[:, None], warp(back, flow), 0.0)
    error, forward, backward = (energy(f).sqrt() for f in (flow + there, flow, back))
    return (error <= 0.01 * (forward + backward) + 0.5).float()


_RULES: dict[Rule | None, str] = {
    None: "as the flow says",
    soft_reliability: "artistic-videos' soft weights",
    lai_mask: "Lai's rule",
    rerender_mask: "Rerender's rule",
}


@dataclass(frozen=True)
class Convention:
    """One way to compute the error. The defaults are those of the nodes."""

    direction: str = DIRECTIONS[0]
    norm: str = NORMS[0]
    range: str = RANGES[0]
    mask: str = MASKS[0]
    normaliser: str = NORMALISERS[0]
    strides: tuple[int, ...] = (1,)
    preset: str = "custom"
    rule: Rule | None = None  # None: the masks of the flow
    scale_override: float = 0.0
    method: str = ""  # how the motion is estimated; empty: as the node says

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"the {name} {getattr(self, name)!r} is unknown: choose one of {', '.join(allowed)}"
                )
        if not self.strides or min(self.strides) < 1:
            raise ValueError('strides are whole numbers of 1 or more, such as "1" or "1,4"')

    def check_frames(self, count: int) -> None:
        """Reject a stride that the clip has no pair for. A single frame is no clip, and has no error."""
        beyond = [stride for stride in self.strides if stride >= count > 1]
        if beyond:
            raise ValueError(
                f"the clip has {count} frames, so it has no pair at stride {beyond[0]}: "
                f"give strides below {count}"
            )

    @property
    def scale(self) -> float:
        return self.scale_override or (255.0 if self.range == "0-255" else 1.0)

    @property
    def over_all(self) -> bool:
        return self.normaliser == "all pixels"

    def flows(self, pair: Flow) -> tuple[Tensor, Tensor | None]:
        """The flow that warps one pair, and the weights of its pixels (None: all count)."""
        forth, back, valid = pair.backward, pair.forward, pair.backward_valid
        if self.direction == "next to previous":
            forth, back, valid = pair.forward, pair.backward, pair.forward_valid
        if self.mask == "all pixels":
            return forth, None
        return forth, valid.float() if self.rule is None else self.rule(forth, back)

    def flow_method(self, chosen: str) -> str:
        """The chosen method, unless the preset demands another one."""
        return chosen if chosen.startswith(self.method.partition("-")[0]) else self.method

    def per_pixel(self, warped: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """The error of each pixel [N, H, W] of pictures [N, 3, H, W]."""
        if self.norm != "lpips":
            return difference(warped, target, norm=self.norm, scale=self.scale)
        if weights is not None:  # features see neighbours too: what does not count must be equal
            warped = target.lerp(warped, weights[:, None])
        return lpips.distance(warped, target)

    def description(self) -> dict[str, str]:
        """The convention as text, for the table and the plot."""
        return {
            "preset": self.preset,
            "direction": self.direction,
            "norm": self.norm,
            "range": "0-1" if self.norm == "lpips" else f"0-{self.scale:g}",
            "mask": self.mask if self.mask == "all pixels" else f"{self.mask} ({_RULES[self.rule]})",
            "normaliser": self.normaliser,
            "strides": ",".join(map(str, self.strides)),
        }


CHOICES = {
    "direction": DIRECTIONS,
    "norm": NORMS,
    "range": RANGES,
    "mask": MASKS,
    "normaliser": NORMALISERS,
}

_PRESETS = {
    "artistic-videos (Ruder)": {
        "direction": "previous to next",
        "norm": "mse",
        "range": "0-255",
        "normaliser": "all pixels",
        "rule": soft_reliability,
        "scale_override": 256.0,  # its preprocessing multiplies 0..1 by 256
    },
    "fast_blind_video_consistency (Lai)": {
        "direction": "next to previous",
        "norm": "mse",
        "range": "0-1",
        "normaliser": "counted pixels",
        "rule": lai_mask,
    },
    "Rerender_A_Video": {
        "direction": "previous to next",
        "norm": "mse",
        "range": "0-1",
        "normaliser": "all pixels",
        "rule": rerender_mask,
    },
    "ReReVST": {
        "direction": "previous to next",
        "norm": "rmse",
        "range": "0-1",
        "normaliser": "all pixels",
    },
}
_PRESETS["CAP-VSTNet"] = {**_PRESETS["ReReVST"], "method": "raft-large", "strides": (1, 10)}

PRESETS = ("custom", *_PRESETS)


def parse_strides(text: str) -> tuple[int, ...]:
    """ "1,4" to (1, 4). Anything else is rejected."""
    try:
        strides = tuple(dict.fromkeys(int(word) for word in text.replace(" ", ",").split(",") if word))
    except ValueError:
        strides = ()
    if not strides or min(strides) < 1 or max(strides) > 10_000:
        raise ValueError(f'the strides {text!r} cannot be read: give whole numbers such as "1" or "1,4"')
    return strides


def convention(
    preset: str = "custom",
    strides: str = "1",
    direction: str = DIRECTIONS[0],
    norm: str = NORMS[0],
    range: str = RANGES[0],
    mask: str = MASKS[0],
    normaliser: str = NORMALISERS[0],
) -> Convention:
    """A convention from a node's inputs. A preset overrides them, the strides only where it has its own."""
    if preset not in PRESETS:
        raise ValueError(f"the preset {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
    far = parse_strides(strides)
    if preset != "custom":
        return Convention(**{"strides": far, "preset": preset, **_PRESETS[preset]})
    return Convention(direction, norm, range, mask, normaliser, far)
