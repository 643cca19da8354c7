"""The optical-flow error against its definition, written out pixel by pixel."""

import gc
import itertools
import math
import weakref
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes.flow import measure, report
from reelbrush.nodes.flow.conventions import CHOICES, convention
from reelbrush.nodes.flow.estimate import Flow, estimator
from reelbrush.nodes.flow.nodes_error import FlowErrorVideo
from reelbrush.nodes.flow.report import Report
from reelbrush.nodes.video.lazy_video import LazyVideo

from .scenes import exact, flickering, sample_scene, sliding, uniform

COMBINATIONS = [choice for choice in itertools.product(*CHOICES.values()) if "lpips" not in choice]
FRAMES, HEIGHT, WIDTH, DX, DY = 4, 10, 14, 2, -1


def error_by_loops(clip, stride, direction, norm, colours, mask, normaliser):
    """Whole-pixel motion (DX, DY) per frame: every index by hand."""
    n, h, w, _ = clip.shape
    dx, dy = DX * stride, DY * stride
    errors = []
    for t in range(n - stride):
        if direction == "previous to next":
            moved, still, ox, oy = clip[t], clip[t + stride], -dx, -dy
        else:
            moved, still, ox, oy = clip[t + stride], clip[t], dx, dy
        total, counted = 0.0, 0
        for y in range(h):
            for x in range(w):
                inside = 0 <= x + ox < w and 0 <= y + oy < h
                if mask == "valid only" and not inside:
                    continue
                counted += 1
                a = moved[min(max(y + oy, 0), h - 1), min(max(x + ox, 0), w - 1)]
                for c in range(3):
                    d = (a[c] - still[y, x, c]).item() * (255 if colours == "0-255" else 1)
                    total += (abs(d) if norm == "l1" else d * d) / 3
        error = total / (counted if normaliser == "counted pixels" else h * w)
        errors.append(math.sqrt(error) if norm == "rmse" else error)
    return sum(errors) / len(errors)


@pytest.fixture(scope="module")
def slid():
    return sliding(FRAMES, HEIGHT, WIDTH, DX, DY)


@pytest.mark.parametrize("choice", COMBINATIONS, ids=", ".join)
def test_whole_pixel_motion_with_its_exact_flow_has_no_error_at_all(slid, choice):
    clip, flow = slid
    rule = convention("custom", "1", *choice)
    if rule.mask == "valid only":
        assert measure.batch(clip, None, flow, rule, "").error == 0.0
    else:  # the rim is compared with what is not there
        assert measure.batch(clip, None, flow, rule, "").error > 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("choice", COMBINATIONS, ids=", ".join)
def test_a_planted_flicker_has_the_error_that_arithmetic_gives(slid, choice, stride):
    clip = flickering(slid[0], 0.1)
    flow = uniform(FRAMES, HEIGHT, WIDTH, DX, DY, stride)
    report = measure.batch(clip, None, flow, convention("custom", str(stride), *choice), "")
    assert report.error == pytest.approx(error_by_loops(clip, stride, *choice), rel=1e-5)


def test_known_numbers():
    """Every second frame is brighter by 0.1: anyone can check these."""
    clip = torch.full((4, 8, 8, 3), 0.4)
    clip[1::2] += 0.1
    flow = uniform(4, 8, 8, 2, 0)  # 6 of 8 columns stay in the frame
    expected = {("mse", "0-255"): 650.25, ("rmse", "0-255"): 25.5, ("l1", "0-1"): 0.1, ("mse", "0-1"): 0.01}
    for (norm, colours), value in expected.items():
        rule = convention("custom", "1", norm=norm, range=colours)
        assert measure.batch(clip, None, flow, rule, "").error == pytest.approx(value, rel=1e-5)
        share = 0.75**0.5 if norm == "rmse" else 0.75
        over_all = convention("custom", "1", norm=norm, range=colours, normaliser="all pixels")
        assert measure.batch(clip, None, flow, over_all, "").error == pytest.approx(value * share, rel=1e-5)


def test_a_flow_of_another_size_is_scaled():
    clip, _ = sliding(3, 24, 32, 4, 2)
    half = uniform(3, 12, 16, 2, 1)
    assert measure.batch(clip, None, half, convention(), "").error == pytest.approx(0, abs=1e-6)


# -- the report ------------------------------------------------------------------------------------


def test_pairs_across_a_cut_are_listed_and_left_out():
    first, _ = sliding(3, 24, 32, seed=0)
    second, _ = sliding(3, 24, 32, seed=5)
    clip = torch.cat([first, second])
    whole = uniform(6, 24, 32, 2, 1)
    cut = Flow.of(whole.forward, whole.backward, cuts=(3,))
    with_cut = measure.batch(clip, None, cut, convention(), "")
    assert with_cut.error == 0 and [str(p) for p in with_cut.pairs if p.cut] == ["2>3"]
    assert "2>3,1," in with_cut.table() and "cuts before frame: 3" in with_cut.table()
    assert measure.batch(clip, None, whole, convention(), "").error > 100


def test_the_table_says_the_convention_and_every_pair():
    clip, flow = sliding(4, 16, 20)
    report = measure.batch(flickering(clip), None, flow, convention("Rerender_A_Video"), "")
    lines = report.table().splitlines()
    for words in (
        "preset: Rerender_A_Video",
        "range: 0-1",
        "normaliser: all pixels",
        "flow: exact",
        "strides: 1",
    ):
        assert f"# {words}" in lines
    rows = [line for line in lines if not line.startswith("#")]
    assert rows[0] == "pair,stride,error,valid share,cut"
    assert [row.split(",")[0] for row in rows[1:]] == ["0>1", "1>2", "2>3", "mean"]
    assert float(rows[-1].split(",")[2]) == pytest.approx(report.error, rel=1e-5)


def test_a_pair_without_a_valid_pixel_does_not_count():
    clip = torch.rand(3, 8, 8, 3)
    away = uniform(3, 8, 8, 30, 0)
    report = measure.batch(clip, None, away, convention(), "")
    assert math.isnan(report.error) and report.worst is None and "nan" in report.table()


def test_a_stride_beyond_the_clip_is_rejected_and_one_frame_has_no_error(home):
    frames = torch.rand(5, 40, 40, 3)
    clip, rule = LazyVideo.from_frames(frames, 12), convention(strides="1,8")
    for run in (
        lambda: measure.batch(frames, frames, None, rule, "dis-fast"),
        lambda: measure.stream(clip, clip, rule, "dis-fast"),
    ):
        with pytest.raises(
            ValueError, match=r"5 frames, so it has no pair at stride 8: give strides below 5"
        ):
            run()
    one = measure.batch(frames[:1], frames[:1], None, convention(), "dis-fast")
    assert math.isnan(one.error)


def test_several_strides_are_averaged_and_shown_apart():
    scene = sample_scene(4)
    small = scene.frames[:, ::4, ::4].contiguous()
    stylized = flickering(small)
    report = measure.batch(stylized, small, None, convention(strides="1,2"), "dis-fast")
    assert [p.stride for p in report.pairs].count(2) == 2
    assert report.error == pytest.approx((report.mean(1) + report.mean(2)) / 2)


def test_a_stream_measures_what_a_batch_measures(home):
    scene = sample_scene(4)
    content, stylized = scene.frames[:, ::4, ::4].contiguous(), flickering(scene.frames)[:, ::2, ::2]
    eight = lambda x: x.mul(255).round().div(255)  # noqa: E731
    content, stylized = eight(content), eight(stylized.contiguous())
    rule = convention(strides="1,2")
    batch = measure.batch(stylized, content, None, rule, "dis-fast")
    clips = (LazyVideo.from_frames(x, Fraction(24)) for x in (stylized, content))
    stream = measure.stream(*clips, rule, "dis-fast")
    assert stream.pairs == batch.pairs and stream.frames == 4
    torch.testing.assert_close(stream.heat(), batch.heat(), equal_nan=True)


class Counted:
    """An estimator that counts the pairs."""

    def __init__(self, method):
        self.inner, self.pairs = estimator(method), 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def both(self, a, b):
        self.pairs += 1
        return self.inner.both(a, b)


def test_two_nodes_on_one_clip_estimate_its_motion_once(home, monkeypatch):
    made = []
    monkeypatch.setattr(report, "estimator", lambda method: made.append(Counted(method)) or made[-1])
    frames = sample_scene(4).frames[:, ::4, ::4].contiguous()
    content, other = (LazyVideo.from_frames(frames, 24) for _ in range(2))
    clips = [LazyVideo.from_frames(flickering(frames, a), 24) for a in (0.05, 0.1)]
    first = measure.stream(clips[0], content, convention(strides="1,2"), "dis-fast")
    again = measure.stream(clips[0], content, convention(strides="1,2"), "dis-fast")
    assert [m.pairs for m in made] == [5, 0] and first.pairs == again.pairs
    measure.stream(clips[1], content, convention(), "dis-fast")
    measure.stream(clips[1], content, convention(), "dis-ultrafast")
    measure.stream(clips[1], other, convention(), "dis-fast")
    assert [m.pairs for m in made] == [5, 0, 0, 3, 3]
    kept = weakref.ref(content)
    del content
    gc.collect()
    assert kept() is None, "the flows do not keep the clip"


def test_another_version_is_measured_in_the_same_pass_and_drawn_on_the_same_axes(home):
    frames = sample_scene(4).frames[:, ::4, ::4].contiguous()
    content, calm, loud = (LazyVideo.from_frames(flickering(frames, a), 24) for a in (0.0, 0.02, 0.1))
    inputs = {"stylized": calm, "content": content, "method": "dis-fast"}
    error, plot, _, table = FlowErrorVideo().measure(**inputs, other=loud)
    alone, single, _, _ = FlowErrorVideo().measure(**inputs)
    assert error == alone
    assert [float(line.split(",")[2]) for line in table.splitlines() if line.startswith("mean")] == [
        pytest.approx(measure.stream(clip, content, convention(), "dis-fast").error, rel=1e-4)
        for clip in (calm, loud)
    ]
    assert plot.shape != single.shape, "curves and bars"


def test_the_heat_map_is_hot_where_the_flicker_is():
    clip, flow = sliding(5, 32, 40, 0, 0)
    clip[1::2, 8:16, 10:20] += 0.2
    heat = measure.batch(clip, None, flow, convention(), "").heat()
    assert heat[8:16, 10:20].min() > 1000 and heat[20:].max() == 0


def test_the_best_version_is_the_calmest():
    scene = sample_scene(4)
    small = scene.frames[:, ::4, ::4].contiguous()
    clips = measure.named([flickering(small, 0.1), small, None, flickering(small, 0.02)], "loud,,x,soft")
    assert list(clips) == ["loud", "B", "soft"]
    reports = measure.versions(clips, small, convention(), "dis-fast")
    assert measure.best(reports) == "B"
    errors = [report.error for report in reports]
    assert errors[0] > errors[2] > errors[1]
    assert measure.summary(reports).count("\nloud,") == 1


def test_exact_flow_sees_through_the_sample():
    scene = sample_scene(4)
    calm = measure.batch(scene.frames, None, exact(scene), convention(), "").error
    loud = measure.batch(flickering(scene.frames), None, exact(scene), convention(), "").error
    assert calm < 60 and loud > 5 * calm


def test_an_empty_report_says_so():
    empty = Report(convention())
    assert math.isnan(empty.error) and empty.table().startswith("# preset: custom")
