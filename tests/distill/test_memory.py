"""Gradients within memory: measuring the graph, recomputing, splitting the frames of a call."""

import logging

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.distill import optimize
from reelbrush.nodes.distill.guided import Guide, GuidedRun, seeded
from reelbrush.nodes.distill.optimize import DistillRecipe, distill

from ..allocations import Allocations
from .small import contents, latents, model, null, references, styles

LAYERS = "2, 4-6"  # others are between them


def read(refs, z):
    return refs.reader(z.requires_grad_(), 201, "qo", grad=True)


def test_recomputing_gives_the_same_gradient_from_a_third_of_the_graph():
    content, found, kept = contents(size=(32, 32)), [], []
    for recompute in (False, True):
        with references(model(), content=content, recompute=recompute, layers=LAYERS) as refs:
            kept.append(host.graph_bytes(lambda refs=refs: read(refs, content.clone())))
            style = refs.style_at(201)
            found.append(optimize.gradient(refs, style, content, 201, DistillRecipe(), range(1))[1])
    assert torch.equal(*found)
    assert float(found[0].abs().max()) > 1e-4
    assert kept[1] < 0.35 * kept[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_size_of_the_graph_is_estimated_from_small_latents(recompute):
    """Within 3% of what is really in use after an evaluation, also for sizes that no level divides."""
    with references(model(), recompute=recompute) as refs:
        estimate = refs.reader.graph_size(contents(), 201)
        for size, frames in (((64, 48), 1), ((40, 72), 3), ((50, 34), 1)):
            z = latents(frames, 5, size=size)
            with Allocations() as seen:
                features = read(refs, z)
                held = seen.used
                del features  # frees the graph: no cycle keeps it
                held -= seen.used
            guess = estimate.fixed + estimate.per_pixel * z[:, 0].numel()
            assert guess == pytest.approx(held, rel=0.03)


def test_free_memory_decides_on_recomputing_also_for_a_given_number_of_frames(monkeypatch):
    with references(model()) as refs:
        z, reader = contents(8), refs.reader
        reader.recomputation.on = False
        kept = reader.graph_size(z, 1)
        reader.recomputation.on = True
        again = reader.graph_size(z, 1)

        def planned(graph, frames, wanted):
            room = 1.01 * (graph.fixed + graph.per_pixel * frames * z[0, 0].numel()) / host.GRAPH_SHARE
            monkeypatch.setattr(host, "free_memory", lambda where=None: room)
            return reader.frames_per_call(z, 1, wanted), reader.recomputation.on

        assert planned(kept, 8, 0) == (8, False)
        assert planned(kept, 3, 0) == (3, False)
        assert planned(again, 2, 0) == (2, True)
        assert planned(again, 0, 0) == (1, True)
        assert planned(kept, 4, 4) == (4, False)
        assert planned(kept, 3, 4) == (4, True)
        assert planned(kept, 8, 100) == (100, False)


# -- out of memory ---------------------------------------------------------------------------------


def steps(limit, frames=4):
    """Three steps of a clip on a device with so many bytes, all frames in one call; the peak, too."""
    content = contents(frames, size=(16, 16)).double()
    with references(model(dtype=torch.float64), content=content, layers=LAYERS) as refs:
        with Allocations(limit) as seen:
            z = distill(refs, content, [601, 601, 1], DistillRecipe(frames_per_call=frames))
        return z, seen.peak, refs.reader


@pytest.fixture(scope="module")
def unlimited():
    with torch.inference_mode():
        return steps(float("inf"))


@pytest.mark.parametrize(
    ("share", "frames", "said"),
    [
        (0.8, None, ["computing activations again"]),
        (0.3, 2, ["computing activations again", "2 frames at a time"]),
        (0.2, 1, ["computing activations again", "2 frames at a time", "1 frames at a time"]),
    ],
)
def test_out_of_memory_recomputes_and_then_splits_the_frames(unlimited, caplog, share, frames, said):
    z, peak, _ = unlimited
    caplog.set_level(logging.INFO, logger="reelbrush")
    limited, most, reader = steps(share * peak)
    torch.testing.assert_close(limited, z, rtol=1e-9, atol=1e-9)
    assert most <= share * peak
    assert reader.recomputation.on
    assert reader.most_frames == frames
    assert [words in r.message for words, r in zip(said, caplog.records, strict=True)] == [True] * len(said)


def test_what_does_not_fit_at_all_is_said(unlimited):
    with pytest.raises(torch.OutOfMemoryError, match="128x128 pixels does not fit into memory, even when"):
        steps(0.03 * unlimited[1])


def test_a_guided_sampling_recomputes_after_an_out_of_memory_error():
    found = []
    for limit in (float("inf"), None):
        with references(model()) as refs:
            guide = Guide(styles(), null(model()), layers="last 6")
            base, recomputation = refs.reader.base, refs.reader.recomputation
            guided = GuidedRun(guide, base, contents(), seeded(0), recomputation)
            guided.frames_per_call = 1
            limit = limit or 0.75 * found[0][1]
            with Allocations(limit) as seen:
                found.append((guided(contents(size=(32, 32)), 1.0), seen.peak))
            assert recomputation.on is (limit < float("inf"))
    assert torch.equal(found[0][0], found[1][0])
