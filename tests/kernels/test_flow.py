"""Warp, validity and warping error against their definitions, written out pixel by pixel."""

import math

import pytest
import torch

from reelbrush.kernels import flow as kernel

SIZES = [
    pytest.param(9, 13, id="odd and not square"),
    pytest.param(1, 7, id="one row"),
    pytest.param(6, 1, id="one column"),
    pytest.param(1, 1, id="one pixel"),
    pytest.param(32, 24, id="taller than wide"),
]


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def read(image, x, y):
    """Bilinear image [C, H, W] at a point, edges repeated: the textbook formula."""
    h, w = image.shape[-2:]
    x, y = min(max(x, 0.0), w - 1.0), min(max(y, 0.0), h - 1.0)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
    a, b = x - x0, y - y0
    top = image[:, y0, x0] * (1 - a) + image[:, y0, x1] * a
    bottom = image[:, y1, x0] * (1 - a) + image[:, y1, x1] * a
    return top * (1 - b) + bottom * b


def warp_by_loops(image, flow):
    h, w = flow.shape[-2:]
    out = torch.empty(image.shape[0], h, w)
    for y in range(h):
        for x in range(w):
            out[:, y, x] = read(image, x + flow[0, y, x].item(), y + flow[1, y, x].item())
    return out


def valid_by_loops(f, b, absolute, relative):
    h, w = f.shape[-2:]
    out = torch.zeros(h, w, dtype=torch.bool)
    for y in range(h):
        for x in range(w):
            u = f[:, y, x]
            tx, ty = x + u[0].item(), y + u[1].item()
            back = read(b, tx, ty)
            sizes = u.square().sum() + back.square().sum()
            round_trip = (u + back).square().sum() < relative * sizes + absolute
            on_frame = 0 <= tx <= w - 1 and 0 <= ty <= h - 1
            dx = (f[:, y, min(x + 1, w - 1)] - f[:, y, max(x - 1, 0)]) / 2
            dy = (f[:, min(y + 1, h - 1), x] - f[:, max(y - 1, 0), x]) / 2
            steep = dx.square().sum() + dy.square().sum() > 0.01 * u.square().sum() + 0.002
            out[y, x] = round_trip and on_frame and not steep
    return out


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("fn", [kernel.warp, kernel.warp_reference], ids=["fast", "reference"])
def test_a_warp_reads_each_pixel_where_the_flow_points(fn, h, w):
    images, flow = draw(2, 3, h, w), draw(2, 2, h, w, seed=1, scale=3.0)
    flow[1, :, : h // 2] = flow[1, :, : h // 2].round()  # whole and fractional motion in one frame
    expected = torch.stack([warp_by_loops(i, f) for i, f in zip(images, flow, strict=True)])
    torch.testing.assert_close(fn(images, flow), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-5, 1), (40, 0)])
def test_whole_pixel_motion_copies_pixels_exactly(mode, dx, dy):
    images = draw(1, 3, 17, 31)
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, 17, 31)
    y = (torch.arange(17) + dy).clamp(0, 16)
    x = (torch.arange(31) + dx).clamp(0, 30)
    assert torch.equal(kernel.warp(images, flow, mode=mode), images[:, :, y][..., x])


def test_gradients_flow_into_the_images():
    images = draw(1, 2, 6, 8).requires_grad_()
    flow = draw(1, 2, 6, 8, seed=2)
    flow[..., :4] = 1.0
    (fast,) = torch.autograd.grad(kernel.warp(images, flow).square().sum(), images)
    (slow,) = torch.autograd.grad(kernel.warp_reference(images, flow).square().sum(), images)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_validity_is_the_three_conditions(h, w):
    smooth = draw(2, 2, h, w, seed=3, scale=0.05) + torch.tensor([1.5, -0.5]).view(1, 2, 1, 1)
    back = -smooth + draw(2, 2, h, w, seed=4, scale=0.4)
    seen = kernel.validity(smooth, back, absolute=0.5, relative=0.01)
    expected = torch.stack([valid_by_loops(f, b, 0.5, 0.01) for f, b in zip(smooth, back, strict=True)])
    assert torch.equal(seen, expected)
    if h * w > 100:
        assert 0.1 < expected.float().mean() < 0.95  # the case decides something


def test_resting_pixels_on_the_rim_are_valid():
    still = torch.zeros(1, 2, 8, 10)
    assert kernel.validity(still, still).all()


def test_a_pixel_that_leaves_the_frame_is_invalid():
    flow = torch.zeros(1, 2, 8, 10)
    flow[:, 0] = 2.0
    valid = kernel.validity(flow, -flow)[0]
    assert valid[:, :8].all() and not valid[:, 8:].any()


def test_resized_flow_points_to_the_same_place():
    flow = torch.tensor([4.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 12, 20)
    double = kernel.resize_flow(flow, 24, 10)
    assert double.shape == (1, 2, 24, 10)
    torch.testing.assert_close(double[0, :, 3, 3], torch.tensor([2.0, -4.0]))
    assert kernel.resize_flow(flow, 12, 20) is flow


def test_a_smaller_mask_is_valid_only_where_all_it_covers_is():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 5] = False
    small = kernel.resize_weights(mask, 4, 4)
    assert small.dtype == torch.bool and not small[0, 1, 2] and small[0, 3, 0]


@pytest.mark.parametrize("norm", ["mse", "rmse", "l1"])
@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize("weighted", [None, "counted", "all"])
def test_the_warping_error_is_its_formula(norm, scale, weighted):
    a, b = draw(3, 3, 5, 7).double(), draw(3, 3, 5, 7, seed=1).double()
    weights = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(2)).round().double()
    weights[1] = torch.rand(5, 7, generator=torch.Generator().manual_seed(3))  # soft weights too
    per_pixel = kernel.difference(a, b, norm=norm, scale=scale)
    seen = kernel.warping_error(
        per_pixel, None if weighted is None else weights, norm=norm, over_all=weighted == "all"
    )
    for n in range(3):
        total = count = 0.0
        for y in range(5):
            for x in range(7):
                weight = 1.0 if weighted is None else weights[n, y, x].item()
                for c in range(3):
                    d = scale * (a[n, c, y, x] - b[n, c, y, x]).item()
                    total += weight * (abs(d) if norm == "l1" else d * d) / 3
                count += weight
        expected = total / (count if weighted == "counted" else 35)
        expected = math.sqrt(expected) if norm == "rmse" else expected
        assert seen[n].item() == pytest.approx(expected, rel=1e-9)


def test_no_valid_pixel_is_not_an_error_of_zero():
    per_pixel, none = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    assert kernel.warping_error(per_pixel, none).isnan().all()
    assert kernel.warping_error(per_pixel, none, over_all=True).item() == 0


def test_wrong_shapes_are_rejected():
    with pytest.raises(ValueError, match="resize the flow"):
        kernel.warp(draw(1, 3, 8, 8), draw(1, 2, 4, 8))
    with pytest.raises(ValueError, match=r"images \[N, C, H, W\]"):
        kernel.warp(draw(1, 8, 8, 3), draw(1, 8, 8, 2))
    with pytest.raises(ValueError, match="none of mse"):
        kernel.difference(draw(1, 3, 4, 4), draw(1, 3, 4, 4), norm="l3")
