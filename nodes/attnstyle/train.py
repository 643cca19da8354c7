"""Online training (section 3.4): one small network per prompt, on the picture or the clip's key frames.

One epoch is one Adam step on up to `FRAMES` key frames, in rotation. The learning rate is halved every 100
epochs, as in CLIPstyler.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import host
from . import curriculum
from .curriculum import Balance, Weights
from .judge import Judge
from .losses import (
    NETWORKS_OWN,
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
from .prompts import OURS

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
    templates: str = OURS
    content_layers: str = NETWORKS_OWN


@dataclass(frozen=True)
class EpochReport:
    """The progress after each epoch."""

    epoch: int
    losses: dict[str, float]
    shares: dict[str, float]
    picture: Tensor  # [3, H, W]: the first of this step's stylized key frames, detached


@dataclass(frozen=True)
class Result:
    network: AttnStyleNet
    losses: dict[str, list[float]]
    shares: dict[str, list[float]]  # each loss's part of the summed gradient norms


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
        self.aim = judge.aim(style_text, source_text, content, settings.others, settings.templates)
        scales = parse_scales(settings.patch_scales)
        # losses of whole pictures by the judge, which share its passes; losses of patches; other losses
        self.sharing: dict[str, nn.Module] = {}
        if weights.classification:
            self.sharing["classification"] = ClassificationLoss(self.aim)
        if weights.confidence:
            self.sharing["confidence"] = ConfidenceLoss(self.aim)
        if weights.layout:
            self.sharing["layout"] = LayoutLoss(self.aim, content)
        self.patches, self.others = None, {}
        if weights.patches and scales:
            draw = {"patches": settings.patches, "threshold": settings.threshold, "generator": self.generator}
            self.patches = PatchLoss(self.aim, judge.size, scales, **draw)
        if weights.content:
            if perceptual is None:
                raise ValueError(
                    "the content loss needs a perceptual network: choose one, or set content_weight to 0"
                )
            self.others["content"] = ContentLoss(
                frozen(perceptual, content.device), content, settings.content_layers
            )
        if weights.tv:
            self.others["tv"] = TotalVariationLoss()
        self.alignment, self.temporal, self.balance = AlignmentLoss(), TemporalLoss(), Balance()
        self.motions = between(content.cpu()) if weights.temporal else []
        if not weights.shares():
            raise ValueError("every loss weight is zero: there is nothing to train for")

    def run(self, watch: Callable[[EpochReport], None] | None) -> Result:
        settings, parameters = self.settings, list(self.network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
        halve = torch.optim.lr_scheduler.StepLR(optimizer, HALVE, 0.5)
        curves: dict[str, list[float]] = {}
        parts: dict[str, list[float]] = {}
        patience, asked, epochs = Patience(), settings.weights, settings.epochs
        for epoch in range(epochs):
            r = curriculum.ramp(epoch, epochs) if settings.curriculum else 1.0
            shares = curriculum.at(asked.shares(), r)
            picture, losses, gradients = self.step(epoch, parameters)
            norms = {name: curriculum.norm(gradient) for name, gradient in gradients.items()}
            factors = self.balance.factors(norms, shares, r)
            for i, parameter in enumerate(parameters):
                each = [factors[name] * g[i] for name, g in gradients.items() if g[i] is not None]
                parameter.grad = sum(each) if each else None
            pulls = {name: factors[name] * norms[name] for name in norms}
            total = sum(getattr(asked, name) * loss for name, loss in losses.items())
            check_finite(total, losses, epoch, settings.learning_rate)
            optimizer.step()
            halve.step()
            whole = sum(pulls.values()) or 1.0
            for name, loss in losses.items():
                curves.setdefault(name, []).append(loss)
                parts.setdefault(name, []).append(pulls[name] / whole)
            if watch:
                watch(EpochReport(epoch, losses, shares, picture))
            if settings.early_stop and r == 1 and patience.ends(total):
                break
        return Result(self.network.train(False).requires_grad_(False), curves, parts)

    def step(
        self, epoch: int, parameters: list[nn.Parameter]
    ) -> tuple[Tensor, dict[str, float], dict[str, Sequence[Tensor | None]]]:
        """The first stylized picture, the losses, and the gradient of each with respect to the weights.

        Every loss but the alignment is first differentiated with respect to the pictures, one after the
        other, so that memory holds the graph of one loss at a time."""
        n, weights = len(self.content), self.settings.weights
        frame = (torch.arange(min(n, FRAMES)) + epoch * FRAMES) % n
        shown = self.content[frame.to(self.content.device)].contiguous(memory_format=torch.channels_last)
        inputs, motion = shown, None
        if weights.temporal:
            neighbours, *motion = moved(shown, self.generator)
            inputs = torch.cat([shown, neighbours])
        drawn, pairs = self.network.with_features(inputs)
        pictures = drawn.detach().requires_grad_()
        values, at_pictures = {}, {}
        for name, part in self.terms(pictures, frame.to(pictures.device), motion):
            (gradient,) = torch.autograd.grad(part, pictures, retain_graph=name in self.sharing)
            values[name] = values.get(name, 0.0) + part.item()
            at_pictures[name] = at_pictures.get(name, 0.0) + gradient
            del part, gradient  # their graph, before the next one is built
        onward = {"retain_graph": True, "allow_unused": True}
        gradients = {
            name: torch.autograd.grad(drawn, parameters, gradient, **onward)
            for name, gradient in at_pictures.items()
        }
        if weights.attention:
            loss = self.alignment([(f[: len(shown)], a[: len(shown)]) for f, a in pairs])
            values["attention"] = loss.item()
            gradients["attention"] = torch.autograd.grad(loss, parameters, allow_unused=True)
        return pictures[0].detach(), values, gradients

    def terms(
        self, pictures: Tensor, frame: Tensor, motion: list[Tensor] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """The losses of the stylized pictures, which are followed by their stylized neighbours; large ones
        in parts."""
        styl = pictures[: len(frame)]
        if self.sharing:
            with self.aim.sharing(styl):
                for name, loss in self.sharing.items():
                    yield name, loss(styl, frame)
        for part in self.patches.parts(styl, frame) if self.patches else ():
            yield "patches", part
        for name, loss in self.others.items():
            yield name, loss(styl, frame)
        if motion:
            yield "temporal", self.flicker(styl, pictures[len(frame) :], *motion, frame.tolist())

    def flicker(
        self, styl: Tensor, neighbours: Tensor, flow: Tensor, valid: Tensor, frame: list[int]
    ) -> Tensor:
        """The temporal loss on artificial neighbours and on key frames of this step that share a view."""
        parts = [self.temporal(neighbours, styl, flow, valid)]
        for motion in self.motions:
            if motion.a in frame and motion.b in frame:
                a, b = (frame.index(i) for i in (motion.a, motion.b))
                here = (t.to(styl.device) for t in (motion.flow, motion.valid))
                parts.append(self.temporal(styl[a : a + 1], styl[b : b + 1], *here))
        return torch.stack(parts).mean() * CONTRAST**2


def check_finite(total: float, losses: dict[str, float], epoch: int, rate: float) -> None:
    """Stop a training that has diverged: its pictures would all be black."""
    if math.isfinite(total):
        return
    broken = ", ".join(name for name, loss in losses.items() if not math.isfinite(loss)) or "their sum"
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
