"""The curriculum's weights over the epochs."""

from dataclasses import fields

import pytest
import torch

from reelbrush.nodes.attnstyle.curriculum import Weights, at, plot, ramp
from reelbrush.nodes.common import plot as plotting

ASKED = Weights(
    classification=500,
    patches=9000,
    attention=2,
    content=150,
    layout=1,
    tv=0.1,
    temporal=5,
    confidence=700,
)
OFF = Weights(**{field.name: 0 for field in fields(Weights)})


def test_structure_leads_and_classification_follows():
    over = [at(ASKED, e, 150) for e in range(150)]
    for name in ("classification", "patches", "confidence"):
        values = [getattr(w, name) for w in over]
        assert values == sorted(values)
        assert values[0] == pytest.approx(0.05 * getattr(ASKED, name))
    attention = [w.attention for w in over]
    assert attention == sorted(attention, reverse=True)
    assert attention[0] == pytest.approx(20)
    assert all((w.content, w.layout, w.tv, w.temporal) == (150, 1, 0.1, 5) for w in over)


def test_after_two_fifths_the_weights_are_what_was_asked_for():
    assert at(ASKED, 59, 150) != ASKED
    assert all(at(ASKED, e, 150) == ASKED for e in range(60, 150))


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.0), (20, 0.25**2 * 2.5), (40, 0.5), (80, 1.0), (200, 1.0)]
)
def test_the_ramp_is_a_smoothstep(epoch, expected):
    assert ramp(epoch, 201) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs_work(epochs):
    assert all(at(ASKED, e, epochs).patches > 0 for e in range(epochs))


def test_what_is_off_stays_off():
    assert at(OFF, 0, 10) == OFF


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="content weight is -1"):
        Weights(content=-1)


def test_the_plot_shows_losses_and_weights():
    applied = [at(ASKED, e, 20) for e in range(20)]
    losses = {"patches": [1 - e / 30 for e in range(20)], "attention": [1.0] * 20, "layout": [0.0] * 20}
    full, less = plot(losses, applied, "t"), plot({"attention": losses["attention"]}, applied, "t")
    assert full.shape == (1, 700, 800, 3)
    assert not torch.equal(full, less)


def test_the_plot_draws_each_epochs_weight_and_weighted_loss(monkeypatch):
    figures, draw = [], plotting.figure_to_image
    monkeypatch.setattr(plotting, "figure_to_image", lambda f: figures.append(f) or draw(f))
    applied = [at(ASKED, e, 20) for e in range(20)]
    losses = {"patches": [1 - e / 30 for e in range(20)], "attention": [0.5] * 20, "content": [0.1] * 20}
    plot(losses, applied, "t")
    upper, lower = ({line.get_label(): line.get_ydata() for line in a.lines} for a in figures[0].axes)
    assert set(upper) == set(lower) == set(losses)
    # classification rises to what was asked for, attention falls to it, content stays; by hand at epoch 3
    r = (3 / 7.6) ** 2 * (3 - 2 * 3 / 7.6)
    assert lower["patches"][3] == pytest.approx(0.05 + 0.95 * r)
    assert lower["attention"][3] == pytest.approx(10 - 9 * r)
    assert list(lower["content"]) == [1.0] * 20
    assert upper["patches"][3] == pytest.approx(9000 * (0.05 + 0.95 * r) * 0.9)
    assert upper["attention"][19] == pytest.approx(2 * 0.5)
