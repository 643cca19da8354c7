"""Canvases in windows, and convolutions that wrap."""

import pytest
import torch

from reelbrush.nodes.distill.expand import Expansion, TextureCanvas, expand, ladder
from reelbrush.nodes.distill.features import opened
from reelbrush.nodes.distill.guided import seeded
from reelbrush.nodes.distill.optimize import References
from reelbrush.nodes.distill.seamless import circular, seamless_model, wrapped_tiles

from .small import latents, model, null, peak, replayed, rows_seen, styles

CANVASES = [
    pytest.param(TextureCanvas(64, 192), 17, id="the paper's 512x1536: 17 windows at stride 64"),
    pytest.param(TextureCanvas(64, 64), 1, id="one window"),
    pytest.param(TextureCanvas(40, 70), 2, id="lower than a window; the last window is moved to the edge"),
    pytest.param(TextureCanvas(64, 128, 64, 32, "x"), 4, id="seamless in x"),
    pytest.param(TextureCanvas(32, 32, 64, 32, "both"), 1, id="smaller than a window and seamless"),
]


@pytest.mark.parametrize(("canvas", "count"), CANVASES)
def test_windows_cover_the_canvas(canvas, count):
    covered = torch.zeros(canvas.height, canvas.width)
    windows = canvas.windows()
    assert len(windows) == count
    for rows, columns in windows:
        assert len(rows) == min(canvas.window, canvas.height)
        covered[rows[:, None], columns] += 1
    assert covered.min() >= 1


def test_an_overlap_as_large_as_the_window_raises_an_error():
    with pytest.raises(ValueError, match="overlap smaller than the window"):
        TextureCanvas(64, 64, 64, 64)


def test_steps_lead_from_level_to_level_and_end_at_0():
    assert list(ladder(50))[:2] == [(981, 961), (961, 941)]
    assert list(ladder(50))[-1] == (1, 0)


def grown(of, canvas, seed=0, **more):
    how = Expansion(**{"steps": 2, "iterations": 1, "windows_per_call": 4, **more})
    with torch.inference_mode(), opened(of, null(of)) as (clone, reader):
        return expand(clone, reader, styles(size=(8, 8)), canvas, how, seeded(seed))


def test_one_window_is_guided_sampling_and_many_are_bounded(monkeypatch):
    of, rows = model(), rows_seen(monkeypatch)
    canvas = TextureCanvas(8, 24, 8, 4)
    out = grown(of, canvas)
    assert out.shape == (1, 4, 8, 24)
    assert out.isfinite().all()
    # Five windows: per step the style once, then calls of four and of one.
    assert rows == [(1, False), (4, True), (1, True)] * 2
    assert torch.equal(out, grown(of, canvas))
    assert not torch.equal(out, grown(of, canvas, seed=1))


def test_how_windows_are_grouped_changes_nothing():
    of = model(dtype=torch.float64)
    of.model.diffusion_model.double()
    one, all_at_once = (grown(of, TextureCanvas(8, 16, 8, 4), windows_per_call=n) for n in (1, 4))
    torch.testing.assert_close(one, all_at_once, atol=1e-3, rtol=0)


def test_memory_is_that_of_the_windows_not_of_the_canvas(tmp_path):
    """Four times the canvas, as 2048² is of 1024²; in both, two windows share a call."""
    of = model()
    how = {"steps": 1, "iterations": 1, "windows_per_call": 2}
    grown(of, TextureCanvas(16, 16, 16, 0), **how)
    small, large = (
        peak(lambda side=side: grown(of, TextureCanvas(side, side, 16, 0), **how), tmp_path / f"{side}.json")
        for side in (32, 64)
    )
    assert large <= 1.1 * small


@pytest.mark.parametrize(("seamless", "least", "most"), [("x", 0.99, 1.0), ("none", 0.0, 0.9)])
def test_a_seamless_canvas_has_no_edge(seamless, least, most):
    """Noise that is turned by a window's stride gives the same canvas, turned; with edges it does not."""
    of, canvas, how = model(), TextureCanvas(8, 32, 8, 4, seamless), Expansion(2, 1, windows_per_call=4)
    noise, *later = (latents(1, seed, size=(8, w)) for seed, w in ((5, 32), (6, 8), (7, 8)))

    def run(turn):
        drawn = replayed([noise.roll(turn, -1), *later])
        with torch.inference_mode(), opened(of, null(of)) as (clone, reader):
            return expand(clone, reader, styles(size=(8, 8)), canvas, how, drawn)

    # Adam's first step is a sign: the last bit of a gradient near 0 may turn an element around.
    near = ((run(4) - run(0).roll(4, -1)).abs() < 1e-3).float().mean()
    assert least <= near <= most


# -- convolutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_a_circular_convolution_turns_with_its_input(axes):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(1, 3, 10, 12, dtype=torch.float64)
    run = lambda x: circular(conv, axes)(x, conv.weight, conv.bias)  # noqa: E731
    turn = {"x": (0, 3), "y": (4, 0), "both": (4, 3)}[axes]
    torch.testing.assert_close(run(x.roll(turn, (2, 3))), run(x).roll(turn, (2, 3)))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(run(x)[inside], conv(x)[inside])


def test_a_seamless_model_turns_with_its_input_and_the_base_stays():
    of = model()
    x, t, text = latents(1, size=(8, 16)), torch.tensor([301.0]), null(of)[0][0]
    net = of.model.diffusion_model
    with torch.no_grad():
        before = net(x, t, context=text)
        clone = seamless_model(of, "x")
        clone.pre_run()
        there = net(x.roll(4, -1), t, context=text)
        here = net(x, t, context=text)
        clone.cleanup()
        after = net(x, t, context=text)
    torch.testing.assert_close(there, here.roll(4, -1), atol=1e-5, rtol=1e-4)
    assert not torch.equal(here, before)
    assert torch.equal(before, after)
    assert seamless_model(of, "none") is of


def test_a_seamless_model_reads_the_style_as_it_is():
    of, style, content = model(), styles(size=(8, 16)), latents(1, size=(8, 16))

    def read(which):
        with opened(which, null(of)) as (_, reader):
            about = References(reader, style, content)
            return [layer.k for layer in about.style_at(301)], about.content_at(301, [0])

    (plain, its_content), (kept, wrapped) = read(of), read(seamless_model(of, "x"))
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert not torch.equal(its_content[0], wrapped[0])


def test_tiled_decoding_sees_the_other_side():
    """A decoder that averages over the neighbouring pixels, with zeros beyond the edge."""

    def decode(z):
        return torch.nn.functional.avg_pool2d(z, 3, 1, 1).repeat_interleave(8, -1).repeat_interleave(8, -2)

    z = latents(1, size=(8, 20))
    tiles = wrapped_tiles(decode, "x", 8)
    out = tiles(z)
    assert out.shape == (1, 4, 64, 160)
    torch.testing.assert_close(tiles(z.roll(5, -1)), out.roll(40, -1))
    torch.testing.assert_close(out[..., 8:-8], decode(z)[..., 8:-8])
