"""What Load StyA2K lists, the model that ships, and the training command."""

import argparse
import json

import cv2
import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reelbrush.nodes.common.perceptual import SqueezeNet
from reelbrush.nodes.headless.commands import train
from reelbrush.nodes.stya2k import checkpoint, library, train_in_graph
from reelbrush.nodes.stya2k.nodes import LoadStyA2K
from reelbrush.nodes.stya2k.recipe import Recipe
from reelbrush.nodes.stya2k.small import SmallStyA2K

SHIPPED = "stya2k-small.safetensors"


def test_the_shipped_model_is_listed_first(home, small_file):
    for name in ("mine.safetensors", "a.safetensors"):
        path = home / "output" / "stya2k" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(small_file.read_bytes())
    (path.parent / ".a" / "samples").mkdir(parents=True)
    (path.parent / "latest_net_decoder.pth").write_bytes(b"")
    assert library.names() == [SHIPPED, "a.safetensors", "mine.safetensors"]
    assert LoadStyA2K.INPUT_TYPES()["required"]["model"][0][0] == SHIPPED


def test_the_shipped_model_is_small_and_says_how_it_was_made():
    path = library.path(SHIPPED)
    assert path.stat().st_size < 8 * 2**20
    with safe_open(path, "pt") as f:
        about = json.loads(f.metadata()["stya2k"])
    assert {"seed", "step", "style_weight", "attention"} <= about.keys()
    assert (len(about["held_out_styles"]), len(about["held_out_contents"])) == (15, 50)
    assert path.with_suffix(".md").is_file(), "the model card"


@torch.inference_mode()
def test_the_shipped_model_takes_the_styles_palette():
    """A bluish picture in an orange style becomes orange; a style distance that no training saw."""
    network = checkpoint.load(library.path(SHIPPED))
    g = torch.Generator().manual_seed(0)
    grain = torch.nn.functional.interpolate(torch.rand(2, 1, 24, 24, generator=g), (96, 96), mode="bicubic")
    content = (grain[:1] * torch.tensor([0.3, 0.5, 1.0]).view(1, 3, 1, 1)).clamp(0, 1)
    style = (grain[1:] * torch.tensor([1.0, 0.55, 0.1]).view(1, 3, 1, 1)).clamp(0, 1)
    out = network(content, network.encode_style(style)).clamp(0, 1)
    colour = lambda x: x.mean((0, 2, 3))  # noqa: E731
    assert (colour(out) - colour(style)).norm() < 0.35 * (colour(content) - colour(style)).norm()
    structure = torch.corrcoef(torch.stack([out.mean(1).flatten(), content.mean(1).flatten()]))[0, 1]
    assert structure > 0.5, "the content can still be seen"


@pytest.fixture
def arguments(tmp_path):
    """The least that `reelbrush train` needs, with an untrained judge."""
    rng = numpy.random.default_rng(0)
    for kind in ("contents", "styles"):
        (tmp_path / kind).mkdir()
        for i in range(2):
            cv2.imwrite(str(tmp_path / kind / f"{i}.png"), rng.integers(0, 255, (70, 80, 3), numpy.uint8))
    names = {"0": "conv1x1_1", "1": "conv1x1_2", "2": "conv3x3_2"}
    weights = {}
    for key, value in SqueezeNet().state_dict().items():
        layer, _, rest = key.partition(".")
        place, _, kind = rest.partition(".")
        weights[key if layer == "conv1" else f"{layer}/{names[place]}.{kind}"] = value.contiguous()
    save_file(weights, tmp_path / "judge.safetensors")
    return [
        *("stya2k", str(tmp_path / "run"), "--contents", str(tmp_path / "contents")),
        *("--styles", str(tmp_path / "styles"), "--perceptual", str(tmp_path / "judge.safetensors")),
        *("--steps", "3", "--batch", "1", "--load-size", "64", "--crop", "64", "--device", "cpu"),
        *("--held-styles", "1", "--held-contents", "1", "--match-weight", "0"),
    ]


def test_the_command_trains_stops_and_goes_on(arguments, tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args([*arguments, "--until", "1"])) == 0
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 1
    target = tmp_path / "mine.safetensors"
    assert train.run(parser.parse_args([*arguments, "--save-as", str(target)])) == 0
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 3
    assert checkpoint.load(target).kind == "all-to-key"


def test_a_run_of_before_softening_goes_on_as_it_began(arguments, tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args([*arguments, "--halving", "plain", "--until", "1"])) == 0
    recipe = tmp_path / "run" / "recipe.json"
    old = json.loads(recipe.read_text())
    assert old.pop("halving") == "plain"
    recipe.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="halving = plain, not soft"):
        train.run(parser.parse_args([*arguments, "--halving", "soft"]))
    target = tmp_path / "mine.safetensors"
    assert train.run(parser.parse_args([*arguments, "--save-as", str(target)])) == 0
    assert checkpoint.load(target).halving == "plain"


def test_a_run_can_begin_with_other_weights(arguments, tmp_path, caplog):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    start = ["--start-from", str(library.path(SHIPPED)), "--learning-rate", "0", "--until", "1"]
    target = tmp_path / "mine.safetensors"
    assert train.run(parser.parse_args([*arguments, *start, "--save-as", str(target)])) == 0
    warned = "halving was not" in caplog.text
    assert warned == (checkpoint.load(library.path(SHIPPED)).halving != "soft")
    shipped, mine = (checkpoint.load(p).state_dict() for p in (library.path(SHIPPED), target))
    assert all(torch.equal(shipped[k], v) for k, v in mine.items())


def test_weights_of_another_attention_lend_all_but_the_attention(arguments, tmp_path):
    """The new one adds nothing at first: the pictures are those of the network it began with."""
    torch.manual_seed(0)
    first = SmallStyA2K(kind="adain")
    pictures, style = torch.rand(2, 3, 64, 96), torch.rand(1, 3, 80, 64)
    checkpoint.save(first, tmp_path / "adain.safetensors")
    before = checkpoint.load(tmp_path / "adain.safetensors")
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    start = [
        "--start-from",
        str(tmp_path / "adain.safetensors"),
        "--save-as",
        str(tmp_path / "a2k.safetensors"),
    ]
    assert train.run(parser.parse_args([*arguments, *start, "--learning-rate", "0", "--until", "1"])) == 0
    after = checkpoint.load(tmp_path / "a2k.safetensors")
    assert (before.kind, after.kind) == ("adain", "all-to-key")
    with torch.inference_mode():
        wanted = before(pictures, before.encode_style(style))
        torch.testing.assert_close(after(pictures, after.encode_style(style)), wanted)
        for module in after.attention:
            module.fusion1.weight.fill_(0.1)
        assert (after(pictures, after.encode_style(style)) - wanted).abs().max() > 1e-3


def test_weights_of_other_widths_are_not_taken(arguments, tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    checkpoint.save(SmallStyA2K(widths=(8, 16, 32, 64, 64)), tmp_path / "thin.safetensors")
    with pytest.raises(ValueError, match="another network"):
        train.run(parser.parse_args([*arguments, "--start-from", str(tmp_path / "thin.safetensors")]))


@pytest.fixture
def asked(home, monkeypatch):
    """The recipe that the node would train the run `name` by."""

    class SeenError(Exception):
        """Far enough."""

    def trainer(folder, recipe, *rest):
        raise SeenError(recipe)

    for kind in ("contents", "styles"):
        (home / "input" / kind).mkdir()
        cv2.imwrite(str(home / "input" / kind / "0.png"), numpy.zeros((70, 80, 3), numpy.uint8))
    monkeypatch.setattr(train_in_graph, "Trainer", trainer)
    monkeypatch.setattr(train_in_graph, "load_perceptual", lambda path: None)
    monkeypatch.setattr(train_in_graph, "perceptual_path", lambda name: None)

    def ask(name, size, **more):
        with pytest.raises(SeenError) as seen:
            values = {"size": size, "load_size": 64, "crop": 64, "steps": 7, "equations": "automatic", **more}
            train_in_graph.train("contents", "styles", "", "judge", name, True, values)
        return seen.value.args[0]

    return ask


def test_the_papers_size_in_the_node_means_the_papers_losses_and_schedule(asked):
    """What the node has no input for comes from the preset, not from the small network's recipe."""
    for size, official in (("paper", True), ("small", False)):
        recipe = asked("mine", size)
        assert (recipe.literal, recipe.steps) == (official, 7)
        assert (recipe.gram_weight == 0) is official
        assert (recipe.average == 0) is official
        assert asked("long", size, steps=20000).steps == (400_000 if official else 20_000)
    assert asked("mine", "paper", equations="paper").equations == "paper"


def test_a_run_goes_on_in_the_node_with_what_the_node_has_no_input_for(home, asked):
    """One of before softening, which does not say how its maps were halved, as it began."""
    old = home / "output" / "stya2k" / ".old" / "recipe.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"size": "small", "gram_weight": 2.5, "steps": 3}')
    with pytest.raises(ValueError, match="which cannot be continued"):
        old.write_text('{"size": "paper", "steps": 3}')
        asked("old", "paper")
    old.write_text('{"size": "small", "gram_weight": 2.5, "steps": 3}')
    for name, halving, gram in (("old", "plain", 2.5), ("new", "soft", Recipe().gram_weight)):
        recipe = asked(name, "small")
        assert (recipe.halving, recipe.gram_weight, recipe.steps) == (halving, gram, 7)


def test_a_model_that_is_a_link_to_elsewhere_is_listed_and_loads(home, small_file):
    """People keep models on another disk and link them; a name with dots in it still leads nowhere."""
    (home / "models" / "stya2k").mkdir()
    (home / "models" / "stya2k" / "linked.safetensors").symlink_to(small_file)
    assert "linked.safetensors" in library.names()
    assert checkpoint.load(library.path("linked.safetensors")).kind == "all-to-key"
    for name in (f"../../{small_file.name}", str(small_file)):
        with pytest.raises(ValueError, match="leaves the"):
            library.path(name)
