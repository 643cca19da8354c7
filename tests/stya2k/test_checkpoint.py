"""What a file is, is seen from its keys and shapes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelbrush.kernels.all_to_key import Arithmetic
from reelbrush.nodes.headless.commands import convert_stya2k as convert
from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.modulated import ModulatedStyA2K
from reelbrush.nodes.stya2k.network import PAPER, StyA2K
from reelbrush.nodes.stya2k.small import HALVINGS, SmallStyA2K


def same(a, b):
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


@pytest.fixture
def folder(tmp_path, parts):
    """The four official files."""
    where = tmp_path / "official"
    where.mkdir()
    for name in ("A2K", "transform", "decoder"):
        torch.save(parts[name], where / f"latest_net_{name}.pth")
    torch.save(parts["vgg"], where / "vgg_normalised.pth")
    return where


def test_a_folder_of_official_files(folder, paper):
    assert same(checkpoint.load(folder), paper)


def test_convert_makes_one_file_of_them(folder, paper, tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    assert convert.run(parser.parse_args([str(folder), str(tmp_path / "one.safetensors")])) == 0
    assert same(checkpoint.load(tmp_path / "one.safetensors"), paper)


@pytest.mark.parametrize("widths", [(12, 24, 48, 96, 96), (4, 8, 16, 32, 24)])
@pytest.mark.parametrize("kind", ["all-to-key", "adain", "one head"])
def test_the_small_network_comes_back_with_its_widths_and_attention(widths, kind, tmp_path):
    network = SmallStyA2K(widths, kind)
    checkpoint.save(network, tmp_path / "s.safetensors", half=False)
    back = checkpoint.load(tmp_path / "s.safetensors")
    assert same(network, back)
    assert (back.widths, back.kind) == (widths, kind)
    assert back.a2k8.how == network.a2k8.how


@pytest.mark.parametrize("widths", [(12, 16, 64, 96), (4, 8, 16, 24)])
@pytest.mark.parametrize("kind", ["all-to-key", "adain", "one head"])
def test_the_modulated_network_comes_back_with_its_widths_and_attention(widths, kind, tmp_path):
    network = ModulatedStyA2K(widths, kind)
    checkpoint.save(network, tmp_path / "m.safetensors", half=False)
    back = checkpoint.load(tmp_path / "m.safetensors")
    assert isinstance(back, ModulatedStyA2K) and same(network, back)
    assert (back.widths, back.kind, back.a2k4.how) == (widths, kind, network.a2k4.how)


@pytest.mark.parametrize("halving", HALVINGS)
def test_how_the_small_network_halves_its_maps_is_kept(halving, tmp_path):
    checkpoint.save(SmallStyA2K((4, 8, 16, 32, 24), halving=halving), tmp_path / "s.safetensors")
    assert checkpoint.load(tmp_path / "s.safetensors").halving == halving
    with pytest.raises(ValueError, match="soft or plain"):
        SmallStyA2K(halving="Soft")


def test_a_small_network_of_before_softening_is_what_it_was(tmp_path):
    weights = SmallStyA2K((4, 8, 16, 32, 24)).state_dict()
    save_file(weights, tmp_path / "s.safetensors", metadata={"stya2k": '{"attention": "adain"}'})
    back = checkpoint.load(tmp_path / "s.safetensors")
    assert (back.halving, back.kind) == ("plain", "adain")


def test_the_papers_arithmetic_is_kept(tmp_path):
    checkpoint.save(StyA2K(how=PAPER), tmp_path / "p.safetensors")
    assert checkpoint.load(tmp_path / "p.safetensors").how == PAPER
    assert PAPER[0] == Arithmetic(size=8, count=8, extra=0)


def test_torchvisions_vgg_19_beside_the_official_decoder_is_rejected(folder):
    """Its features have another scale: the decoder would paint, but wrongly."""
    torchvision = {f"features.{i}.weight": torch.zeros(1) for i in (0, 28, 34)}
    torch.save(torchvision, folder / "vgg19-dcbb9e9d.pth")
    assert checkpoint.load(folder).encoder.first is not None, "vgg_normalised.pth is there too"
    (folder / "vgg_normalised.pth").unlink()
    with pytest.raises(ValueError, match="is torchvision's VGG-19, but the official decoder"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lora_unet_x.lora_up.weight"], "a LoRA"),
        (["fire2/conv1x1_1.weight"], "a SqueezeNet"),
        (["features.34.weight"], "VGG-19"),
        (["model.diffusion_model.x"], "a diffusion checkpoint"),
        (["sim_alpha", "q.weight"], "ReLU3_1 alone"),
        (["down8.weight", "decode8.0.a.weight", "a2k8.sim_alpha"], "an earlier version"),
        (["nothing.known"], "something else"),
    ],
)
def test_another_file_is_told_what_it_looks_like(keys, words, tmp_path):
    save_file({k: torch.zeros(1) for k in keys}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_folder_that_lacks_a_file_is_told_which(folder):
    (folder / "latest_net_decoder.pth").unlink()
    with pytest.raises(ValueError, match="decoder"):
        checkpoint.load(folder)


def test_another_vgg_in_the_folder_is_said(folder, parts):
    """VGG-16 has most of VGG-19's keys."""
    (folder / "vgg_normalised.pth").unlink()
    sixteen = {
        f"features.{i}.{kind}": torch.zeros(1)
        for i in (0, 2, 5, 7, 10, 12, 14, 17)
        for kind in ("weight", "bias")
    }
    torch.save(sixteen, folder / "vgg16.pth")
    with pytest.raises(ValueError, match="trained with vgg_normalised"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff" * 64])
def test_a_damaged_file_gets_one_sentence(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_half_a_small_network_is_told_so(small_file, tmp_path):
    weights = load_file(small_file)
    del weights["up2.weight"]
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no StyA2K model"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_pickle_that_needs_code_is_refused(tmp_path):
    torch.save(_Code(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="plain weights"):
        checkpoint.load(tmp_path / "x.pth")


class _Code:
    def __reduce__(self):
        return (__import__, ("os",))


def test_weights_that_lack_a_layer_get_one_sentence(small_file, tmp_path):
    weights = load_file(small_file)
    del weights["color.bias"]
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint.load(tmp_path / "x.safetensors")
