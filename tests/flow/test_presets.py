"""Presets of the optical-flow error, each against the public code's arithmetic, written anew; and LPIPS."""

import math
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, max_pool2d, pad

from reelbrush.nodes.common.perceptual import INSTALLED, perceptual_path
from reelbrush.nodes.flow import measure
from reelbrush.nodes.flow.conventions import PRESETS, convention, soft_reliability
from reelbrush.nodes.flow.estimate import Flow

from .scenes import flickering, sliding, uniform


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


def valid_pixels(u, v):
    """Comes back, stays inside, and is not on a motion edge."""
    h, w = u.shape[-2:]
    keep = torch.ones(h, w)
    for y in range(h):
        for x in range(w):
            f = u[:, y, x]
            tx, ty = x + f[0].item(), y + f[1].item()
            back = read(v, tx, ty, "edge")
            dx = (u[:, y, min(x + 1, w - 1)] - u[:, y, max(x - 1, 0)]) / 2
            dy = (u[:, min(y + 1, h - 1), x] - u[:, max(y - 1, 0), x]) / 2
            lost = square(f + back) >= 0.01 * (square(f) + square(back)) + 0.5
            edge = square(dx) + square(dy) > 0.01 * square(f) + 0.002
            keep[y, x] = 0 <= tx <= w - 1 and 0 <= ty <= h - 1 and not lost and not edge
    return keep


PUBLIC = {  # weights, who is warped, colour scale, divided by the weights' sum, root
    "artistic-videos (Ruder)": (ruder_weights, "previous", 256.0, False, False),
    "fast_blind_video_consistency (Lai)": (lai_weights, "next", 1.0, True, False),
    "Rerender_A_Video": (rerender_weights, "previous", 1.0, False, False),
    "ReReVST": (valid_pixels, "previous", 1.0, False, True),
}


@pytest.mark.parametrize("preset", PUBLIC)
def test_a_preset_computes_what_its_code_computes(preset):
    weights, moved, scale, counted, root = PUBLIC[preset]
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
    assert report.error == pytest.approx(expected**0.5 if root else expected, rel=1e-4)


def test_cap_vstnet_is_rerevst_with_raft_at_strides_1_and_10():
    rule, near = convention("CAP-VSTNet", "3"), convention("ReReVST", "3")
    assert (rule.strides, near.strides) == ((1, 10), (3,))
    for name in ("direction", "norm", "range", "mask", "normaliser", "rule"):
        assert getattr(rule, name) == getattr(near, name)
    assert rule.flow_method("dis-medium") == "raft-large" and near.flow_method("dis-medium") == "dis-medium"
    assert rule.flow_method("raft-small") == "raft-small"


def lpips_by_hand(a, b):
    """The ST-LPIPS map of two pictures [H, W, 3]: VGG-16 layer by layer, from the package's file."""
    weights = torch.load(perceptual_path(INSTALLED), map_location="cpu", weights_only=True)
    total = 0.0
    x = [(2 * p.permute(2, 0, 1)[None] - 1 - weights["scaling_layer.shift"]) for p in (a, b)]
    x = [p / weights["scaling_layer.scale"] for p in x]
    groups = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))
    for layer, numbers in enumerate(groups):
        for number in numbers:
            part = f"net.slice{layer + 1}."
            if number == numbers[0] and number:
                blur = weights[f"{part}{number - 1}.filt"]
                x = [pad(max_pool2d(p, 2, 1), (1, 1, 1, 1), mode="reflect") for p in x]
                x = [conv2d(p, blur, stride=2, groups=len(blur)) for p in x]
            weight, bias = (weights[f"{part}{number}.{kind}"] for kind in ("weight", "bias"))
            x = [conv2d(p, weight, bias, padding=1).relu() for p in x]
        unit = [p / (p.square().sum(1, keepdim=True).sqrt() + 1e-10) for p in x]
        apart = ((unit[0] - unit[1]).square() * weights[f"lin{layer}.model.1.weight"]).sum(1, keepdim=True)
        total = total + interpolate(apart, a.shape[:2], mode="bilinear", align_corners=False)
    return total[0, 0]


@pytest.mark.skipif(not find_spec("stlpips_pytorch"), reason="needs the package stlpips-pytorch")
def test_lpips_is_the_perceptual_distance_of_the_warped_frame():
    clip, flow = sliding(2, 64, 80, 4, 0)
    clip = flickering(clip, 0.1)
    warped = torch.cat([clip[0, :, :1].expand(-1, 4, -1), clip[0, :, :-4]], 1)  # 4 to the right
    with torch.no_grad():
        plain = lpips_by_hand(warped, clip[1]).mean().item()
        warped[:, :4] = clip[1, :, :4]  # what came in does not count
        masked = lpips_by_hand(warped, clip[1])[:, 4:].mean().item()
    assert plain > 0.02 and abs(plain - masked) > 1e-3
    for mask, wanted in (("all pixels", plain), ("valid only", masked)):
        rule = convention(norm="lpips", mask=mask)
        assert measure.batch(clip, None, flow, rule, "").error == pytest.approx(wanted, rel=1e-3)
    still = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))[:1].expand(2, -1, -1, -1)
    small = measure.batch(still, None, uniform(2, 5, 7, 0, 0), convention(norm="lpips"), "")
    assert small.error == 0


def test_the_soft_weights_take_any_size():
    for h, w in ((1, 1), (1, 6), (2, 2), (7, 3)):
        weights = soft_reliability(torch.zeros(1, 2, h, w), torch.zeros(1, 2, h, w))
        assert weights.shape == (1, h, w) and 0 <= weights.min() <= weights.max() <= 1


def test_every_preset_is_named_after_a_code():
    assert set(PRESETS) == {"custom", "CAP-VSTNet", *PUBLIC}
    assert all(convention(name).preset == name for name in PRESETS)
