"""Backward warping, forward-backward validity, and the warping error.

A flow f [N, 2, H, W] is in pixels, (x, y), on the grid of the frame where it starts: the point p of frame A
is at p + f(p) in frame B. A frame is warped *backwards*. B on the grid of A is

    warped(p) = B(p + f(p))                     bilinear; outside the frame, edge pixels repeat.

A pixel of A is valid (Ruder et al. 2016, artistic-videos) unless, with b the flow from B to A,

    |f + b(p + f)|^2 >= relative (|f|^2 + |b(p + f)|^2) + absolute      flow and backward flow disagree,
    p + f lies outside [0, W-1] x [0, H-1],                             the point left the frame,
    |grad f|^2 > 0.01 |f|^2 + 0.002                                     the point is on a motion edge,

with central differences; at the borders, edge pixels repeat. Departure: artistic-videos also rejects p + f on
the last row or column, which would make the border of a static picture invalid.

Strategy: `grid_sample` is the fast path. Its normalized coordinates are rounded, so a whole-pixel flow would
not copy pixels exactly. Where the flow is whole in both directions, the pixel is copied instead.
`warp_reference` reads the four corners by their indices and is exact everywhere.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

EDGE_RELATIVE, EDGE_ABSOLUTE = 0.01, 0.002

NORMS = ("mse", "rmse", "l1")


def _check(images: Tensor, flow: Tensor) -> None:
    if flow.ndim != 4 or flow.shape[1] != 2 or images.ndim != 4:
        raise ValueError(
            "warping needs images [N, C, H, W] and a flow [N, 2, H, W], "
            f"not {tuple(images.shape)} and {tuple(flow.shape)}"
        )
    if len(images) != len(flow) or images.shape[-2:] != flow.shape[-2:]:
        raise ValueError(
            f"{len(images)} images of {images.shape[-1]}x{images.shape[-2]} and {len(flow)} flows of "
            f"{flow.shape[-1]}x{flow.shape[-2]} do not fit: resize the flow first"
        )


def targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel goes: x and y of p + f(p), each [N, H, W]."""
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(h, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    return x, y


def inside(flow: Tensor) -> Tensor:
    """Where p + f(p) lies on the frame [N, H, W]."""
    h, w = flow.shape[-2:]
    x, y = targets(flow)
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


def _take(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """images[n, :, y, x] for whole y, x [N, H, W]."""
    n, c, h, w = images.shape
    index = (y * w + x).flatten(1)[:, None].expand(-1, c, -1)
    return images.flatten(2).gather(2, index).view(n, c, h, w)


def warp_reference(images: Tensor, flow: Tensor) -> Tensor:
    """images(p + f(p)) from the four corners, exact for a whole-pixel flow."""
    _check(images, flow)
    h, w = flow.shape[-2:]
    x, y = targets(flow)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    left, top = x.floor(), y.floor()
    a, b = (x - left)[:, None].to(images.dtype), (y - top)[:, None].to(images.dtype)
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=w - 1), (top + 1).clamp(max=h - 1)
    upper = _take(images, top, left).lerp(_take(images, top, right), a)
    lower = _take(images, bottom, left).lerp(_take(images, bottom, right), a)
    return upper.lerp(lower, b)


def warp(images: Tensor, flow: Tensor, *, mode: str = "bilinear") -> Tensor:
    """images(p + f(p)) [N, C, H, W]; `mode` "bicubic" keeps more detail and may overshoot."""
    _check(images, flow)
    h, w = flow.shape[-2:]
    x, y = targets(flow)
    grid = torch.stack([x * (2 / max(w - 1, 1)) - 1, y * (2 / max(h - 1, 1)) - 1], dim=-1).to(images.dtype)
    drawn = grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=True)
    whole = (flow == flow.round()).all(dim=1)
    if not whole.any():
        return drawn
    copied = _take(images, y.round().clamp(0, h - 1).long(), x.round().clamp(0, w - 1).long())
    return torch.where(whole[:, None], copied, drawn)


def gradient_energy(flow: Tensor) -> Tensor:
    """|grad f|^2 [N, H, W]: squared central differences of both components; edge pixels repeat."""
    padded = pad(flow, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (dx.square() + dy.square()).sum(dim=1)


def energy(flow: Tensor) -> Tensor:
    """|f|^2 [N, H, W]."""
    return flow.square().sum(dim=1)


def motion_edges(flow: Tensor) -> Tensor:
    """Where the flow changes faster than artistic-videos allows [N, H, W]."""
    return gradient_energy(flow) > EDGE_RELATIVE * energy(flow) + EDGE_ABSOLUTE


def returns(flow: Tensor, back: Tensor, *, absolute: float = 0.5, relative: float = 0.01) -> Tensor:
    """Where going along `flow` and back along `back` ends near the start [N, H, W]."""
    there = warp(back, flow)
    return energy(flow + there) < relative * (energy(flow) + energy(there)) + absolute


def validity(flow: Tensor, back: Tensor, *, absolute: float = 0.5, relative: float = 0.01) -> Tensor:
    """The pixels of a frame that can be trusted to be found along `flow` [N, H, W], bool."""
    found = returns(flow, back, absolute=absolute, relative=relative)
    return found & inside(flow) & ~motion_edges(flow)


def invert(flow: Tensor) -> tuple[Tensor, Tensor]:
    """The reverse flow [N, 2, H, W] of a flow, and where it is known [N, H, W].

    Each pixel moves to the nearest pixel of the other frame. If several reach the same one, the fastest is
    taken, which is probably nearest to the camera. Pixels that none reaches were hidden: unknown, and 0.
    """
    n, _, h, w = flow.shape
    x, y = (t.round().long() for t in targets(flow))
    hits = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    spot = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).flatten(1)
    speed = torch.where(hits, energy(flow), -1.0).flatten(1)
    fastest = torch.full_like(speed, -1.0).scatter_reduce(1, spot, speed, "amax")
    wins = (hits.flatten(1) & (speed >= fastest.gather(1, spot))).to(flow.dtype)
    count = torch.zeros_like(speed).scatter_add(1, spot, wins)
    landed = [torch.zeros_like(speed).scatter_add(1, spot, -flow[:, i].flatten(1) * wins) for i in (0, 1)]
    back = torch.stack(landed, dim=1) / count.clamp(min=1)[:, None]
    return back.view(n, 2, h, w), (count > 0).view(n, h, w)


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    smaller = height < maps.shape[-2] or width < maps.shape[-1]
    return interpolate(maps, (height, width), mode="bilinear", align_corners=False, antialias=smaller)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """The same motion at another size: resampled, and its vectors scaled."""
    h, w = flow.shape[-2:]
    if (h, w) == (height, width):
        return flow
    scale = flow.new_tensor([width / w, height / h]).view(1, 2, 1, 1)
    return _resize(flow, height, width) * scale


def resize_weights(weights: Tensor, height: int, width: int) -> Tensor:
    """Masks [N, H, W] at another size. A pixel is valid if all its sources are; weights are averaged."""
    if weights.shape[-2:] == (height, width):
        return weights
    resized = _resize(weights.to(torch.float32)[:, None], height, width)[:, 0]
    return resized > 1 - 1e-4 if weights.dtype == torch.bool else resized


def difference(warped: Tensor, target: Tensor, *, norm: str = "mse", scale: float = 255.0) -> Tensor:
    """Per-pixel error [N, H, W], averaged over the channels: squared ("mse", "rmse") or absolute ("l1")."""
    if norm not in NORMS:
        raise ValueError(f"the norm {norm!r} is none of {', '.join(NORMS)}")
    d = (warped - target) * scale
    return (d.abs() if norm == "l1" else d.square()).mean(dim=1)


def warping_error(
    per_pixel: Tensor, weights: Tensor | None = None, *, norm: str = "mse", over_all: bool = False
) -> Tensor:
    """One number per pair [N] from `difference`: weighted sum over the sum of weights, or over all pixels.

    Without any valid pixel the former is 0/0, hence NaN.
    """
    values = per_pixel if weights is None else per_pixel * weights
    total = values.sum(dim=(1, 2), dtype=torch.float64)
    pixels = per_pixel.shape[-1] * per_pixel.shape[-2]
    if weights is None or over_all:
        error = total / pixels
    else:
        error = total / weights.sum(dim=(1, 2), dtype=torch.float64)
    return error.sqrt() if norm == "rmse" else error
