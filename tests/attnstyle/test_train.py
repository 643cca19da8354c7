"""Training: it arrives, it repeats, it stops, it can be cancelled."""

from dataclasses import fields, replace

import pytest
import torch

from reelbrush.lab.attnstyle_texture import TextureJudge
from reelbrush.nodes.attnstyle import train as training
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.losses import TemporalLoss
from reelbrush.nodes.attnstyle.motion import between, moved, random_flow
from reelbrush.nodes.attnstyle.train import Patience, Settings, train

OFF = Weights(**{field.name: 0 for field in fields(Weights)})
QUICK = Settings(
    epochs=25, learning_rate=1e-3, patches=8, threshold=0.0, early_stop=False, weights=Weights(content=0)
)


def quick(**changes):
    return Settings(**{**QUICK.__dict__, **changes})


def run(judge, x, settings=QUICK, **more):
    return train(judge, x, "red", "a photo", settings, **more)


def test_the_asked_word_becomes_likely(judge, pictures):
    x = pictures(1, 24, 24)
    before = judge.probability(x, ["red", "blue", "a photo"])[0, 0]
    result = run(judge, x)
    after = judge.probability(result.network(x), ["red", "blue", "a photo"])[0, 0]
    assert before < 0.35
    assert after > 0.8, (before, after, result.losses)
    assert len(result.losses["patches"]) == len(result.shares["patches"]) == 25
    assert set(result.losses) == {"classification", "confidence", "patches", "attention", "layout", "tv"}


def test_it_works_inside_inference_mode_and_leaves_the_input_alone(judge, pictures):
    with torch.inference_mode():
        x = pictures(1, 16, 16)
        kept = x.clone()
        result = run(judge, x, quick(epochs=2))
        assert not torch.equal(result.network(x), x)
    assert torch.equal(x, kept)


def test_a_seed_repeats_and_draws_nothing_from_outside(judge, pictures):
    x = pictures(2, 16, 16)
    state = torch.random.get_rng_state()
    first, second, other = (run(judge, x, quick(epochs=3, seed=s)) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.losses != other.losses


def test_watchers_see_every_epoch_and_may_cancel(judge, pictures):
    seen = []

    def watch(step):
        seen.append((step.epoch, step.picture.shape, step.picture.requires_grad))
        if step.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(judge, pictures(1, 16, 20), watch=watch)
    assert seen == [(e, (3, 16, 20), False) for e in range(3)]


def test_it_starts_from_the_picture_itself(judge, pictures):
    first = []
    x = pictures(1, 16, 16)
    run(judge, x, quick(epochs=1), watch=lambda step: first.append(step.picture))
    assert torch.equal(first[0], x[0])


def test_all_key_frames_take_turns(judge, pictures, monkeypatch):
    monkeypatch.setattr(training, "FRAMES", 2)
    x, shown = pictures(3, 16, 16), []
    run(
        judge,
        x,
        quick(epochs=6),
        watch=lambda s: shown.append(int((x - s.picture).abs().mean((1, 2, 3)).argmin())),
    )
    assert set(shown) == {0, 1, 2}


def test_a_run_that_stands_still_stops_early(judge, pictures, monkeypatch):
    monkeypatch.setattr(training, "PATIENCE", 3)
    weights = replace(OFF, tv=1e-6)  # next to nothing to learn
    done = run(
        judge, pictures(1, 16, 16), quick(epochs=40, weights=weights, early_stop=True, learning_rate=1e-6)
    )
    assert 3 <= len(done.losses["tv"]) < 40


def test_patience_counts_epochs_without_gain():
    patience = Patience()
    assert not any(patience.ends(1000 * 0.9**e) for e in range(100))
    assert [Patience.ends(patience, 1.0) for _ in range(200)].index(True) >= training.PATIENCE - 1


class Eye(torch.nn.Module):
    """A perceptual network of one layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return {"a": self.conv(images)}


def test_every_loss_can_be_switched_off_by_itself(judge, pictures):
    x, names = pictures(1, 16, 16), {f.name for f in fields(Weights)}
    for name in (None, *names):
        weights = Weights(**{n: float(n != name) for n in names})
        got = run(judge, x, quick(epochs=1, weights=weights), perceptual=Eye()).losses
        assert set(got) == names - {name}
    without = run(judge, x, quick(epochs=1, patch_scales="", weights=Weights(content=0)))
    assert "patches" not in without.losses
    with pytest.raises(ValueError, match="every loss weight is zero"):
        run(judge, x, quick(epochs=1, weights=OFF))


def test_each_gradient_is_that_of_its_loss_alone(judge, pictures):
    """One step against the whole graph at once: every loss with respect to the network's weights."""
    torch.manual_seed(0)
    settings, eye = quick(epochs=5, weights=Weights()), Eye()
    session = training._Session(judge, pictures(2), "red", "a photo", settings, eye)
    with torch.no_grad():
        session.network.leave.weight.normal_(0, 0.3)  # away from the identity, where some losses are flat
    weights, state = list(session.network.parameters()), session.generator.get_state()
    _, values, gradients = session.step(0, weights)

    session.generator.set_state(state)
    styl, pairs = session.network.with_features(pictures(2))
    frame = torch.arange(2)
    losses = {name: loss(styl, frame) for name, loss in session.sharing.items()}
    losses |= {"patches": session.patches(styl, frame), "attention": session.alignment(pairs)}
    losses |= {name: loss(styl, frame) for name, loss in session.others.items()}
    assert values == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    assert set(gradients) == set(losses)
    for name, loss in losses.items():
        want = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        size = torch.cat([g.flatten() for g in want if g is not None]).norm()
        for mine, literal in zip(gradients[name], want, strict=True):
            assert (mine is None) == (literal is None)
            if literal is not None:
                torch.testing.assert_close(mine / size, literal / size, rtol=1e-3, atol=1e-5)


def test_the_network_moves_along_the_sum_of_its_weighted_gradients(judge, pictures, monkeypatch):
    """A step of plain descent, with factors that are given, and the parts that are reported."""
    given = {"classification": 2.0, "tv": 0.5}
    monkeypatch.setattr(training.Balance, "factors", lambda self, norms, shares, r: given)
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    weights = replace(OFF, classification=1.0, tv=1.0)
    settings = quick(epochs=1, weights=weights, learning_rate=0.1)
    session = training._Session(judge, pictures(1), "red", "a photo", settings, None)
    before = [p.detach().clone() for p in session.network.parameters()]
    _, _, gradients = session.step(0, list(session.network.parameters()))
    result = session.run(None)
    sizes = {}
    for name, gradient in gradients.items():
        sizes[name] = given[name] * torch.cat([g.flatten() for g in gradient if g is not None]).norm().item()
    for i, (old, new) in enumerate(zip(before, result.network.parameters(), strict=True)):
        step = sum(given[n] * g[i] for n, g in gradients.items() if g[i] is not None)
        torch.testing.assert_close(new, old - 0.1 * step)
    shares = {name: part[0] for name, part in result.shares.items()}
    assert shares == pytest.approx({name: size / sum(sizes.values()) for name, size in sizes.items()})


def test_the_judge_sees_whole_pictures_once_and_few_patches_at_a_time(judge, pictures, monkeypatch):
    seen, towers = [], type(judge).towers
    monkeypatch.setattr(type(judge), "towers", lambda self, x: seen.append(len(x)) or towers(self, x))
    run(judge, pictures(3, 16, 16), quick(epochs=2, patches=32))
    assert seen[:2] == [3, 3], "content pictures: for the direction, and for the layout"
    step = seen[2 : 2 + (len(seen) - 2) // 2]
    assert step[0] == 3 and sum(step[1:]) == 32 and max(step[1:]) <= 4


def version_0_1():
    """The factors of version 0.1: fixed weights; classification rises from 5 % over 40 % of the epochs. Its
    patch loss was the sum of three scales."""
    epochs = iter(range(1000))

    def factors(self, norms, shares, r):
        t = min(1.0, next(epochs) / (0.4 * 39))
        r = t * t * (3 - 2 * t)
        weights = {f.name: f.default for f in fields(Weights)}
        weights["patches"] *= 3
        for name in ("classification", "patches", "confidence"):
            weights[name] *= 0.05 + 0.95 * r
        weights["attention"] *= 10 - 9 * r
        return {name: weights[name] for name in norms}

    return factors


@pytest.mark.parametrize(("factors", "holds"), [(None, True), (version_0_1(), False)], ids=["ours", "0.1"])
def test_with_the_defaults_every_loss_matters_and_structure_leads_first(
    pictures, monkeypatch, factors, holds
):
    """Parts of the summed gradient norms of the network's weights. Version 0.1: attention 0.02 %, layout
    0.002 %, and structure led for an eighth."""
    if factors:
        monkeypatch.setattr(training.Balance, "factors", factors)
    torch.manual_seed(0)
    x = pictures(1, 40, 40) + 0.1 * torch.rand(1, 3, 40, 40)
    settings = Settings(epochs=40, learning_rate=1e-3, patches=8, threshold=0.2, early_stop=False)
    parts = train(TextureJudge(), x, "striped", "a photo", settings, perceptual=Eye()).shares
    assert set(parts) == {"classification", "confidence", "patches", "content", "layout", "attention", "tv"}
    largest = {name: max(values) for name, values in parts.items()}
    structure = [sum(parts[n][e] for n in ("attention", "content", "layout")) for e in range(12)]
    assert (min(largest.values()) > 0.05) == holds, largest
    assert (min(structure) > 0.5) == holds, structure


def test_a_confident_judge_is_asked_for(judge, pictures):
    x, texts = pictures(1, 24, 24), ["red", "a photo", "blue", "dark"]

    def sure(weight, others):
        weights = Weights(patches=0.0, content=0.0, confidence=weight)
        result = run(judge, x, quick(epochs=12, weights=weights, others=others, curriculum=False))
        return judge.probability(result.network(x), texts)[0, 0]

    assert sure(20000.0, ("blue", "dark")) > sure(0.0, ("blue", "dark")) + 0.1


def test_content_needs_a_network_and_keeps_it_as_it_was(judge, pictures):
    x = pictures(1, 16, 16)
    with pytest.raises(ValueError, match="needs a perceptual network"):
        run(judge, x, quick(weights=Weights()))

    with torch.inference_mode():
        eye = Eye()
    kept = eye.conv.weight.clone()
    heavy = run(judge, x, quick(weights=Weights(content=1e6)), perceptual=eye)
    light = run(judge, x, quick(weights=Weights(content=1e-6)), perceptual=eye)
    assert torch.equal(eye.conv.weight, kept)
    assert (heavy.network(x) - x).abs().mean() < 0.5 * (light.network(x) - x).abs().mean()


def test_a_training_that_blows_up_says_so(judge, pictures):
    with pytest.raises(ValueError, match=r"diverged at epoch \d+ \(.*set learning_rate below") as caught:
        run(judge, pictures(1, 16, 16), quick(learning_rate=1e30))
    assert "\n" not in str(caught.value)


def test_tiny_pictures_are_refused(judge, pictures):
    with pytest.raises(ValueError, match="16x16"):
        run(judge, pictures(1, 8, 40))


def test_a_made_up_neighbour_is_the_picture_moved_by_its_flow(pictures):
    x = pictures(2, 48, 64)
    neighbour, flow, valid = moved(x, torch.Generator().manual_seed(0))
    assert valid.float().mean() > 0.8
    assert 0.3 < flow.abs().mean() < 5
    # the picture is smooth: look up p + flow by hand at one pixel
    i, j = 20, 30
    u, v = j + flow[0, 0, i, j].item(), i + flow[0, 1, i, j].item()
    assert abs(neighbour[0, 0, i, j] - x[0, 0, round(v), round(u)]) < 0.08
    again, _, _ = moved(x, torch.Generator().manual_seed(0))
    assert torch.equal(neighbour, again)


def test_random_motions_differ_and_scale_with_the_picture():
    g = torch.Generator().manual_seed(0)
    small, large = random_flow(50, 20, 20, g), random_flow(50, 80, 80, g)
    assert small.std(0).min() > 0
    assert 2 < large.abs().mean() / small.abs().mean() < 8


def test_key_frames_that_share_a_view_are_paired(pictures):
    pytest.importorskip("cv2")
    g = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 20, 20, generator=g), (80, 80), mode="bicubic"
    ).clamp(0, 1)
    a, b = texture[..., 8:72, 8:72], texture[..., 10:74, 11:75]
    other = torch.nn.functional.interpolate(
        torch.rand(1, 3, 20, 20, generator=g), (64, 64), mode="bicubic"
    ).clamp(0, 1)
    found = between(torch.cat([a, b, other]))
    assert [(m.a, m.b) for m in found] == [(0, 1)]
    inner = found[0].flow[0, :, 16:-16, 16:-16].mean((1, 2))
    assert torch.allclose(inner, torch.tensor([-3.0, -2.0]), atol=0.5)


def test_the_temporal_loss_calms_what_moves_and_keeps_the_contrast(judge, pictures):
    x = pictures(1, 32, 32) + 0.15 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def styled(weight):
        settings = quick(epochs=30, weights=replace(OFF, classification=500.0, temporal=weight))
        network = run(judge, x, settings).network
        neighbour, flow, valid = moved(x, torch.Generator().manual_seed(77))
        drawn = network(x)
        return TemporalLoss()(network(neighbour), drawn, flow, valid).item(), drawn.std().item()

    (flickers, contrast), (calm, kept) = styled(1e-6), styled(10.0)
    assert calm < 0.5 * flickers
    assert kept > 0.8 * contrast


def test_the_style_text_among_the_other_texts_is_told(judge, pictures):
    with pytest.raises(ValueError, match="other_texts contains the style text 'red'"):
        run(judge, pictures(1, 16, 16), quick(others=("blue", " Red ")))
