"""Algorithm 1 on a small model: what it does to latents, and what it leaves alone."""

import gc

import pytest
import torch

from reelbrush.kernels.distill import distance, distance_reference, query_distance
from reelbrush.nodes import host
from reelbrush.nodes.diffusion.patching.layers import attention_layers
from reelbrush.nodes.distill import features, optimize, run
from reelbrush.nodes.distill.clip import Schedule, batches
from reelbrush.nodes.distill.optimize import DistillRecipe, References, distill, falling

from ..diffusion.tiny import LAYOUTS, conditioning, tiny_model
from .small import contents, latents, model, null, references, rows_seen, styles

SDXL = {  # its layout and two vectors, with fewer layers
    **LAYOUTS["sdxl"],
    "transformer_depth": (0, 0, 1, 1, 2, 2),
    "transformer_depth_output": (0, 0, 0, 1, 1, 1, 2, 2, 2),
    "transformer_depth_middle": 2,
}


@pytest.mark.parametrize("steps", [20, 50, 100, 200])
def test_timesteps_fall_as_the_official_scheduler_has_them(steps):
    assert falling(steps) == [1 + i * (1000 // steps) for i in reversed(range(steps))]


def test_timesteps_reach_the_top_for_any_number_of_steps():
    assert falling(300)[0] > 990
    assert falling(300)[-1] == 1
    assert falling(1) == [1]


def test_the_style_loss_falls_and_the_content_holds_as_far_as_it_weighs():
    content, distances, falls = contents(), [], []
    for weight in (0.0, 2.0):
        seen = []
        with references(model(), styles(), content) as refs:
            z = distill(refs, content, [1] * 6, DistillRecipe(content_weight=weight), report=seen.append)
        falls.append(seen[0].style - seen[-1].style)
        distances.append(float((z - content).norm()))
    assert falls[0] > 0.05 * seen[0].style
    assert falls[0] > falls[1]
    assert distances[0] > distances[1]


def test_the_gradient_is_that_of_the_weighted_losses():
    """Against differences along a direction; the ideal output is a constant, so it is kept fixed."""
    content, z, way = (x.double() for x in (contents(), latents(1, 7), 1e-5 * latents(1, 8)))
    with references(model(dtype=torch.float64), content=content) as refs:
        style = refs.style_at(301)
        losses, g = optimize.gradient(refs, style, z, 301, DistillRecipe(content_weight=0.5), range(1))
        here, ahead, behind = (refs.reader(x, 301, "qo") for x in (z, z + way, z - way))
        wanted = refs.content_at(301, range(1))

        def total(seen):
            together = zip(seen, here, style, wanted, strict=True)
            return sum(
                distance(f.heads("out"), still.heads("q"), s[:2]) + 0.5 * query_distance(f.heads("q"), c)
                for f, still, s, c in together
            )

        numeric = float((total(ahead) - total(behind)) / 2)
    assert len(here) == 6
    assert losses[0] > 0
    assert losses[1] > 0
    assert numeric == pytest.approx(float((g * way).sum()), rel=1e-3)


def test_frames_together_equal_frames_alone_and_share_the_style(monkeypatch):
    content, double = contents(3).double(), {"dtype": torch.float64}
    rows = rows_seen(monkeypatch)
    with references(model(**double), styles(2, **double), content) as refs:
        together = distill(refs, content, [401, 1], DistillRecipe(frames_per_call=3))
        assert rows == [(2, False), (3, False), (3, True)] * 2
        split = distill(refs, content, [401, 1], DistillRecipe(frames_per_call=2))
        alone = [
            distill(refs, content[i : i + 1], [401, 1], DistillRecipe(), frames=range(i, i + 1))
            for i in range(3)
        ]
    torch.testing.assert_close(split, together)
    torch.testing.assert_close(torch.cat(alone), together)


def test_without_a_content_weight_the_content_costs_nothing(monkeypatch):
    rows = rows_seen(monkeypatch)
    with references(model(), styles(), contents()) as refs:
        distill(refs, contents(), [1], DistillRecipe(content_weight=0.0))
    assert rows == [(1, False), (1, True)]


def test_the_model_is_as_before_also_after_an_error():
    of = model()
    net = of.model.diffusion_model
    before = {name: p.clone() for name, p in net.named_parameters()}
    own = {id(m): set(vars(m)) for m in net.modules()}
    with pytest.raises(ZeroDivisionError), features.opened(of, null(of)):
        1 / 0  # noqa: B018
    with torch.inference_mode(), references(of) as refs:
        distill(refs, contents(), [1], DistillRecipe())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert {id(m): set(vars(m)) for m in net.modules()} == own


def test_a_style_is_kept_for_later_calls_as_far_as_memory_allows(monkeypatch):
    rows = rows_seen(monkeypatch)
    with references(model()) as refs:
        first = refs.style_at(301)
        size = sum(s.k.nbytes + s.v.nbytes for s in first)
        refs.memory = size + 1
        refs.style_at(301), refs.style_at(301), refs.style_at(1), refs.style_at(1)
    assert len(rows) == 1 + 1 + 2


def test_a_clip_keeps_the_style_at_the_timesteps_that_it_reads_again(monkeypatch):
    """Defaults: 200 steps for the first frame, 60 for the others. Memory for 30 timesteps is enough."""
    frames, schedule = 4, Schedule(200, 60)
    reads = run.style_reads(batches(frames, (), 1, True), schedule)
    assert len({t for t, count in reads.items() if count > 1}) == 30
    rows = rows_seen(monkeypatch)
    with references(model()) as refs:
        size = sum(s.k.nbytes + s.v.nbytes for s in refs.style_at(2.0))
        refs.memory, refs.reads = 30 * size, reads
        del rows[:]
        for batch in batches(frames, (), 1, True):
            for t in dict.fromkeys(schedule.timesteps(batch.warm)):
                refs.style_at(t)
    cold, again = (set(schedule.timesteps(w)) for w in (False, True))
    assert len(rows) == len(cold | again)  # version 0.1 read 21 of the 30 again for every warm frame


# -- masks -----------------------------------------------------------------------------------------


def halves(size, axis, frames=1):
    mask = torch.zeros(frames, *size)
    mask.narrow(axis + 1, 0, size[axis] // 2).fill_(1.0)
    return mask


def test_each_layer_sees_the_masks_at_its_own_size():
    """Target and style differ in size and shape; eq. 12 is taken literally, labels read every n-th pixel."""
    style, z = styles(size=(8, 16)).double(), contents(size=(16, 8)).double()
    of_style, of_target = halves((64, 128), 1), halves((128, 64), 0)
    with references(model(dtype=torch.float64), style, None, of_style, of_target) as refs:
        losses, _ = optimize.gradient(refs, refs.style_at(301), z, 301, DistillRecipe(), range(1))
        expected, sizes = 0.0, set()
        for f, s in zip(refs.reader(z, 301, "qkv"), refs.reader(style, 301, "kv"), strict=True):
            sizes.add(f.size)
            nth = 128 // f.size[0]
            labels = of_style[0, ::nth, ::nth].flatten(), of_target[:, ::nth, ::nth].flatten(1)
            q, k, v = (f.heads(name) for name in "qkv")
            expected += float(
                distance_reference(q, k, v, (s.heads("k"), s.heads("v")), labels=labels).detach()
            )
    assert sizes == {(16, 8), (8, 4)}
    assert float(losses[0]) == pytest.approx(expected)


def test_a_label_that_vanishes_at_an_attention_resolution_raises_an_error():
    style_mask = torch.zeros(1, 64, 96)
    style_mask[:, 1:5, 1:5] = 1.0  # in no token of the 4x6 layers
    with (
        references(model(), styles(), contents(), style_mask, halves((64, 96), 0)) as refs,
        pytest.raises(ValueError, match="label 1, which the style mask does not have at the 6x4"),
    ):
        distill(refs, contents(), [1], DistillRecipe())


def test_masks_that_do_not_fit_raise_an_error():
    with references(model(), styles(), contents(), halves((8, 12), 0)) as refs:
        with pytest.raises(ValueError, match="target_mask is missing"):
            refs.check(1)
        refs.target_mask = halves((8, 12), 0, 3)
        with pytest.raises(ValueError, match="3 pictures for 2 latents"):
            refs.check(2)


def test_a_late_frame_s_unknown_label_raises_an_error_at_the_first_step(monkeypatch):
    target = torch.cat([halves((8, 12), 0), halves((8, 12), 0), halves((8, 12), 0) / 2])
    rows = rows_seen(monkeypatch)
    with (
        references(model(), None, contents(3), halves((8, 12), 1), target) as refs,
        pytest.raises(ValueError, match=r"label 0\.502"),
    ):
        distill(refs, contents(3)[:1], [1, 1], DistillRecipe(), frames=range(1))
    assert len(rows) == 3  # the style, the first frame's content, the first frame


def test_a_mask_per_frame_stays_with_its_frame():
    content = contents(2).double()
    target = torch.cat([halves((8, 12), 0), 1 - halves((8, 12), 0)])
    with references(model(dtype=torch.float64), None, content, halves((8, 12), 1), target) as refs:
        both = distill(refs, content, [1, 1], DistillRecipe(frames_per_call=2))
        second = distill(refs, content[1:], [1, 1], DistillRecipe(), frames=range(1, 2))
    torch.testing.assert_close(both[1:], second)
    assert float((both[1] - both[0]).abs().max()) > 0.05


# -- what can go wrong -----------------------------------------------------------------------------


def overflowing(monkeypatch, below):
    """A UNet whose features overflow at timesteps below a limit, as half precision does."""
    look = features.FeatureReader.__call__

    def broken(self, z, timestep, names, *, grad=False):
        found = look(self, z, timestep, names, grad=grad)
        if grad and timestep < below:
            found[0].out = found[0].out * torch.inf
        return found

    monkeypatch.setattr(features.FeatureReader, "__call__", broken)


def test_a_nan_stops_the_run_with_an_error(monkeypatch):
    overflowing(monkeypatch, 500)
    with (
        references(model(), content=contents()) as refs,
        pytest.raises(RuntimeError, match=r"NaN at step 3 \(timestep 301\)"),
    ):
        distill(refs, contents(), [901, 601, 301, 1], DistillRecipe())


def test_or_the_last_good_latent_comes_back(monkeypatch):
    with references(model(), content=contents()) as refs:
        kept = []
        distill(refs, contents(), [901, 601], DistillRecipe(), report=lambda s: kept.append(s.z.clone()))
        overflowing(monkeypatch, 500)
        z = distill(refs, contents(), [901, 601, 301, 1], DistillRecipe(keep_last_good=True))
    assert torch.equal(z, kept[0])  # step 2's latent is the one whose loss was no number


def test_a_nan_at_the_first_step_leaves_a_warm_start_and_stops_a_cold_one(monkeypatch):
    overflowing(monkeypatch, 2000)
    z = contents()
    with references(model(), content=contents()) as refs:
        assert torch.equal(distill(refs, z, [901, 601], DistillRecipe(keep_last_good=True), warm=True), z)
        with pytest.raises(RuntimeError, match=r"NaN at step 1 .* before there was a good latent"):
            distill(refs, z, [901, 601], DistillRecipe(keep_last_good=True))
        with pytest.raises(RuntimeError, match="NaN at step 1 "):
            distill(refs, z, [901, 601], DistillRecipe(), warm=True)


def held():
    """Bytes of all tensors that are alive."""
    gc.collect()
    alive = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values())


def test_a_cancelled_run_frees_its_memory(monkeypatch):
    """Style features, graph, Adam's state: nothing outlives the run, while the model and inputs do."""
    of, calls = model(), []
    given = (of, null(of), {"samples": styles(3)}, DistillRecipe(frames_per_call=2))
    inputs = {"content": {"samples": contents(4)}, "schedule": Schedule(200)}

    def cancel():
        calls.append(held())
        if len(calls) == 5:
            raise KeyboardInterrupt

    before = held()
    monkeypatch.setattr(host, "check_interrupt", cancel)
    with pytest.raises(KeyboardInterrupt):
        run.optimized(*given, **inputs)
    assert len(calls) == 5  # two calls a step: in the third
    assert max(calls) > before + 10_000
    assert held() <= before


def test_sdxl_is_read_in_its_last_six_layers_with_the_null_text_s_pooled_vector():
    of, seen = tiny_model(SDXL), []
    z, style = latents(1, 1, size=(8, 12)), styles(size=(8, 12))
    (text, pooled), (_, other) = (conditioning(of, seed=s, tokens=4)[0] for s in (3, 4))
    with features.opened(of, [[text, pooled]]) as (_, reader):
        total = len(attention_layers(of))
        assert [layer.number for layer in reader.layers] == list(range(total - 6, total))
        pooled_only = features.FeatureReader(reader.base, [[text, other]])
        (q, *_), (moved, *_) = reader(z, 401, "q"), pooled_only(z, 401, "q")
        assert float((q.q - moved.q).abs().mean()) > 1e-3
        recipe = DistillRecipe(content_weight=0.0)
        distill(References(reader, style), z, [1] * 4, recipe, report=seen.append)
    assert seen[-1].style < 0.97 * seen[0].style


def test_a_cancelled_run_stops_within_a_step_and_releases_everything(monkeypatch):
    calls = []

    def cancel():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    of, steps = model(), []
    own = {id(m): set(vars(m)) for m in of.model.diffusion_model.modules()}
    monkeypatch.setattr(host, "check_interrupt", cancel)
    with pytest.raises(KeyboardInterrupt), references(of, content=contents()) as refs:
        distill(refs, contents(), falling(200), DistillRecipe(), report=steps.append)
    assert len(steps) == 2
    assert {id(m): set(vars(m)) for m in of.model.diffusion_model.modules()} == own
