"""The loss terms of training against literal formulas."""

import torch
from torch.nn import functional

from reelbrush.nodes.stya2k import losses

LAYERS = ("a", "b")


def features(seed, n=2):
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.rand(n, 8, 16, 16, generator=g, dtype=torch.float64),
        "b": torch.rand(n, 16, 8, 8, generator=g, dtype=torch.float64) * 5,
    }


def test_eq_16_is_the_official_sum():
    out, style = features(0), features(1)
    want = 0.0
    for layer in LAYERS:
        for n in range(2):
            for c in range(out[layer].shape[1]):
                x, y = out[layer][n, c].flatten(), style[layer][n, c].flatten()
                miss = (x.mean() - y.mean()) ** 2
                miss = miss + ((x.var() + 1e-5) ** 0.5 - (y.var() + 1e-5) ** 0.5) ** 2
                want += miss / (2 * out[layer].shape[1])
    torch.testing.assert_close(losses.moments_loss(out, style, LAYERS, "official"), want)


def test_relative_losses_do_not_depend_on_a_networks_scale():
    out, style = features(0), features(1)
    loud = [{k: v * 100 for k, v in f.items()} for f in (out, style)]
    for term in (losses.moments_loss, losses.gram_loss):
        torch.testing.assert_close(term(*loud, LAYERS), term(out, style, LAYERS), rtol=1e-3, atol=0)


def test_the_gram_term_is_the_relative_distance_of_second_moments():
    out, style = features(0), features(1)
    want = 0.0
    for layer in LAYERS:
        a, b = (
            torch.einsum("ncij,ndij->ncd", f[layer], f[layer]) / f[layer][0, 0].numel() for f in (out, style)
        )
        want += sum((a[n] - b[n]).norm() / b[n].norm() for n in range(2)) / 2
    torch.testing.assert_close(losses.gram_loss(out, style, LAYERS), want)


def test_the_content_term_ignores_palettes():
    content = features(0)
    other = {k: v * 3 + 1 for k, v in content.items()}
    assert losses.content_loss(other, content, LAYERS) < 1e-4
    assert losses.content_loss(features(1), content, LAYERS) > 1


def test_eq_16_as_the_paper_writes_it():
    out, style = features(0), features(1)
    want = 0.0
    for layer in LAYERS:
        for n in range(2):
            x, y = out[layer][n].flatten(1), style[layer][n].flatten(1)
            deviations = [(z.var(1) + 1e-5) ** 0.5 for z in (x, y)]
            for a, b in ((x.mean(1), y.mean(1)), deviations):
                want += sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 / 2
    torch.testing.assert_close(losses.moments_loss(out, style, LAYERS, "paper"), want)


def standardized(x):
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()


def transferred(q, k, v, side, extra):
    """All-to-key attention without parameters, one head, region by region: eqs. 7-13."""
    out, (height, width) = torch.zeros_like(v), q.shape[-2:]
    cells = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]

    def part(t, n, cell):
        return t[n, :, cell[0] : cell[0] + side, cell[1] : cell[1] + side].flatten(1)

    for n in range(len(q)):
        keys, values = [], []
        for cell in cells:
            share = torch.sigmoid(part(k, n, cell).mean(1) @ part(k, n, cell))
            for t, into in ((k, keys), (v, values)):
                points = part(t, n, cell)
                into.append((points.mean(1) + (share * points).sum(1)) / (side * side + extra))
        for y, x in cells:
            here = part(q, n, (y, x))
            spread = (here.T @ torch.stack(keys, 1)).softmax(1) @ torch.stack(values)
            best = max(cells, key=lambda c: float((here * part(k, n, c)).sum()))
            near = (here.T @ part(k, n, best)).softmax(1) @ part(v, n, best).T
            out[n, :, y : y + side, x : x + side] = (spread + near).T.reshape(-1, side, side)
    return out


def test_eq_17_is_the_official_form():
    """All shallower layers enter the keys, regions of the given sizes, one head; n + 1, unscaled."""
    out, content, style = features(0), features(1), features(2)
    want = 0.0
    for layer in LAYERS:
        names = LAYERS[: LAYERS.index(layer) + 1]
        size = out[layer].shape[-2:]
        q, k = (
            torch.cat([standardized(functional.interpolate(f[n], size)) for n in names], 1)
            for f in (content, style)
        )
        target = transferred(q, k, style[layer], 4, 1) + content[layer]
        want += functional.mse_loss(out[layer], target)
    got = losses.match_loss(out, content, style, LAYERS, sizes=(4, 4), heads=1, equations="official")
    torch.testing.assert_close(got, want)


def test_eq_17_as_the_paper_writes_it():
    """Keys of one layer, the number of regions a side, n, and the norm of the difference."""
    out, content, style = features(0), features(1), features(2)
    want = 0.0
    for layer, count in (("a", 2), ("b", 4)):
        side = out[layer].shape[-1] // count
        q, k = standardized(content[layer]), standardized(style[layer])
        difference = out[layer] - transferred(q, k, style[layer], side, 0) - content[layer]
        want += sum(d.square().sum().sqrt() for d in difference) / 2
    got = losses.match_loss(out, content, style, LAYERS, sizes=(2, 4), heads=1, equations="paper")
    torch.testing.assert_close(got, want)


def test_a_moved_picture_that_is_stylized_alike_costs_nothing():
    x = torch.rand(1, 3, 24, 24)
    motion = losses.MovedFrame.affine(x, torch.tensor([[[1.02, 0.01, 0.05], [-0.01, 0.98, -0.03]]]))
    assert losses.temporal_loss(x, motion.frame, motion) < 1e-10
    assert losses.temporal_loss(x, x, motion) > 1e-3


def test_an_affine_motion_is_torchs():
    x, theta = torch.rand(1, 3, 20, 30), torch.tensor([[[0.95, 0.02, 0.01], [0.0, 0.97, 0.0]]])
    grid = functional.affine_grid(theta, list(x.shape), align_corners=True)
    want = functional.grid_sample(x, grid, padding_mode="border", align_corners=True)
    torch.testing.assert_close(losses.MovedFrame.affine(x, theta).frame, want, rtol=0, atol=1e-4)


def test_the_sliced_term_is_zero_for_the_same_points_in_another_order_and_one_shift_for_a_shift():
    style = torch.rand(2, 6, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(2))
    shuffled = style.flatten(2)[..., order].view_as(style)
    assert losses.sliced_distance(shuffled, style, directions) < 1e-12
    want, shift = 0.0, torch.arange(6, dtype=torch.float64) / 10
    for n in range(2):
        moved = spread = 0.0
        for k in range(5):
            along = directions[:6, k] / directions[:6, k].norm()
            line = torch.einsum("c,chw->hw", along, style[n])
            moved += float(abs(along @ shift)) / 5
            spread += float((line - line.mean()).abs().mean()) / 5
        want += moved / spread / 2
    made = losses.sliced_distance(style + shift[:, None, None], style, directions)
    torch.testing.assert_close(float(made), want)


def test_the_mean_of_two_colours_is_as_wrong_as_either():
    """Half black, half white: grey has the right mean, the sliced term is not content with it."""
    style = torch.zeros(1, 3, 16, 16)
    style[..., 8:] = 1
    directions = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    flat = [losses.palette_loss(torch.full_like(style, level), style, directions) for level in (0.0, 0.5)]
    torch.testing.assert_close(flat[0], flat[1])
    assert losses.palette_loss(style.flip(-1), style, directions) < 1e-5


def test_the_edge_term_sees_silhouettes_and_no_palettes():
    content = torch.zeros(1, 3, 32, 32)
    content[..., 10:22, 8:20] = 0.8
    other = 1 - content * torch.tensor([0.9, 0.4, 0.6])[:, None, None]
    blurred = functional.avg_pool2d(functional.pad(content, (3, 3, 3, 3), mode="replicate"), 7, 1)
    assert losses.edge_loss(other, content) < 0.15
    assert losses.edge_loss(blurred, content) > 0.5
    assert losses.edge_loss(content.roll(4, -1), content) > 0.5


def test_bounded_terms_say_the_same_of_two_pictures_whichever_is_the_style():
    bright, dark = features(0), {k: v / 20 for k, v in features(1).items()}
    for term in (losses.moments_loss, losses.gram_loss):
        there, back = term(bright, dark, LAYERS, bounded=True), term(dark, bright, LAYERS, bounded=True)
        torch.testing.assert_close(there, back)
        assert term(bright, dark, LAYERS) > 5 * term(dark, bright, LAYERS)
