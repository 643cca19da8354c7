"""Small networks and pictures for the StyA2K tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.small import SmallStyA2K
from reelbrush.nodes.stya2k.style import load_model


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
