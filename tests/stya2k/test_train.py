"""Training: exact resume, recorded steps, falling losses."""

import contextlib
import dataclasses
import threading

import cv2
import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reelbrush.nodes.common.perceptual import VGG, SqueezeNet
from reelbrush.nodes.stya2k import losses
from reelbrush.nodes.stya2k.attention import KINDS
from reelbrush.nodes.stya2k.capture import ahead
from reelbrush.nodes.stya2k.recipe import PAPER, Recipe
from reelbrush.nodes.stya2k.train import Trainer, TrainingBatch, build

from .training_data import sources


@pytest.fixture(scope="module")
def judge():
    """An untrained SqueezeNet serves: the terms are what is tested."""
    torch.manual_seed(1)
    return SqueezeNet().freeze()


TINY = Recipe(
    steps=6,
    batch=2,
    load_size=72,
    crop=64,
    held_styles=1,
    held_contents=2,
    learning_rate=2e-3,
    temporal_weight=1.0,
)


def trainer(folders, judge, name="run", **changes):
    return Trainer(folders / name, dataclasses.replace(TINY, **changes), *sources(folders), judge)


@pytest.mark.parametrize("name", ["photo_share", "color_share"])
def test_a_share_is_between_0_and_1(name):
    with pytest.raises(ValueError, match=f"{name} is a share, from 0 to 1: 1.5 is none"):
        Recipe(**{name: 1.5})


def test_a_later_stage_sees_other_batches_and_judges_on_the_same_pictures(folders, judge):
    plain, same, other = (trainer(folders, judge, data_seed=s) for s in (-1, TINY.seed, TINY.seed + 1))
    for run in (same, other):
        assert (run.held_styles, run.held_contents) == (plain.held_styles, plain.held_contents)
    assert torch.equal(plain.batch(3).content, same.batch(3).content)
    assert not torch.equal(plain.batch(3).content, other.batch(3).content)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_styles_are_photographs(folders, judge, share):
    run, drawn = trainer(folders, judge, photo_share=share), []

    def watched(source, kind):
        draw = source.draw

        def and_note(names, rng):
            drawn.append((kind, *names))
            return draw(names, rng)

        source.draw = and_note

    watched(run.contents, "content")
    watched(run.styles, "style")
    for step in range(100):
        run.batch(step)
    photos = drawn.count(("content", *run.content_names)) - 200
    assert len(drawn) == 400 and photos + drawn.count(("style", *run.style_names)) == 200
    assert photos / 200 == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(folders, judge, how):
    whole = trainer(folders, judge, "whole")
    whole.run(save_every=100, sheet_every=100)

    class Stop(BaseException):
        """Not to be caught."""

    cut = trainer(folders, judge, "cut")

    def stop(report):
        if report.step == 3:
            if how == "killed":
                cut.save = lambda: None  # nothing can be written any more
            raise Stop

    with pytest.raises(Stop):
        cut.run(stop, save_every=2, sheet_every=100)
    again = trainer(folders, judge, "cut")
    assert again.load()
    assert again.step == (2 if how == "killed" else 3)
    again.run(save_every=100, sheet_every=100)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert all(torch.equal(v, again.average[k]) for k, v in whole.average.items())
    assert whole.history["total"] == pytest.approx(again.history["total"], rel=1e-6)


def test_batches_made_ahead_change_nothing(folders, judge):
    alone, helped = trainer(folders, judge, "alone"), trainer(folders, judge, "helped")
    helped.workers = 3
    for run in (alone, helped):
        run.run(save_every=100, sheet_every=100)
    assert helped.step == TINY.steps
    for name, value in alone.network.state_dict().items():
        assert torch.equal(value, helped.network.state_dict()[name]), name


def test_ahead_keeps_the_order_and_hands_on_what_goes_wrong():
    started, gate = [], threading.Event()

    def make(step):
        started.append(step)
        if step == 0:
            assert gate.wait(20), "the first is made while others are"
        if step == 3:
            gate.set()
        if step == 8:
            raise ValueError("no picture 8")
        return step

    found = []
    with pytest.raises(ValueError, match="no picture 8"):
        for item in ahead(make, 0, 20, workers=2):
            found.append(item)
    assert found == list(range(8))
    assert max(started) < 8 + 2 * 2 + 1, "not further ahead than asked"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recorded_steps_learn_what_launched_ones_do(folders, judge):
    found = []
    for capture in (True, False):
        run = Trainer(folders / str(capture), TINY, *sources(folders), judge, "cuda", capture=capture)
        run.run(save_every=100, sheet_every=100)
        found.append(run.history["total"])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


ALL_TERMS = {"sliced_weight": 1.0, "palette_weight": 1.0, "edge_weight": 1.0, "identity_weight": 1.0}


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize(("size", "more"), [("small", {}), ("modulated", {**ALL_TERMS, "every_pair": True})])
def test_a_step_that_is_recorded_takes_nothing_from_the_host(attention, size, more, monkeypatch):
    """What a CUDA graph cannot hold: tensors of the host, tensors made of Python's numbers, questions to the
    device. On the device "meta" the last two raise or show, and any other tensor is the host's."""

    class OnlyTheDevice(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket._qualified_op_name != "aten::lift_fresh"
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            assert all(t.device.type == "meta" for t in given), f"{func} takes a tensor of the host"
            return func(*args, **(kwargs or {}))

    def zeros(*shape):
        return torch.zeros(*shape, device="meta")

    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # it knows no "meta"
    with torch.device("meta"):
        recipe = Recipe(size=size, attention=attention, temporal_weight=10.0, **more)
        judge, network = SqueezeNet(), build(recipe)
    run = Trainer.__new__(Trainer)
    run.recipe, run.device = recipe, torch.device("meta")
    run.perceptual, run.network = judge, network
    motion = losses.MovedFrame(zeros(1, 3, 64, 64), zeros(1, 2, 64, 64), zeros(1, 64, 64).bool())
    base = zeros(3, 3, 64, 64) if size == "small" else None
    batch = TrainingBatch(zeros(2, 3, 64, 64), zeros(2, 3, 64, 64), zeros(512, 24), motion, base)
    run.losses(batch)  # Captured warms up before it records
    with OnlyTheDevice():
        sum(run.losses(batch).values()).backward()


def test_a_step_that_was_cut_in_half_is_not_saved(folders, judge):
    """Ctrl-C can arrive while the optimizer writes: going on from there would be another run."""
    whole = trainer(folders, judge, "whole")
    whole.run(save_every=100, sheet_every=100)
    cut = trainer(folders, judge, "cut")
    step, calls = cut.optimizer.step, []

    def half_a_step():
        calls.append(1)
        if len(calls) == 4:
            next(iter(cut.trained.values())).data.zero_()
            raise KeyboardInterrupt
        step()

    cut.optimizer.step = half_a_step
    with pytest.raises(KeyboardInterrupt):
        cut.run(save_every=2, sheet_every=100)
    again = trainer(folders, judge, "cut")
    assert again.load()
    assert again.step == 2
    again.run(save_every=100, sheet_every=100)
    assert all(torch.equal(v, again.average[k]) for k, v in whole.average.items())


def test_held_out_pictures_stay_held_out_when_others_are_added(folders, judge):
    run = trainer(folders, judge, steps=1)
    run.run(sheet_every=100)
    held = list(run.held_contents), list(run.held_styles)
    for i in range(8):
        image = numpy.full((80, 90, 3), 20 * i, numpy.uint8)
        cv2.imwrite(str(folders / "content" / f"a{i}.png"), image)
    again = trainer(folders, judge)
    assert again.load()
    assert (again.held_contents, again.held_styles) == held
    assert len(again.content_names) == 6 - 2 + 8
    assert not set(again.content_names) & set(again.held_contents)


def test_mixed_precision_trains(folders, judge):
    run = trainer(folders, judge, half=True, match_weight=1.25)
    before = {k: p.detach().clone() for k, p in run.trained.items()}
    found = run.advance()
    assert all(numpy.isfinite(v) for v in found.values())
    assert all(p.dtype == torch.float32 for p in run.trained.values())
    assert sum(not torch.equal(before[k], p) for k, p in run.trained.items()) > 0.9 * len(before)


def test_every_pair_paints_every_content_in_every_style(folders, judge):
    """The same terms as of the four pairs one by one; the content and style pictures are encoded once."""
    run = trainer(
        folders,
        judge,
        size="modulated",
        every_pair=True,
        temporal_weight=0.0,
        gram_weight=0.0,
        variation_weight=0.0,
    )
    batch = run.batch(0)
    with torch.no_grad():
        found = run.losses(batch)
        pairs = [
            TrainingBatch(batch.content[i : i + 1], batch.style[j : j + 1], batch.directions)
            for j in range(2)
            for i in range(2)
        ]
        alone = [run.losses(pair) for pair in pairs]
    for name in ("style", "content"):
        want = sum(terms[name] for terms in alone) / 4
        torch.testing.assert_close(found[name], want, rtol=1e-3, atol=1e-4)


def test_losses_fall(folders, judge):
    run = trainer(folders, judge, "fall", steps=24, temporal_weight=0.0, color_share=0.0, schedule="constant")
    run.run(save_every=1000, sheet_every=1000)
    total = run.history["total"]
    assert sum(total[-6:]) < 0.95 * sum(total[:6])


def test_a_run_leaves_what_a_person_looks_at(folders, judge):
    run = trainer(folders, judge, "seen", steps=2)
    network = run.run(sheet_every=1)
    assert sorted(p.name for p in (folders / "seen" / "samples").iterdir()) == ["0000001.jpg", "0000002.jpg"]
    assert cv2.imread(str(folders / "seen" / "losses.png")).std() > 1
    assert (folders / "seen" / "log.csv").read_text().count("\n") == 3
    facts = run.facts()
    assert facts["skipped"] == ["broken.jpg", "empty.png"]
    assert len(facts["held_out_contents"]) == 2
    assert not any(p.requires_grad for p in network.parameters())


def test_another_recipe_under_the_same_name_is_refused(folders, judge):
    trainer(folders, judge, steps=1).run(sheet_every=100)
    with pytest.raises(ValueError, match="attention = all-to-key"):
        trainer(folders, judge, attention="adain").load()


def test_the_averages_start_at_the_weights_and_trail_them(folders, judge):
    run = trainer(folders, judge, "average")
    before = {k: v.clone() for k, v in run.average.items()}
    run.advance()
    name = "decode8.0.a.weight"
    keep = 2 / 11
    want = before[name] * keep + run.network.state_dict()[name] * (1 - keep)
    torch.testing.assert_close(run.average[name], want)


def test_the_papers_schedule():
    paper = Recipe(**PAPER)
    assert (paper.steps, paper.batch, paper.learning_rate) == (400_000, 8, 2e-4)
    assert paper.average == 0, "the last weights are saved, not averaged ones"
    assert paper.rate(150_000) == 1
    assert paper.rate(0) == 1, "no warm-up"
    assert paper.rate(280_000) == pytest.approx(0.5)
    assert paper.rate(400_000) == 0


def test_the_papers_crops_are_taken_as_they_are(folders):
    """256 from 512 without scaling: every crop is a piece of its picture."""
    recipe = dataclasses.replace(
        TINY, size="paper", equations="official", load_size=72, crop=36, color_share=0.0
    )
    run = Trainer(folders / "paper", recipe, *sources(folders), VGG(normalised=True).freeze())
    contents = run.batch(3).content
    pieces = [run.contents.get(n) for n in run.content_names]
    for made in contents:
        views = [p.unfold(1, 36, 1).unfold(2, 36, 1) for p in pieces]  # 3, y, x, 36, 36
        flips = (made, made.flip(-1))
        found = [(v == f[:, None, None]).all(-1).all(-1).all(0).any() for v in views for f in flips]
        assert any(found)


@pytest.mark.parametrize("equations", ["official", "paper"])
def test_the_papers_network_trains_with_its_frozen_encoder(folders, equations):
    torch.manual_seed(0)
    vgg = VGG(normalised=True).freeze()
    recipe = dataclasses.replace(
        TINY, size="paper", equations=equations, match_weight=1.25, temporal_weight=0.0, batch=1
    )
    run = Trainer(folders / "paper", recipe, *sources(folders), vgg)
    assert not any(name.startswith("encoder") for name in run.trained)
    losses_ = run.advance()
    assert set(losses_) >= {"style", "match", "total"}


def test_the_papers_size_needs_vgg(judge):
    with pytest.raises(ValueError, match="VGG-19"):
        build(dataclasses.replace(TINY, size="paper"), judge)


@pytest.mark.parametrize("name", ["state.pt", "recipe.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"PK\x03\x04"])
def test_a_damaged_run_is_one_sentence(folders, judge, name, data):
    run = trainer(folders, judge, f"damaged {name} {data[:2]!r}")
    run.run(lambda report: None, save_every=100, sheet_every=100)
    (run.folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged or no "):
        trainer(folders, judge, run.folder.name).load()
