"""Patches: where they are cut, what the slant does, and what a person may write."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reelbrush.nodes.attnstyle import patches
from reelbrush.nodes.attnstyle.patches import cut, jitter, parse_scales, perspective_grid, share_out


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scales_are_read_as_they_are_written():
    assert parse_scales("global 1, intermediate 0.5,local 2") == {
        "global": 1,
        "intermediate": 0.5,
        "local": 2,
    }
    assert parse_scales("local 1, global 0") == {"local": 1}
    assert parse_scales("") == {}


@pytest.mark.parametrize("text", ["huge 1", "local", "local x", "local -1", "local 1, local 2", "local 1 2"])
def test_what_is_no_scale_is_named(text):
    with pytest.raises(ValueError, match="patch_scales has"):
        parse_scales(text)


def test_patches_are_shared_out():
    assert share_out(64, {"global": 1, "intermediate": 1, "local": 1}) == {
        "global": 8,
        "intermediate": 24,
        "local": 32,
    }
    assert share_out(10, {"local": 3}) == {"local": 10}
    assert min(share_out(1, {"global": 1, "local": 1}).values()) == 1


def test_a_plain_patch_of_the_patch_size_is_a_piece_of_the_picture():
    # a picture of 8x12 pixels, patches of half the short side: 4x4 pixels, looked at as 4x4
    x = torch.rand(1, 3, 8, 12, generator=seeded())
    torch.manual_seed(0)
    for seed in range(5):
        patch = cut(x, 1, 0.5, 4, seeded(seed), plain=True).images[0]
        again = seeded(seed)
        torch.randint(1, (1,), generator=again)
        u, v = (torch.rand(1, 2, generator=again) * 2 - 1)[0].double() * torch.tensor([1 - 4 / 12, 0.5])
        left, top = (u + 1) * 6 - 2, (v + 1) * 4 - 2
        i, j = torch.arange(4) + top, torch.arange(4) + left

        def at(y, xx):
            y0, x0 = int(y // 1), int(xx // 1)
            b, a = float(y - y0), float(xx - x0)
            y1, x1 = min(y0 + 1, 7), min(x0 + 1, 11)
            p = x[0].double()
            return (p[:, y0, x0] * (1 - a) + p[:, y0, x1] * a) * (1 - b) + (
                p[:, y1, x0] * (1 - a) + p[:, y1, x1] * a
            ) * b

        expected = torch.stack([torch.stack([at(y, xx) for xx in j], -1) for y in i], -2)
        torch.testing.assert_close(patch.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_whole_square_is_the_picture_itself():
    x = torch.rand(1, 3, 8, 8, generator=seeded())
    torch.testing.assert_close(cut(x, 1, 1.0, 8, seeded(), plain=True).images, x, atol=1e-6, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([(16, 16), (20, 33), (9, 40)]), st.sampled_from([1.0, 0.5, 0.25])
)
def test_no_patch_looks_beyond_the_picture(seed, size, side):
    """Coordinates as colors: every patch stays between the picture's first and last."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h) / (h - 1), torch.arange(w) / (w - 1), indexing="ij")
    ramp = torch.stack([x, y, torch.full_like(x, 0.5)])[None]
    original, patches.JITTER = patches.JITTER, 0.0
    try:
        drawn = cut(ramp, 3, side, 8, seeded(seed)).images
    finally:
        patches.JITTER = original
    assert drawn[:, 2].sub(0.5).abs().max() < 1e-4  # a rim that is made up would not be gray
    assert drawn[:, 0].amax() - drawn[:, 0].amin() > 0


def test_every_picture_gets_its_share():
    drawn = cut(torch.rand(3, 3, 16, 16), 9, 0.5, 8, seeded())
    assert drawn.images.shape == (9, 3, 8, 8)
    assert sorted(drawn.frame.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_perspective_maps_corners_onto_corners():
    size = 64  # samples lie half a step inside the corners
    corners = torch.tensor([[[-0.9, -0.8], [0.7, -1.0], [1.0, 0.6], [-0.6, 0.9]]])
    grid = perspective_grid(corners, size)[0]
    for (i, j), corner in zip(((0, 0), (0, -1), (-1, -1), (-1, 0)), corners[0], strict=True):
        assert (grid[i, j] - corner).abs().max() < 2.5 / size
    straight = perspective_grid(torch.tensor([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]]), 4)[0]
    torch.testing.assert_close(straight[0, :, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_a_seed_repeats_and_another_does_not():
    x = torch.rand(2, 3, 24, 24, generator=seeded(9))
    a, b, c = (cut(x, 4, 0.5, 12, seeded(s)).images for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_gradients_reach_the_pixels_and_only_those_that_are_seen():
    x = torch.rand(1, 3, 32, 32, generator=seeded()).requires_grad_()
    cut(x, 1, 0.25, 16, seeded()).images.sum().backward()
    seen = (x.grad.abs().sum(1) > 0).float().mean().item()
    assert 0 < seen < 0.12  # one patch of a sixteenth of the picture


def test_jitter_moves_gray_by_brightness_alone():
    gray = torch.full((5, 3, 4, 4), 0.5)
    out = jitter(gray, seeded())
    assert out.std(dim=(1, 2, 3)).max() < 1e-6
    assert 0.01 < (out.mean(dim=(1, 2, 3)) - 0.5).abs().max() <= 0.05 + 1e-6


def test_about_half_of_the_patches_are_mirrored_and_most_are_slanted():
    """Coordinates as colors: x runs to the left in a mirrored patch, and rows tilt under a slant."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    ramp = torch.stack([x, y, y * 0 + 0.5])[None]
    original, patches.JITTER = patches.JITTER, 0.0
    try:
        drawn = cut(ramp, 200, 0.5, 16, seeded()).images
        upright = cut(ramp, 20, 0.5, 16, seeded(), plain=True).images
    finally:
        patches.JITTER = original

    def slope(images):  # how far x runs from the left column to the right one
        return (images[:, 0, :, -1] - images[:, 0, :, 0]).mean(-1)

    def slant(images):  # rows of one height are level when seen from straight ahead
        return (images[:, 1, 8, -1] - images[:, 1, 8, 0]).abs()

    assert 0.4 < (slope(drawn) < 0).float().mean() < 0.6
    assert (slope(upright) > 0.4).all()
    assert (slant(drawn) > 0.01).float().mean() > 0.7
    assert slant(upright).max() < 1e-4


def test_jitter_gives_every_patch_its_own_colors():
    x = torch.tensor([0.7, 0.4, 0.2]).view(1, 3, 1, 1).expand(40, 3, 6, 6)
    out = jitter(x, seeded())
    saturation = (out[:, 0] - out[:, 2]).mean((1, 2))
    assert saturation.std() > 0.01
    assert saturation.min() > 0.5 * 0.9**2 * 0.9 and saturation.max() < 0.5 * 1.1**3
