"""The weight of every loss: shares of the gradient, over the epochs."""

from dataclasses import fields, replace

import pytest
import torch

from reelbrush.nodes.attnstyle.curriculum import SHARES, Balance, Weights, at, plot, ramp
from reelbrush.nodes.common import plot as plotting

OFF = Weights(**{field.name: 0 for field in fields(Weights)})
STRUCTURE, CLASSIFICATION = ("attention", "content", "layout"), ("classification", "confidence", "patches")


def test_a_weight_is_a_share_relative_to_its_default():
    plain = Weights().shares()
    assert plain == pytest.approx({name: share for name, share in SHARES.items() if name != "temporal"})
    assert sum(plain.values()) == pytest.approx(1, abs=0.05)
    assert replace(OFF, content=300.0, temporal=10.0).shares() == pytest.approx(
        {"content": 2 * SHARES["content"], "temporal": 0.2}
    )
    assert OFF.shares() == {}
    with pytest.raises(ValueError, match="content weight is -1"):
        Weights(content=-1)


def test_structure_leads_for_a_third_of_the_epochs_and_classification_follows():
    over = [at(Weights().shares(), ramp(e, 150)) for e in range(150)]
    for name in CLASSIFICATION:
        values = [shares[name] for shares in over]
        assert values == sorted(values) and values[0] == pytest.approx(0.3 * SHARES[name])
    attention = [shares["attention"] for shares in over]
    assert attention == sorted(attention, reverse=True)
    assert attention[0] == pytest.approx(4 * SHARES["attention"])
    assert all(shares["content"] == SHARES["content"] for shares in over)
    leads = [sum(s[n] for n in STRUCTURE) > sum(s[n] for n in CLASSIFICATION) for s in over]
    assert all(leads[:50]) and not any(leads[75:])
    assert over[74] != Weights().shares() and all(shares == Weights().shares() for shares in over[75:])


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.0), (60, 0.0), (70, 0.25**2 * 2.5), (80, 0.5), (100, 1.0), (200, 1.0)]
)
def test_the_ramp_is_a_smoothstep(epoch, expected):
    assert ramp(epoch, 201) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs_work(epochs):
    assert all(at(Weights().shares(), ramp(e, epochs))["patches"] > 0 for e in range(epochs))


def test_a_gradient_is_divided_by_the_largest_that_the_loss_has_had_lately():
    balance = Balance()
    norms = (0.0, 4.0, 1.0, 8.0, 2.0)
    got = [balance.factors({"content": norm}, {"content": 0.5}, 1.0)["content"] * norm for norm in norms]
    assert got == pytest.approx([0, 0.5, 0.5 / (4 * 0.95), 0.5, 0.5 * 2 / (8 * 0.95)]), "slowly forgotten"
    layout = balance.factors({"layout": 1e-6}, {"layout": 0.5}, 1.0)["layout"]
    assert layout * 1e-6 == pytest.approx(0.5), "each loss by its own"


@pytest.mark.parametrize(("r", "ratio"), [(0.0, 1.0), (0.5, 2.0), (0.8, 5.0), (1.0, 10.0)])
def test_until_the_end_of_the_ramp_classification_waits_for_structure(r, ratio):
    """Structure has lost 90 % of its pull: classification would pull ten times what the shares say."""
    shares = {"classification": 0.1, "patches": 0.2, "content": 0.3, "layout": 0.1, "tv": 0.05}
    balance = Balance()
    balance.factors(dict.fromkeys(shares, 1.0), shares, r)
    norms = dict.fromkeys(shares, 0.95) | {"content": 0.095, "layout": 0.095}
    factors = balance.factors(norms, shares, r)
    pulls = {name: factors[name] * norms[name] for name in norms}
    style, structure = pulls["classification"] + pulls["patches"], pulls["content"] + pulls["layout"]
    assert style / structure == pytest.approx(ratio * 0.3 / 0.4)
    assert pulls["patches"] == pytest.approx(2 * pulls["classification"])
    assert pulls["tv"] == pytest.approx(0.05)
    alone = Balance().factors({"patches": 1.0}, {"patches": 0.2}, r)
    assert alone["patches"] == pytest.approx(0.2), "no structure to wait for"


def test_the_plot_draws_losses_and_their_parts_of_the_gradient(monkeypatch):
    figures, draw = [], plotting.figure_to_image
    monkeypatch.setattr(plotting, "figure_to_image", lambda f: figures.append(f) or draw(f))
    losses = {"patches": [2 - e / 30 for e in range(20)], "layout": [0.0, 1e-9] + [0.5] * 18}
    parts = {"patches": [0.7] * 20, "layout": [0.3] * 20}
    full, less = plot(losses, parts, "t"), plot({"patches": losses["patches"]}, parts, "t")
    assert full.shape == (1, 700, 800, 3) and not torch.equal(full, less)
    upper, lower = ({line.get_label(): line.get_ydata() for line in a.lines} for a in figures[0].axes)
    assert upper["patches"] == pytest.approx([v / 2 for v in losses["patches"]])
    assert list(upper["layout"]) == [0, 2e-9] + [1] * 18, "a loss that starts at almost zero"
    assert {name: list(values) for name, values in lower.items()} == parts
