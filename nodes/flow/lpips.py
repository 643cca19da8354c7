"""ST-LPIPS between pictures, as a map: a perceptual distance that hardly counts shifts of a pixel.

    d(p) = sum over layers l of  upsampled( sum over channels c of w_lc (f_lc(a) - f_lc(b))^2 )(p)

f_l are VGG-16's features after each group of convolutions, divided by their norm over the channels at each
point; w_l are the weights that the metric's authors trained. The package stlpips-pytorch contains both.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from .. import host
from ..common.perceptual import INSTALLED, ShiftTolerantVGG, perceptual_path, read_weights

LAYERS = ("1_2", "2_2", "3_3", "4_3", "5_3")
SMALLEST = 32  # pixels: the network halves a picture four times


@cache
def network() -> tuple[host.Managed, list[Tensor]]:
    """VGG-16, and the weights w of each layer."""
    weights = read_weights(perceptual_path(INSTALLED))
    heads = [weights[f"lin{number}.model.1.weight"].float() for number in range(len(LAYERS))]
    return host.managed(ShiftTolerantVGG.of(weights)), heads


@torch.no_grad()
def distance(a: Tensor, b: Tensor) -> Tensor:
    """The distance of pictures [N, 3, H, W] in 0..1 at each pixel [N, H, W]."""
    (h, w), (managed, heads) = a.shape[-2:], network()
    both = pad(torch.cat([a, b]), (0, max(SMALLEST - w, 0), 0, max(SMALLEST - h, 0)), mode="replicate")
    features = managed.load().see(both.to(host.device()), LAYERS)
    total = 0.0
    for name, head in zip(LAYERS, heads, strict=True):
        x = features[name] / (features[name].norm(dim=1, keepdim=True) + 1e-10)
        apart = conv2d((x[: len(a)] - x[len(a) :]).square(), head.to(x.device))
        total = total + interpolate(apart, both.shape[-2:], mode="bilinear")
    return total[:, 0, :h, :w].cpu()
