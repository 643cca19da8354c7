"""Perceptual networks: files of every kind, against networks that are written out layer by layer."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from reelbrush.nodes.common import perceptual
from reelbrush.nodes.common.perceptual import load_perceptual

installed = pytest.mark.skipif(not find_spec("stlpips_pytorch"), reason="needs the package stlpips-pytorch")
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
VGGS = {
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}


class Fire(nn.Module):
    def __init__(self, cin, squeeze, wide):
        super().__init__()
        self.squeeze, self.expand1x1 = nn.Conv2d(cin, squeeze, 1), nn.Conv2d(squeeze, wide, 1)
        self.expand3x3 = nn.Conv2d(squeeze, wide, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def pool():
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def squeezenet(version):
    """The features of torchvision's network up to fire8, and at which of them conv1 and the fires are."""
    if version == "1.0":
        places = (1, 3, 4, 5, 7, 8, 9, 10)
        first = [nn.Conv2d(3, 96, 7, 2), nn.ReLU(), pool(), Fire(96, 16, 64)]
        rest = [Fire(128, 16, 64), Fire(128, 32, 128), pool(), Fire(256, 32, 128), Fire(256, 48, 192)]
    else:
        places = (1, 3, 4, 6, 7, 9, 10, 11)
        first = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64)]
        rest = [Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
        rest += [Fire(256, 48, 192)]
    rest += [Fire(384, 48, 192), Fire(384, 64, 256)]
    names = ("conv1", *(f"fire{i}" for i in range(2, 9)))
    return nn.Sequential(*first, *rest), dict(zip(names, places, strict=True))


def vgg(depth):
    """The features of torchvision's network with reflection padding, and at which of them the ReLUs are."""
    layers, places, cin, group, number = [], {}, 3, 1, 0
    for width in VGGS[depth].split():
        if width == "M":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            group, number = group + 1, 0
            continue
        layers += [nn.Conv2d(cin, int(width), 3, padding=1, padding_mode="reflect"), nn.ReLU()]
        cin, number = int(width), number + 1
        places[f"relu{group}_{number}"] = len(layers) - 1
    return nn.Sequential(*layers), places


def maps(layers, x):
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return found


@pytest.mark.parametrize("kind", ["squeezenet 1.0", "squeezenet 1.1", "vgg 16", "vgg 19"])
def test_torchvisions_files(kind, tmp_path):
    torch.manual_seed(0)
    family, version = kind.split()
    layers, places = squeezenet(version) if family == "squeezenet" else vgg(int(version))
    weights = {f"features.{k}": v for k, v in layers.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.zeros(3)}, tmp_path / "file.pth")
    images = torch.rand(2, 3, 75, 68)
    with torch.no_grad():
        want, got = maps(layers, (images - MEAN) / STD), load_perceptual(tmp_path / "file.pth")(images)
    last = "fire8" if family == "squeezenet" else "relu5_2"
    assert list(got) == list(places)[: list(places).index(last) + 1]
    for name, features in got.items():
        assert want[places[name]].std() > 0.003
        torch.testing.assert_close(features, want[places[name]])


def test_caffes_squeezenet_reads_blue_green_red(tmp_path):
    layers, places = squeezenet("1.0")
    names = {"squeeze": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"}
    weights = {}
    for i, layer in enumerate(layers):
        for key, value in layer.state_dict().items():
            part, _, kind = key.rpartition(".")
            fire = next((name for name, place in places.items() if place == i), "")
            weights[f"{fire}/{names[part]}.{kind}" if part else f"conv1.{kind}"] = value
    torch.save(weights, tmp_path / "caffe.pth")
    images = torch.rand(1, 3, 60, 60)
    seen = torch.stack([images[:, c] * 255 - mean for c, mean in ((2, 104), (1, 117), (0, 123))], 1)
    with torch.no_grad():
        want, got = maps(layers, seen), load_perceptual(tmp_path / "caffe.pth")(images)
    for name, place in places.items():
        torch.testing.assert_close(got[name], want[place], rtol=1e-4, atol=1e-4)


def test_the_normalized_vgg_is_numbered_with_its_paddings(tmp_path):
    layers, places = vgg(19)
    first = nn.Conv2d(3, 3, 1)
    weights = {f"0.{k}": v for k, v in first.state_dict().items()}
    numbers = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
    for number, conv in zip(numbers, (m for m in layers if isinstance(m, nn.Conv2d)), strict=True):
        weights |= {f"{number}.{k}": v for k, v in conv.state_dict().items()}
    torch.save(weights, tmp_path / "vgg.pth")
    images = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        want, got = maps(layers, first(images)), load_perceptual(tmp_path / "vgg.pth")(images)
    for name, features in got.items():
        torch.testing.assert_close(features, want[places[name]])


@installed
def test_the_installed_network_is_st_lpips_vgg_16():
    path = perceptual.perceptual_path(perceptual.INSTALLED)
    assert perceptual.perceptual_names()[0] == perceptual.INSTALLED
    weights = torch.load(path, map_location="cpu", weights_only=True)
    images = torch.rand(1, 3, 48, 56)
    with torch.no_grad():
        x, want = (2 * images - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"], {}
        for name, number in (("1_1", 0), ("1_2", 2), ("2_1", 6), ("2_2", 8), ("3_1", 12), ("3_2", 14)):
            part = f"net.slice{name[0]}."
            if name.endswith("_1") and number:
                x = nn.functional.pad(nn.functional.max_pool2d(x, 2, 1), (1, 1, 1, 1), mode="reflect")
                blur = weights[f"{part}{number - 1}.filt"]
                x = nn.functional.conv2d(x, blur, stride=2, groups=len(blur))
            weight, bias = (weights[f"{part}{number}.{kind}"] for kind in ("weight", "bias"))
            x = want[name] = nn.functional.conv2d(x, weight, bias, padding=1).relu()
        got = load_perceptual(path).see(images, ("1_2", "2_1", "3_2"))
    for name, features in got.items():
        torch.testing.assert_close(features, want[name], rtol=1e-4, atol=1e-4)


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    assert perceptual.perceptual_names()[-1] == perceptual.INSTALLED
    with pytest.raises(ValueError, match="pip install stlpips-pytorch"):
        perceptual.perceptual_path(perceptual.INSTALLED)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": (1,)}, "but none: give a SqueezeNet"),
        ({"features.28.weight": (1,), "features.0.weight": (64, 3, 3, 3)}, "but another one"),
        ({"features.3.squeeze.weight": (1,), "features.0.weight": (96, 3, 7, 7)}, "but another one"),
    ],
)
def test_another_file_is_rejected(weights, words, tmp_path):
    torch.save({k: torch.zeros(shape) for k, shape in weights.items()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=words):
        load_perceptual(tmp_path / "other.pth")
