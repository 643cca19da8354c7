"""Shared by the trainings of tiny_vae.py and tiny_denoiser.py: pictures, an optimizer, a clock."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from reelbrush.nodes.common import pictures

log = logging.getLogger("tiny_denoiser")


@contextmanager
def fast_convolutions() -> Iterator[None]:
    """cuDNN searches the fastest convolution per shape. Worth it only for a few shapes in many steps."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


# -- pictures --------------------------------------------------------------------------------------


def read_pictures(folder: Path, limit: int | None = None, side: int = 128) -> dict[str, Tensor]:
    """uint8 [H, W, 3] by file name. Pictures with a side below `side` are left out."""
    paths = sorted(folder.glob("*.jp*g"))[:limit]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda path: (pictures.read(path)[0] * 255).round().byte(), paths))
    return {p.name: i for p, i in zip(paths, images, strict=True) if min(i.shape[:2]) >= side}


class Maps:
    """Maps [h, w, c] of many sizes in one buffer on the device. Crops are gathered there."""

    def __init__(self, maps: Sequence[Tensor], weights: Sequence[float], device: torch.device):
        self.values = torch.cat([m.flatten(0, 1).to(device) for m in maps])
        self.shape = torch.tensor([m.shape[:2] for m in maps], device=device)
        area = self.shape.prod(1)
        self.start = area.cumsum(0) - area
        self.weights, self.tables = torch.tensor(weights, device=device).double(), {}

    def crops(self, count: int, size: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """[count, size, size, c], and the number of each crop's map."""
        if size not in self.tables:
            fitting = self.weights * (self.shape.amin(1) >= size)
            if not fitting.any():
                raise ValueError(f"no picture is {size} points wide and high")
            self.tables[size] = fitting.cumsum(0)
        table, device = self.tables[size], self.values.device
        chance = torch.rand(3, count, generator=g, device=device, dtype=torch.float64)
        which = torch.searchsorted(table, chance[0] * table[-1], right=True).clamp(max=len(table) - 1)
        height, width = self.shape[which].unbind(1)
        top, left = (chance[1] * (height - size + 1)).long(), (chance[2] * (width - size + 1)).long()
        along = torch.arange(size, device=device)
        rows = (top[:, None] + along) * width[:, None]
        index = self.start[which][:, None, None] + rows[:, :, None] + (left[:, None] + along)[:, None, :]
        return self.values[index], which


# -- optimizer -------------------------------------------------------------------------------------


def orthogonal(m: Tensor) -> Tensor:
    """About the nearest orthogonal matrices to [n, rows, columns], by five Newton-Schulz iterations."""
    wide = m.shape[1] <= m.shape[2]
    x = m if wide else m.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


class Group:
    """Parameters as one float32 tensor: [n, rows, columns] for Muon, flat for Adam."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], muon: bool, rate: float):
        self.names, self.params = [n for n, _ in named], [p for _, p in named]
        self.muon, self.rate, self.steps = muon, rate, 0
        flat = [p.detach().float().contiguous().flatten() for p in self.params]
        self.master = torch.cat(flat)
        if muon:
            self.master = self.master.view(len(flat), self.params[0].shape[0], -1)
        self.smooth, self.grad = self.master.clone(), torch.zeros_like(self.master)
        self.first, self.second = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.views, self.grads = self._split(self.master), self._split(self.grad)

    def _split(self, whole: Tensor) -> list[Tensor]:
        parts = whole.view(-1).split([p.numel() for p in self.params])
        return [part.view(p.shape) for part, p in zip(parts, self.params, strict=True)]

    def smoothed(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self._split(self.smooth), strict=True))

    def step(self, factor: float, share: float) -> None:
        torch._foreach_copy_(self.grads, [p.grad for p in self.params])
        for p in self.params:
            p.grad = None
        self.steps += 1
        lr = self.rate * factor
        if self.muon:
            self.first.lerp_(self.grad, 0.05)
            update = orthogonal(self.grad.lerp(self.first, 0.95))
            scale = max(1.0, self.master.shape[1] / self.master.shape[2]) ** 0.5
            self.master.mul_(1 - lr * 0.02).add_(update, alpha=-lr * scale)
        else:
            self.first.lerp_(self.grad, 0.1)
            self.second.mul_(0.98).addcmul_(self.grad, self.grad, value=0.02)
            denominator = (self.second / (1 - 0.98**self.steps)).sqrt_().add_(1e-8)
            self.master.addcdiv_(self.first, denominator, value=-lr / (1 - 0.9**self.steps))
        self.smooth.lerp_(self.master, share)
        torch._foreach_copy_(self.params, self.views)


class Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices and Adam for the rest, on float32 copies of the weights.

    The network itself may be in bfloat16. `smoothed()` are the weights averaged over the latest steps.
    """

    def __init__(self, network: nn.Module, hidden: Callable[[str], bool], muon: float, adam: float):
        shapes: dict[tuple, list] = {}
        for name, p in network.named_parameters():
            key = (p.shape[0], p[0].numel()) if p.ndim > 1 and hidden(name) else ()
            shapes.setdefault(key, []).append((name, p))
        self.groups = [Group(named, bool(key), muon if key else adam) for key, named in shapes.items()]
        self.steps = 0
        self.good = [g.master.clone() for g in self.groups]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        share = 1 / (10 + 0.04 * self.steps)
        for group in self.groups:
            group.step(factor, share)
        self.steps += 1

    def smoothed(self) -> dict[str, Tensor]:
        return {k: v for group in self.groups for k, v in group.smoothed().items()}

    @torch.no_grad()
    def check(self, good: bool) -> None:
        """Remember a good state. After a divergence return to the last one, at half the learning rate."""
        if good:
            self.good = [g.master.clone() for g in self.groups]
            return
        log.warning("the loss diverged: back to the last good weights, at half the rate")
        for group, master in zip(self.groups, self.good, strict=True):
            group.master.copy_(master)
            group.smooth.copy_(master)
            for momentum in (group.first, group.second):
                momentum.zero_()
            torch._foreach_copy_(group.params, group.views)
            group.rate, group.steps = group.rate / 2, 0


class Clock:
    """The share of the time that is spent, the learning rate for it, and when to report or save."""

    def __init__(self, minutes: float):
        self.begin = time.monotonic()
        self.seconds, self.last = 60 * minutes, {}

    @property
    def spent(self) -> float:
        return (time.monotonic() - self.begin) / self.seconds

    def rate(self, step: int) -> float:
        return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - self.spent) / 0.6))

    def due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self.last.setdefault(what, self.begin) < seconds:
            return False
        self.last[what] = now
        return True
