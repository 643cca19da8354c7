"""AttnStyle's losses (section 3.3), one small module each.

    L_total = λ_cls L_cls + λ_conf L_conf + λ_ms Σ_s λ^(s) L_cls^(s) + λ_att L_att + λ_con L_con
              + λ_layout L_layout + λ_tv L_tv + λ_temp L_temp

The λ are shares of the gradient, see curriculum.py. The paper's global loss "measures the classifier's
confidence on the full image". CLIPstyler's global loss measures only the direction of the change, and is
small also for a small change. Both are here: L_cls is the direction, L_conf the confidence.

Squared norms are means over elements, so that a weight means the same at every size. L_tv is CLIPstyler's
(the weight 2e-3 is for this definition). L_temp is ours, for clips. The paper names a textual layout
map but does not define it; `LayoutLoss` gives our definition.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, mse_loss, pad

from ...kernels.flow import warp
from .judge import Aim
from .network import FeaturePair
from .patches import SIDES, cut, share_out

WINDOW = 7
NETWORKS_OWN, CLIPSTYLERS = "of the network", "CLIPstyler (conv4_2, conv5_2)"
# CLIPstyler reads the outputs of convolutions that the next ReLU has already overwritten.
CONTENT_LAYERS = {NETWORKS_OWN: (), CLIPSTYLERS: ("relu4_2", "relu5_2")}
Perceptual = Callable[[Tensor], Mapping[str, Tensor]]


class ClassificationLoss(nn.Module):
    """L_cls: the judge's loss on the whole pictures."""

    def __init__(self, aim: Aim):
        super().__init__()
        self.aim = aim

    def forward(self, styl: Tensor, frame: Tensor) -> Tensor:
        """`frame` [N]: the number of each stylized picture's content picture."""
        return self.aim.loss(styl, frame).mean()


class ConfidenceLoss(nn.Module):
    """L_conf = -log P(T | I_styl) / k: small if the zero-shot classifier is confident of the style text.

    Its other classes are the source text and `others`. k is explained at `Aim.doubt`.
    """

    def __init__(self, aim: Aim):
        super().__init__()
        self.aim = aim

    def forward(self, styl: Tensor, frame: Tensor) -> Tensor:
        return self.aim.doubt(styl).mean()


def reject(losses: Tensor, threshold: float) -> Tensor:
    """Set losses below the threshold to zero: such a patch has enough style."""
    return torch.where(losses < threshold, torch.zeros_like(losses), losses)


class PatchLoss(nn.Module):
    """Σ_s λ^(s) L_cls^(s) / Σ_s λ^(s): the mean over augmented patches of each scale, after `reject`."""

    AT_ONCE = 4  # patches per pass through the judge: their graphs take most of a training's memory

    def __init__(
        self,
        aim: Aim,
        size: int,
        scales: Mapping[str, float],
        *,
        patches: int = 64,
        threshold: float = 0.7,
        generator: torch.Generator,
    ):
        super().__init__()
        self.aim, self.size, self.threshold, self.generator = aim, size, threshold, generator
        self.scales = dict(scales)
        self.counts = share_out(patches, self.scales)

    def parts(self, styl: Tensor, frame: Tensor) -> Iterator[Tensor]:
        """The terms of the loss, a few patches each."""
        for scale, count in self.counts.items():
            weight = self.scales[scale] / sum(self.scales.values()) / count
            for begin in range(0, count, self.AT_ONCE):
                some = min(self.AT_ONCE, count - begin)
                drawn = cut(styl, some, SIDES[scale], self.size, self.generator)
                losses = self.aim.loss(drawn.images, frame[drawn.frame])
                yield weight * reject(losses, self.threshold).sum()

    def forward(self, styl: Tensor, frame: Tensor) -> Tensor:
        return torch.stack([*self.parts(styl, frame)]).sum()


class AlignmentLoss(nn.Module):
    """L_att = ||F_styl - A(F_cont)||^2, averaged over the network's attention layers."""

    def forward(self, pairs: list[FeaturePair]) -> Tensor:
        return torch.stack([mse_loss(f_styl, aligned) for f_styl, aligned in pairs]).mean()


class ContentLoss(nn.Module):
    """L_con = Σ_l ||φ_l(I_styl) - φ_l(I_cont)||^2 over the layers in the network's attribute `content`, or
    those of `CONTENT_LAYERS`.

    Without such an attribute, these are its two deepest layers. Each layer is divided by its root mean
    square on the content pictures, so that a weight means the same with every network (CLIPstyler's 150 was
    chosen for VGG-19).
    """

    def __init__(self, perceptual: Perceptual, content: Tensor, layers: str = NETWORKS_OWN):
        super().__init__()
        self.perceptual = perceptual
        with torch.no_grad():
            features = dict(perceptual(content))
        names = CONTENT_LAYERS[layers] or getattr(perceptual, "content", tuple(features)[-2:])
        if missing := [name for name in names if name not in features]:
            raise ValueError(
                f"the content layers {layers} need a VGG, but the perceptual network "
                f"({type(perceptual).__name__}) has no layer {missing[0]}: choose torchvision's VGG-19"
            )
        self.content = {name: features[name] for name in names}
        self.scale = {k: f.square().mean().sqrt().clamp_min(1e-6) for k, f in self.content.items()}

    def forward(self, styl: Tensor, frame: Tensor) -> Tensor:
        features = self.perceptual(styl)
        return sum(
            mse_loss(features[k] / self.scale[k], f[frame] / self.scale[k]) for k, f in self.content.items()
        )


class LayoutLoss(nn.Module):
    """L_layout: keeps *where* each text fits better or worse; *how well* it fits may change.

    With m_k(I)_p the similarity of patch p of picture I to text k (style text and source text), and
    z the map minus its mean over the patches, divided by its deviation + 0.01:

        L_layout = mean over k and p of (z_k(I_styl)_p - z_k(I_cont)_p)^2
    """

    FLAT = 0.01  # added to the deviation, so that a flat map gives 0

    def __init__(self, aim: Aim, content: Tensor):
        super().__init__()
        self.aim = aim
        with torch.no_grad():
            self.content = self.relief(aim.layout(content))

    def relief(self, maps: Tensor) -> Tensor:
        centered = maps - maps.mean(-1, keepdim=True)
        # the root of a mean square has no gradient at a flat map: keep it away from zero
        deviation = (centered.square().mean(-1, keepdim=True) + 1e-8).sqrt()
        return centered / (deviation + self.FLAT)

    def forward(self, styl: Tensor, frame: Tensor) -> Tensor:
        return mse_loss(self.relief(self.aim.layout(styl)), self.content[frame])


class TotalVariationLoss(nn.Module):
    """L_tv: the norms of the differences in the four directions, summed; the mean over pictures."""

    def forward(self, styl: Tensor, frame: Tensor | None = None) -> Tensor:
        x = styl
        differences = (
            x[..., 1:] - x[..., :-1],
            x[..., 1:, :] - x[..., :-1, :],
            x[..., 1:, :-1] - x[..., :-1, 1:],
            x[..., :-1, :-1] - x[..., 1:, 1:],
        )
        # 1e-12: the root has no gradient where the picture is flat
        return sum((d.square().sum((1, 2, 3)) + 1e-12).sqrt() for d in differences).mean()


def local_mean(images: Tensor) -> Tensor:
    """The mean of the `WINDOW` x `WINDOW` pixels around each pixel."""
    return avg_pool2d(pad(images, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, 1)


def local_variance(images: Tensor) -> Tensor:
    """[N, H, W]: the variance of the `WINDOW` x `WINDOW` pixels around each pixel, averaged over channels."""
    centered = images - images.mean((2, 3), keepdim=True)
    return (local_mean(centered.square()) - local_mean(centered).square()).clamp_min(0).mean(1)


class TemporalLoss(nn.Module):
    """L_temp = Σ m (var(d) / w + t / (w + t / 2)) / Σ m, t = |mean(d)|^2, w = v + FLAT.

    d(p) = f(x_b)(p + flow(p)) - f(x_a)(p) is the difference of two stylized frames along the motion. Its
    local mean is the difference in tone, its local variance the difference in texture. `flow` [P, 2, H, W]
    leads from frame a to frame b (kernels/flow.py), `valid` [P, H, W] is m, and v is the mean
    `local_variance` of both frames.

    Without the division by w, training would reduce the loss by erasing texture. w is local: a global w would
    erase texture where something moves. w uses both frames: otherwise grain in one frame would raise its own
    w. The tone term is at most 2, the cost of independent grain: otherwise a flickering brightness would
    cost more than grain, and training would add grain.
    """

    FLAT = (4 / 255) ** 2  # below, contrast is hardly seen

    def forward(self, styl_a: Tensor, styl_b: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
        found = warp(styl_b, flow)
        apart = found - styl_a
        w = (local_variance(styl_a) + local_variance(found)) / 2 + self.FLAT
        tone = local_mean(apart).square().mean(1)
        m = valid.to(found)
        return (m * (local_variance(apart) / w + tone / (w + tone / 2))).sum() / m.sum().clamp_min(1.0)
