"""Small networks and pictures for the StyA2K tests."""

import importlib.util
from pathlib import Path

import cv2
import numpy
import pytest
import torch

from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.small import SmallStyA2K
from reelbrush.nodes.stya2k.style import load_model, make_style


def load_helper(name):
    """A module beside this file, by path: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def official():
    return load_helper("official")


@pytest.fixture(scope="session")
def parts(official):
    """Seeded official files whose output has a deviation of about 0.2."""
    parts = official.files()
    x = picture(1, 64, 64), picture(1, 64, 64, seed=1)
    with torch.no_grad():
        scale = 0.2 / official.stylize(*x, parts).std()
    for kind in ("weight", "bias"):
        parts["decoder"][f"decoder_layer_2.24.{kind}"] *= scale
    return parts


@pytest.fixture(scope="session")
def paper(parts):
    """Our network with these weights."""
    weights = {k: v for k, v in parts.items() if k != "vgg"}
    return checkpoint.build(checkpoint.from_official(weights, parts["vgg"]))


@pytest.fixture(scope="session")
def small_file(tmp_path_factory):
    """An untrained small model on disk."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    checkpoint.save(SmallStyA2K(), path, half=False)
    return path


@pytest.fixture
def model(small_file):
    return load_model(small_file)


def picture(n, height, width, seed=0):
    """Smooth pictures with grain [n, 3, height, width]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.1 * torch.randn(n, 3, height, width, generator=g)).clamp(0, 1)


@pytest.fixture(scope="session")
def frames():
    """IMAGE batches."""
    return lambda n, height, width, seed=0: picture(n, height, width, seed).permute(0, 2, 3, 1)


@pytest.fixture
def folders(tmp_path):
    """Two folders of small pictures, one of which is broken."""
    rng = numpy.random.default_rng(0)
    for kind, count in (("content", 6), ("style", 5)):
        (tmp_path / kind / "deep").mkdir(parents=True)
        for i in range(count):
            small = rng.integers(0, 255, (6, 8, 3), numpy.uint8)
            image = cv2.resize(small, (90 + 7 * i, 80), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / kind / ("deep" if i % 2 else ".") / f"{i}.png"), image)
    (tmp_path / "content" / "broken.jpg").write_bytes(b"\xff\xd8 this is no picture")
    (tmp_path / "content" / "empty.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def style(model, frames):
    return make_style(model, frames(1, 60, 44, 1), size=64)


@pytest.fixture
def other(model, frames):
    return make_style(model, frames(1, 50, 80, 2) ** 3, size=64)
