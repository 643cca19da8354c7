"""Perceptual networks: feature maps of image classifiers, for losses. The pack contains no weights for them.

A file is detected by its keys: SqueezeNet v1.0 (layer names of its prototxt), the normalized VGG-19 of AdaIN
(`vgg_normalised.pth`), torchvision's VGG-19, or the VGG-16 of the ST-LPIPS metric (`vgg_shift_tolerant.pth`
of the Python package stlpips-pytorch). All take pictures [N, 3, H, W] in 0..1 and return a dict of feature
maps by layer name, shallow to deep. `style` names the layers for eq. 16, `match` those for eq. 17, `content`
those for structure, `gram` those for Gram matrices.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512]
VGG_NORMALISED = (
    0,
    2,
    5,
    9,
    12,
    16,
    19,
    22,
    25,
    29,
    32,
    35,
    38,
    42,
)  # indices of its convolutions, up to 5_1
VGG_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)


class Perceptual(nn.Module):
    """A frozen feature extractor."""

    style: tuple[str, ...]
    match: tuple[str, ...]
    content: tuple[str, ...]
    weights: tuple[float, ...]
    gram: tuple[str, ...]
    sizes: tuple[int, ...]

    def freeze(self) -> "Perceptual":
        return self.requires_grad_(False).train(False)


class SqueezeNet(Perceptual):
    """SqueezeNet v1.0 up to fire8: 0.6 GFLOP for a 192x192 picture, fast enough for training on a CPU."""

    style = ("conv1", "fire3", "fire6", "fire8")
    match = ("fire3", "fire5", "fire8")
    content = ("fire3", "fire6", "fire8")
    weights = (0.5, 1.0, 1.0)
    gram = ("conv1", "fire3", "fire5")
    sizes = (8, 4, 4)  # points a side of a region in eq. 17

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        widths = {2: (96, 16), 3: (128, 16), 4: (128, 32), 5: (256, 32)}
        widths |= {6: (256, 48), 7: (384, 48), 8: (384, 64)}
        for i, (cin, squeeze) in widths.items():
            self.add_module(
                f"fire{i}",
                nn.ModuleList(
                    [
                        nn.Conv2d(cin, squeeze, 1),
                        nn.Conv2d(squeeze, 4 * squeeze, 1),
                        nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1),
                    ]
                ),
            )
        self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "SqueezeNet":
        names = {"conv1x1_1": "0", "conv1x1_2": "1", "conv3x3_2": "2"}
        state = {}
        for key, value in weights.items():
            head, _, tail = key.partition("/")
            layer, _, kind = tail.partition(".")
            if key.startswith("conv1."):
                state[key] = value.float()
            elif head in {f"fire{i}" for i in range(2, 9)}:
                state[f"{head}.{names[layer]}.{kind}"] = value.float()
        net = cls()
        net.load_state_dict(state)
        return net.freeze()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flip(1) * 255 - self.mean  # BGR
        found = {"conv1": functional.relu(self.conv1(x))}
        x = functional.max_pool2d(found["conv1"], 3, 2, ceil_mode=True)
        for i in range(2, 9):
            squeeze, one, three = getattr(self, f"fire{i}")
            y = functional.relu(squeeze(x))
            x = found[f"fire{i}"] = functional.relu(torch.cat([one(y), three(y)], 1))
            if i == 4:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return found


class VGG19(Perceptual):
    """VGG-19 up to ReLU5_1, reflection-padded, either of the two common weight files."""

    style = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
    match = ("relu2_1", "relu3_1", "relu4_1", "relu5_1")
    content = ("relu4_1", "relu5_1")
    weights = (1.0, 1.0)
    gram = ("relu1_1", "relu2_1", "relu3_1")
    sizes = (16, 8, 8, 4)

    def __init__(self, normalised: bool):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1) if normalised else None
        cin = 3
        self.convs = nn.ModuleList()
        for width in VGG:
            if width != "M":
                self.convs.append(nn.Conv2d(cin, width, 3))
                cin = width
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "VGG19":
        normalised = "features.0.weight" not in weights
        net = cls(normalised)
        if normalised:
            modules = zip(VGG_NORMALISED, [net.first, *net.convs], strict=True)
            prefix = ""
        else:
            modules, prefix = zip(VGG_TORCHVISION, net.convs, strict=True), "features."
        for index, conv in modules:
            part = {k: weights[f"{prefix}{index}.{k}"].float() for k in ("weight", "bias")}
            conv.load_state_dict(part)
        return net.freeze()

    def forward(self, images: Tensor, layers: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """All feature maps, or only those of `layers`."""
        x = (images - self.mean) / self.std if self.first is None else self.first(images)
        found: dict[str, Tensor] = {}
        convs, group, place = iter(self.convs), 1, 1
        for width in VGG:
            if width == "M":
                x = functional.max_pool2d(x, 2, ceil_mode=True)
                group, place = group + 1, 1
                continue
            x = functional.relu(next(convs)(reflect(x)), inplace=True)
            name = f"relu{group}_{place}"
            if layers is None or name in layers:
                found[name] = x
            place += 1
        return found


class VGG16(Perceptual):
    """VGG-16 of the ST-LPIPS metric, whose pools are anti-aliased, seen twice: fine texture at full size, and
    all deeper layers at half size, where they cost a quarter and see objects at the size that they know."""

    plan = ("1_1", "1_2", "P", "2_1", "2_2", "P", "3_1", "3_2", "3_3", "P", "4_1")
    fine = ("1_2", "2_1")
    coarse = ("2_2", "3_3", "4_1")
    style = ("fine1_2", "fine2_1", "coarse2_2", "coarse3_3", "coarse4_1")
    match = ("fine2_1", "coarse3_3", "coarse4_1")
    content = ("coarse3_3", "coarse4_1")
    weights = (1.0, 1.0)
    gram = style
    sizes = (8, 8, 4)

    def __init__(self):
        super().__init__()
        widths, cin = {"1": 64, "2": 128, "3": 256, "4": 512}, 3
        self.convs = nn.ModuleList()
        for name in self.plan:
            if name != "P":
                self.convs.append(nn.Conv2d(cin, widths[name[0]], 3, padding=1))
                cin = widths[name[0]]
        self.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        side = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("binomial", (side[:, None] * side)[None, None], persistent=False)

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "VGG16":
        """From vgg_shift_tolerant.pth; its convolutions are numbered with all that lies between them."""
        names = ("1.0", "1.2", "2.6", "2.8", "3.12", "3.14", "3.16", "4.20")
        net = cls()
        for name, conv in zip(names, net.convs, strict=True):
            conv.load_state_dict({k: weights[f"net.slice{name}.{k}"].float() for k in ("weight", "bias")})
        return net.freeze()

    def _halve(self, x: Tensor) -> Tensor:
        x, channels = functional.max_pool2d(x, 2, 1), x.shape[1]
        kernel = self.binomial.expand(channels, 1, 3, 3)
        return functional.conv2d(reflect(x), kernel, stride=2, groups=channels)

    def _see(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        x = (2 * images - 1 - self.shift) / self.scale
        features: dict[str, Tensor] = {}
        convs = iter(self.convs)
        for name in self.plan:
            x = self._halve(x) if name == "P" else functional.relu(next(convs)(x), inplace=True)
            if name in layers:
                features[name] = x
            if name == layers[-1]:
                break
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        small = functional.avg_pool2d(images, 2)
        features = {f"fine{name}": m for name, m in self._see(images, self.fine).items()}
        return features | {f"coarse{name}": m for name, m in self._see(small, self.coarse).items()}


def reflect(x: Tensor) -> Tensor:
    """Pad a map by one reflected pixel. A map of one pixel is repeated."""
    mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
    return functional.pad(x, (1, 1, 1, 1), mode=mode)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file that contains only tensors."""
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path.name} is damaged or no safetensors file: download or copy it again"
            ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path.name} is not a file of plain weights: convert it to safetensors where it came from"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def load_perceptual(path: str | Path) -> Perceptual:
    """The perceptual network in a file, frozen."""
    weights = read_weights(Path(path))
    try:
        if "fire2/conv1x1_1.weight" in weights:
            return SqueezeNet.of(weights)
        if "net.slice4.24.weight" in weights and "net.slice3.11.filt" in weights:
            return VGG16.of(weights)
        if "features.28.weight" in weights or ("42.weight" in weights and "0.weight" in weights):
            return VGG19.of(weights)
    except (KeyError, RuntimeError) as error:  # VGG-16, SqueezeNet 1.1 ...
        missing = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{Path(path).name} looks like a perceptual network but is another one ({missing}): give "
            "SqueezeNet v1.0, vgg_normalised.pth, torchvision's VGG-19 or vgg_shift_tolerant.pth"
        ) from error
    raise ValueError(
        f"{Path(path).name} is no perceptual network that is known here: give SqueezeNet v1.0, "
        "vgg_normalised.pth or torchvision's VGG-19"
    )
