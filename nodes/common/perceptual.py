"""Perceptual networks: feature maps of image classifiers, for losses. The pack contains no weights for them.

A file is detected by its keys: SqueezeNet v1.0 (Caffe's names), torchvision's SqueezeNet 1.0 and 1.1, VGG-16
and VGG-19, the normalized VGG-19 of AdaIN (`vgg_normalised.pth`), and the VGG-16 of the ST-LPIPS metric,
which the Python package stlpips-pytorch contains. All take pictures [N, 3, H, W] in 0..1 and return a dict of
feature maps by layer name, shallow to deep. `style` names the layers for eq. 16 of StyA2K, `match` those for
eq. 17, `content` those for structure, `gram` those for Gram matrices. `sizes` are the points a side of eq.
17's regions in the official code; the numbers of regions a side in the paper are the same numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .. import host
from .weights import check_finite

KIND, INSTALLED = "perceptual", "ST-LPIPS VGG-16"
CAFFE = ((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)  # mean and deviation of the pictures
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ... also of ST-LPIPS
VGG_GROUPS = {16: (2, 2, 3, 3), 19: (2, 2, 4, 4)}  # convolutions between the pools, before ReLU5_1
WIDTHS = (64, 128, 256, 512, 512)


class Perceptual(nn.Module):
    """A frozen feature extractor."""

    style: tuple[str, ...]
    match: tuple[str, ...]
    content: tuple[str, ...]
    weights: tuple[float, ...]
    gram: tuple[str, ...]
    sizes: tuple[int, ...]

    def __init__(self, mean_std: tuple[tuple[float, ...], tuple[float, ...]]):
        super().__init__()
        for name, values in zip(("mean", "std"), mean_std, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def freeze(self) -> "Perceptual":
        return self.requires_grad_(False).train(False)


class SqueezeNet(Perceptual):
    """SqueezeNet up to fire8. Version 1.0 needs 0.6 GFLOP for a 192x192 picture, 1.1 a third of it: fast
    enough for training on a CPU."""

    style = ("conv1", "fire3", "fire6", "fire8")
    match = ("fire3", "fire5", "fire8")
    content = ("fire3", "fire6", "fire8")
    weights = (0.5, 1.0, 1.0)
    gram = ("conv1", "fire3", "fire5")
    sizes = (8, 4, 4)
    squeezed = (16, 16, 32, 32, 48, 48, 64)  # channels between the convolutions of fire2 ... fire8

    def __init__(self, mean_std=CAFFE, pools: tuple[int, ...] = (1, 4)):
        super().__init__(mean_std)
        self.pools = pools  # the fires before which a map is halved: (1, 4) is version 1.0, (1, 3, 5) is 1.1
        self.conv1 = nn.Conv2d(3, 96, 7, 2) if pools == (1, 4) else nn.Conv2d(3, 64, 3, 2)
        cin = self.conv1.out_channels
        for i, squeeze in enumerate(self.squeezed, 2):
            wide = 4 * squeeze
            one, three = nn.Conv2d(squeeze, wide, 1), nn.Conv2d(squeeze, wide, 3, padding=1)
            self.add_module(f"fire{i}", nn.ModuleList([nn.Conv2d(cin, squeeze, 1), one, three]))
            cin = 2 * wide

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "SqueezeNet":
        caffe = "fire2/conv1x1_1.weight" in weights
        old = caffe or weights["features.0.weight"].shape[0] == 96
        net = cls(CAFFE if caffe else TORCHVISION, (1, 4) if old else (1, 3, 5))
        places = (3, 4, 5, 7, 8, 9, 10) if old else (3, 4, 6, 7, 9, 10, 11)
        parts = ("conv1x1_1", "conv1x1_2", "conv3x3_2") if caffe else ("squeeze", "expand1x1", "expand3x3")
        layers = [f"fire{i}/" if caffe else f"features.{n}." for i, n in enumerate(places, 2)]
        names = ["conv1" if caffe else "features.0", *(f + part for f in layers for part in parts)]
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        _fill(convs, names, weights)
        if caffe:  # it reads blue, green, red
            net.conv1.weight = nn.Parameter(net.conv1.weight.detach().flip(1))
        return net.freeze()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = functional.relu(self.conv1((images - self.mean) / self.std))
        features = {"conv1": x}
        for i in range(2, 9):
            if i - 1 in self.pools:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            squeeze, one, three = getattr(self, f"fire{i}")
            y = functional.relu(squeeze(x))
            x = features[f"fire{i}"] = functional.relu(torch.cat([one(y), three(y)], 1))
        return features


class VGG(Perceptual):
    """VGG-16 or VGG-19 up to ReLU5_2, reflection-padded; of torchvision, or AdaIN's normalized VGG-19."""

    style = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
    match = ("relu2_1", "relu3_1", "relu4_1", "relu5_1")
    content = ("relu4_1", "relu5_1")
    weights = (1.0, 1.0)
    gram = ("relu1_1", "relu2_1", "relu3_1")
    sizes = (16, 8, 8, 4)

    def __init__(self, normalised: bool = False, depth: int = 19, last: int = 1):
        super().__init__(TORCHVISION)
        self.depth = depth
        self.first = nn.Conv2d(3, 3, 1) if normalised else None
        self.names = vgg_layers(depth, last)
        widths = [3, *(WIDTHS[int(name[4]) - 1] for name in self.names)]
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3) for pair in pairwise(widths))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "VGG":
        normalised = "features.0.weight" not in weights
        depth = 19 if normalised or "features.34.weight" in weights else 16
        net = cls(normalised, depth, last=2)
        names = list(conv_names(net.names, normalised))
        if f"{names[-1]}.weight" not in weights:  # a file that ends at ReLU5_1
            names.pop()
            net.until("relu5_1")
        if normalised:
            _fill([net.first], ["0"], weights)
        _fill(net.convs, names, weights)
        return net.freeze()

    def until(self, name: str) -> "VGG":
        """The same network without the layers after `name`."""
        del self.convs[self.names.index(name) + 1 :]
        self.names = self.names[: len(self.convs)]
        return self

    def forward(self, images: Tensor, layers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """All feature maps, or only those of `layers`."""
        x = (images - self.mean) / self.std if self.first is None else self.first(images)
        features: dict[str, Tensor] = {}
        last = self.names.index(layers[-1]) if layers else len(self.names)
        for name, conv in zip(self.names[: last + 1], self.convs, strict=False):
            if name.endswith("_1") and name != "relu1_1":
                x = functional.max_pool2d(x, 2, ceil_mode=True)
            x = functional.relu(conv(reflect(x)), inplace=True)
            if layers is None or name in layers:
                features[name] = x
        return features


def vgg_layers(depth: int = 19, last: int = 1) -> list[str]:
    """The layers of a VGG, with `last` convolutions after its fourth pool."""
    counts = enumerate((*VGG_GROUPS[depth], last), 1)
    return [f"relu{group}_{place}" for group, count in counts for place in range(1, count + 1)]


def conv_names(layers: Iterable[str], normalised: bool) -> Iterator[str]:
    """The names of a VGG's convolutions in its file, where pools, ReLUs and paddings are numbered too."""
    number = 2 if normalised else 0
    for name in layers:
        number += name.endswith("_1") and name != "relu1_1"
        yield f"{number}" if normalised else f"features.{number}"
        number += 3 if normalised else 2


class ShiftTolerantVGG(Perceptual):
    """VGG-16 of the ST-LPIPS metric, whose pools are anti-aliased, seen twice: fine texture at full size, and
    all deeper layers at half size, where they cost a quarter and see objects at the size that they know."""

    plan = ("1_1", "1_2", "P", "2_1", "2_2", "P", "3_1", "3_2", "3_3", "P", "4_1", "4_2", "4_3")
    plan += ("P", "5_1", "5_2", "5_3")
    fine = ("1_2", "2_1")
    coarse = ("2_2", "3_3", "4_1")
    style = ("fine1_2", "fine2_1", "coarse2_2", "coarse3_3", "coarse4_1")
    match = ("fine2_1", "coarse3_3", "coarse4_1")
    content = ("coarse3_3", "coarse4_1")
    weights = (1.0, 1.0)
    gram = style
    sizes = (8, 8, 4)

    def __init__(self):
        super().__init__(TORCHVISION)
        widths = [3, *(WIDTHS[int(name[0]) - 1] for name in self.plan if name != "P")]
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths))
        side = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("binomial", (side[:, None] * side)[None, None], persistent=False)

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "ShiftTolerantVGG":
        """From vgg_shift_tolerant.pth; its convolutions are numbered with all that lies between them."""
        net = cls()
        numbers = [f"net.slice{n[0]}.{2 * i}" for i, n in enumerate(cls.plan) if n != "P"]
        _fill(net.convs, numbers, weights)
        return net.freeze()

    def _halve(self, x: Tensor) -> Tensor:
        x, channels = functional.max_pool2d(x, 2, 1), x.shape[1]
        kernel = self.binomial.expand(channels, 1, 3, 3)
        return functional.conv2d(reflect(x), kernel, stride=2, groups=channels)

    def see(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """The feature maps of `layers`, at the size of the pictures."""
        x = (images - self.mean) / self.std
        features: dict[str, Tensor] = {}
        convs = iter(self.convs)
        for name in self.plan[: self.plan.index(layers[-1]) + 1]:
            x = self._halve(x) if name == "P" else functional.relu(next(convs)(x), inplace=True)
            if name in layers:
                features[name] = x
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        small = functional.avg_pool2d(images, 2)
        features = {f"fine{name}": m for name, m in self.see(images, self.fine).items()}
        return features | {f"coarse{name}": m for name, m in self.see(small, self.coarse).items()}


def _fill(convs: Iterable[nn.Conv2d], names: Sequence[str], weights: dict[str, Tensor]) -> None:
    """Load the convolutions with the weights of these names."""
    for conv, name in zip(convs, names, strict=True):
        conv.load_state_dict({kind: weights[f"{name}.{kind}"].float() for kind in ("weight", "bias")})


def reflect(x: Tensor) -> Tensor:
    """Pad a map by one reflected pixel. A map of one pixel is repeated."""
    mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
    return functional.pad(x, (1, 1, 1, 1), mode=mode)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file that contains only tensors."""
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path.name} is damaged or no safetensors file: download or copy it again"
            ) from error
        check_finite(path, weights)
        return weights
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path.name} is not a file of plain weights: convert it to safetensors where it came from"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    weights = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    check_finite(path, weights)
    return weights


def load_perceptual(path: str | Path) -> Perceptual:
    """The perceptual network in a file, frozen."""
    weights = read_weights(Path(path))
    kinds = {"fire2/conv1x1_1.weight": SqueezeNet, "features.3.squeeze.weight": SqueezeNet}
    kinds |= {"net.slice3.11.filt": ShiftTolerantVGG, "features.28.weight": VGG, "42.weight": VGG}
    try:
        for key, kind in kinds.items():
            if key in weights:
                return kind.of(weights)
    except (KeyError, IndexError, RuntimeError) as error:  # another VGG, a SqueezeNet with other layers ...
        reason = f"another one ({str(error).splitlines()[-1].strip()})"
    else:
        reason = "none"
    raise ValueError(
        f"{Path(path).name} is no perceptual network that is known here but {reason}: give a SqueezeNet 1.0 "
        "or 1.1, VGG-16, VGG-19, vgg_normalised.pth or vgg_shift_tolerant.pth"
    )


def perceptual_names() -> list[str]:
    """The networks that can be chosen: the installed one first, if there is one, and models/perceptual."""
    files = host.model_names(KIND, (".safetensors", ".pth"))
    return [INSTALLED, *files] if find_spec("stlpips_pytorch") else [*files, INSTALLED]


def perceptual_path(name: str) -> Path:
    """The file of a network of that list."""
    if name != INSTALLED:
        return host.model_path(KIND, name)
    package = find_spec("stlpips_pytorch")
    if package is None:
        raise ValueError(
            f"{INSTALLED} is part of a Python package: `pip install stlpips-pytorch` (59 MB of weights, "
            "nothing else is downloaded), or choose a file in models/perceptual"
        )
    return Path(package.origin).parent / "weights" / "vST0.0" / "vgg_shift_tolerant.pth"
