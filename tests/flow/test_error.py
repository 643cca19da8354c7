"""The optical-flow error against its definition, written out pixel by pixel."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes.flow import measure
from reelbrush.nodes.flow.conventions import CHOICES, PRESETS, convention, soft_reliability
from reelbrush.nodes.flow.estimate import Flow
from reelbrush.nodes.flow.report import Report
from reelbrush.nodes.video.lazy_video import LazyVideo

from .scenes import exact, flickering, sample_scene, sliding, uniform

COMBINATIONS = list(itertools.product(*CHOICES.values()))
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


# -- presets: each against the public code's arithmetic, written anew ------------------------------


def read(field, x, y, outside):
    """Bilinear field [C, H, W] at a point; beyond it the edge ("edge") or nothing ("zero")."""
    h, w = field.shape[-2:]
    if outside == "zero" and not (0 <= x <= w - 1 and 0 <= y <= h - 1):
        return torch.zeros(field.shape[0])
    x, y = min(max(x, 0.0), w - 1.0), min(max(y, 0.0), h - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1, a, b = min(x0 + 1, w - 1), min(y0 + 1, h - 1), x - x0, y - y0
    top = field[:, y0, x0] * (1 - a) + field[:, y0, x1] * a
    return top * (1 - b) + (field[:, y1, x0] * (1 - a) + field[:, y1, x1] * a) * b


def square(v):
    return v.square().sum().item()


def ruder_weights(u, v):
    h, w = u.shape[-2:]
    label = [[255.0] * w for _ in range(h)]
    for y in range(h):
        for x in range(w):
            f = u[:, y, x]
            tx, ty = x + f[0].item(), y + f[1].item()
            dx = (u[:, y, min(x + 1, w - 1)] - u[:, y, max(x - 1, 0)]) / 2
            dy = (u[:, min(y + 1, h - 1), x] - u[:, max(y - 1, 0), x]) / 2
            if not (math.floor(tx) >= 0 and math.floor(tx) + 1 < w and math.floor(ty) >= 0) or (
                math.floor(ty) + 1 >= h
            ):
                label[y][x] = 0.0
            elif (
                square(f + read(v, tx, ty, "edge"))
                >= 0.01 * (square(f) + square(read(v, tx, ty, "edge"))) + 0.5
            ):
                label[y][x] = -255.0
            elif square(dx) + square(dy) > 0.01 * square(f) + 0.002:
                label[y][x] = 0.0
    taps = [math.exp(-(i * i) / (2 * 0.8**2)) for i in range(-2, 3)]
    taps = [tap / sum(taps) for tap in taps]

    def smooth(line):
        n = len(line)
        mirror = [i if 0 <= i < n else -1 - i if i < 0 else 2 * n - 1 - i for i in range(-2, n + 2)]
        return [sum(taps[j] * line[mirror[x + j]] for j in range(5)) for x in range(n)]

    rows = [smooth(row) for row in label]
    both = list(zip(*(smooth(column) for column in zip(*rows, strict=True)), strict=True))
    return torch.tensor(both).clamp(0, 255) / 255


def lai_weights(u, v):
    h, w = u.shape[-2:]
    keep = torch.ones(h, w)
    for y in range(h):
        for x in range(w):
            f = u[:, y, x]
            back = read(v, x + f[0].item(), y + f[1].item(), "edge")
            dx = f - u[:, y, x + 1] if x + 1 < w else torch.zeros(2)
            dy = f - u[:, y + 1, x] if y + 1 < h else torch.zeros(2)
            lost = square(f + back) > 0.01 * (square(f) + square(back)) + 0.5
            keep[y, x] = not (lost or square(dx) + square(dy) > 0.01 * square(f) + 0.002)
    return keep


def rerender_weights(u, v):
    h, w = u.shape[-2:]
    keep = torch.ones(h, w)
    for y in range(h):
        for x in range(w):
            f = u[:, y, x]
            back = read(v, x + f[0].item(), y + f[1].item(), "zero")
            reach = 0.01 * (square(f) ** 0.5 + square(v[:, y, x]) ** 0.5) + 0.5
            keep[y, x] = square(f + back) ** 0.5 <= reach
    return keep


PUBLIC = {  # weights, who is warped, colour scale, divided by the weights' sum
    "artistic-videos (Ruder)": (ruder_weights, "previous", 256.0, False),
    "fast_blind_video_consistency (Lai)": (lai_weights, "next", 1.0, True),
    "Rerender_A_Video": (rerender_weights, "previous", 1.0, False),
}


@pytest.mark.parametrize("preset", PUBLIC)
def test_a_preset_computes_what_its_code_computes(preset):
    weights, moved, scale, counted = PUBLIC[preset]
    g = torch.Generator().manual_seed(1)
    h, w = 13, 18
    forward = torch.tensor([1.3, -0.6]).view(1, 2, 1, 1) + 0.01 * torch.randn(1, 2, h, w, generator=g)
    forward[..., 13:] += 0.8  # a motion edge
    backward = -forward + 0.01 * torch.randn(1, 2, h, w, generator=g)
    backward[..., 5:9, 3:7] += 1.2  # does not come back
    clip = torch.rand(2, h, w, 3, generator=g)
    u, v = (backward[0], forward[0]) if moved == "previous" else (forward[0], backward[0])
    source, target = (clip[0], clip[1]) if moved == "previous" else (clip[1], clip[0])
    weight = weights(u, v)
    assert 0.1 < weight.mean() < 0.9  # the case decides something
    total = 0.0
    for y in range(h):
        for x in range(w):
            drawn = read(source.permute(2, 0, 1), x + u[0, y, x].item(), y + u[1, y, x].item(), "edge")
            total += weight[y, x].item() * square((drawn - target[y, x]) * scale) / 3
    expected = total / (weight.sum().item() if counted else h * w)
    report = measure.batch(clip, None, Flow.of(forward, backward), convention(preset), "")
    assert report.error == pytest.approx(expected, rel=1e-4)


def test_the_soft_weights_take_any_size():
    for h, w in ((1, 1), (1, 6), (2, 2), (7, 3)):
        weights = soft_reliability(torch.zeros(1, 2, h, w), torch.zeros(1, 2, h, w))
        assert weights.shape == (1, h, w) and 0 <= weights.min() <= weights.max() <= 1


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


def test_every_preset_is_named_after_a_code():
    assert set(PRESETS) == {"custom", *PUBLIC}
    assert all(convention(name).preset == name for name in PRESETS)


def test_an_empty_report_says_so():
    empty = Report(convention())
    assert math.isnan(empty.error) and empty.table().startswith("# preset: custom")
