"""Online training (section 3.4): one small network per prompt, on the picture or the clip's key frames.

One epoch is one Adam step on up to `FRAMES` key frames, in rotation. The learning rate is halved every 100
epochs, as in CLIPstyler.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import host
from . import curriculum
from .curriculum import Weights
from .judge import Judge
from .losses import (
    AlignmentLoss,
    ClassificationLoss,
    ConfidenceLoss,
    ContentLoss,
    LayoutLoss,
    PatchLoss,
    TemporalLoss,
    TotalVariationLoss,
)
from .motion import between, moved
from .network import AttnStyleNet
from .patches import parse_scales

FRAMES = 4  # key frames per step
HALVE = 100  # epochs
PATIENCE, LEAST = 30, 0.005  # stop when the loss falls by less than this share in this many epochs
CONTRAST = 25.5  # times this squared, the temporal loss is the error of a picture with this local contrast


@dataclass(frozen=True)
class Settings:
    """The inputs of the training node."""

    epochs: int = 150
    learning_rate: float = 5e-4
    weights: Weights = field(default_factory=Weights)
    patch_scales: str = "global 1, intermediate 1, local 1"
    patches: int = 64
    threshold: float = 0.7
    curriculum: bool = True
    early_stop: bool = True
    seed: int = 0
    others: tuple[str, ...] = ()  # more classes of the zero-shot classifier


@dataclass(frozen=True)
class EpochReport:
    """The progress after each epoch."""

    epoch: int
    losses: dict[str, float]
    weights: Weights
    picture: Tensor  # [3, H, W]: the first of this step's stylized key frames, detached


@dataclass(frozen=True)
class Result:
    network: AttnStyleNet
    losses: dict[str, list[float]]
    applied: list[Weights]


def frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a fixed network that autograd accepts, wherever the original was loaded."""
    return copy.deepcopy(module).to(device).requires_grad_(False).train(False)


def train(
    judge: Judge,
    images: Tensor,
    style_text: str,
    source_text: str,
    settings: Settings,
    *,
    perceptual: nn.Module | None = None,
    watch: Callable[[EpochReport], None] | None = None,
    device: torch.device | str = "cpu",
) -> Result:
    """Train on pictures [N, 3, H, W] in 0..1. `watch` is called after each epoch and may raise to cancel."""
    if min(images.shape[-2:]) < 16:
        raise ValueError(f"the pictures are {images.shape[-1]}x{images.shape[-2]}: at least 16x16 are needed")
    if style_text.strip().casefold() in (other.strip().casefold() for other in settings.others):
        raise ValueError(
            f"other_texts contains the style text {style_text.strip()!r}, so the judge could not tell them "
            "apart: remove that line"
        )
    # nodes run in inference mode, so everything that needs gradients is created or copied in this block
    with host.gradients(), judge.ready():
        content = images.detach().to(device, torch.float32, copy=True)
        session = _Session(judge, content, style_text, source_text, settings, perceptual)
        return session.run(watch)


class _Session:
    """One training: the network, its losses, and the draws."""

    def __init__(
        self,
        judge: Judge,
        content: Tensor,
        style_text: str,
        source_text: str,
        settings: Settings,
        perceptual: nn.Module | None,
    ):
        weights, self.settings, self.content = settings.weights, settings, content
        self.generator = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = AttnStyleNet()
        self.network = network.to(content.device, memory_format=torch.channels_last)
        aim = judge.aim(style_text, source_text, content, settings.others)
        scales = parse_scales(settings.patch_scales)
        # losses of the stylized pictures and the numbers of their key frames
        self.judged: dict[str, nn.Module] = {}
        if weights.classification:
            self.judged["classification"] = ClassificationLoss(aim)
        if weights.confidence:
            self.judged["confidence"] = ConfidenceLoss(aim)
        if weights.patches and scales:
            draw = {"patches": settings.patches, "threshold": settings.threshold, "generator": self.generator}
            self.judged["patches"] = PatchLoss(aim, judge.size, scales, **draw)
        if weights.content:
            if perceptual is None:
                raise ValueError(
                    "the content loss needs a perceptual network: choose one, or set content_weight to 0"
                )
            self.judged["content"] = ContentLoss(frozen(perceptual, content.device), content)
        if weights.layout:
            self.judged["layout"] = LayoutLoss(aim, content)
        self.alignment, self.tv, self.temporal = AlignmentLoss(), TotalVariationLoss(), TemporalLoss()
        self.motions = between(content.cpu()) if weights.temporal else []

    def run(self, watch: Callable[[EpochReport], None] | None) -> Result:
        settings = self.settings
        optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        halve = torch.optim.lr_scheduler.StepLR(optimizer, HALVE, 0.5)
        curves: dict[str, list[float]] = {}
        applied: list[Weights] = []
        patience = Patience()
        for epoch in range(settings.epochs):
            asked = settings.weights
            weights = curriculum.at(asked, epoch, settings.epochs) if settings.curriculum else asked
            styl, losses = self.losses(epoch)
            total = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
            check_finite(total, losses, epoch, settings.learning_rate)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            halve.step()
            values = {name: loss.item() for name, loss in losses.items()}
            for name, value in values.items():
                curves.setdefault(name, []).append(value)
            applied.append(weights)
            if watch:
                watch(EpochReport(epoch, values, weights, styl[0].detach()))
            if settings.early_stop and weights == asked and patience.ends(total.item()):
                break
        return Result(self.network.train(False).requires_grad_(False), curves, applied)

    def losses(self, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The stylized key frames of this epoch's step, and every loss that is switched on."""
        asked, n = self.settings.weights, len(self.content)
        frame = (torch.arange(min(n, FRAMES)) + epoch * FRAMES) % n
        frame = frame.to(self.content.device)
        shown = self.content[frame].contiguous(memory_format=torch.channels_last)
        styl, pairs = self.network.with_features(shown)
        losses = {name: loss(styl, frame) for name, loss in self.judged.items()}
        if asked.attention:
            losses["attention"] = self.alignment(pairs)
        if asked.tv:
            losses["tv"] = self.tv(styl)
        if asked.temporal:
            losses["temporal"] = self.flicker(shown, styl, frame.tolist())
        if not losses:
            raise ValueError("every loss weight is zero: there is nothing to train for")
        return styl, losses

    def flicker(self, shown: Tensor, styl: Tensor, frame: list[int]) -> Tensor:
        """The temporal loss on artificial neighbours and on key frames of this step that share a view."""
        neighbours, flow, valid = moved(shown, self.generator)
        parts = [self.temporal(self.network(neighbours), styl, flow, valid)]
        for motion in self.motions:
            if motion.a in frame and motion.b in frame:
                a, b = (frame.index(i) for i in (motion.a, motion.b))
                here = (t.to(styl.device) for t in (motion.flow, motion.valid))
                parts.append(self.temporal(styl[a : a + 1], styl[b : b + 1], *here))
        return torch.stack(parts).mean() * CONTRAST**2


def check_finite(total: Tensor, losses: dict[str, Tensor], epoch: int, rate: float) -> None:
    """Stop a training that has diverged: its pictures would all be black."""
    if torch.isfinite(total):
        return
    broken = ", ".join(name for name, loss in losses.items() if not torch.isfinite(loss)) or "their sum"
    raise ValueError(
        f"the training diverged at epoch {epoch + 1} ({broken} is not finite): "
        f"set learning_rate below {rate:g}, or lower the loss weights"
    )


class Patience:
    """Early stopping: when a loss's running mean has not fallen by `LEAST` in `PATIENCE` epochs."""

    def __init__(self) -> None:
        self.mean = self.best = float("inf")
        self.waited = 0

    def ends(self, loss: float) -> bool:
        self.mean = loss if self.mean == float("inf") else 0.9 * self.mean + 0.1 * loss
        self.waited += 1
        if self.mean < self.best * (1 - LEAST):
            self.best, self.waited = self.mean, 0
        return self.waited >= PATIENCE
