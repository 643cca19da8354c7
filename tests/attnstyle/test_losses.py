"""Every loss against its formula, written out as slowly as it reads."""

import math
import statistics

import pytest
import torch

from reelbrush.nodes.attnstyle.losses import (
    AlignmentLoss,
    ClassificationLoss,
    ConfidenceLoss,
    ContentLoss,
    LayoutLoss,
    PatchLoss,
    TemporalLoss,
    TotalVariationLoss,
    reject,
)
from reelbrush.nodes.attnstyle.patches import SIDES, cut
from reelbrush.nodes.attnstyle.prompts import TEMPLATES
from reelbrush.nodes.common.perceptual import VGG


def cosine_loss(judge, styl, cont, style, source):
    """1 - cos of the picture's way and the text's, for one picture, in plain numbers."""

    def prompt(word):
        rows = [judge.text([t.replace("{}", word)])[0].double() for t in TEMPLATES]
        mean = sum(rows) / len(rows)
        return mean / mean.norm()

    way = prompt(style) - prompt(source)
    way = way / way.norm()
    moved = judge.see(styl[None])[0][0].double() - judge.see(cont[None])[0][0].double()
    return 1 - float(moved @ way) / math.sqrt(float(moved @ moved) + 0.01**2)


def test_global_classification_is_the_directional_loss(judge, pictures):
    cont, styl = pictures(2), pictures(2, seed=4)
    aim = judge.aim("red", "a photo", cont)
    expected = sum(cosine_loss(judge, styl[i], cont[1 - i], "red", "a photo") for i in range(2)) / 2
    assert ClassificationLoss(aim)(styl, torch.tensor([1, 0])).item() == pytest.approx(expected, abs=1e-5)


def test_an_unchanged_picture_has_loss_one_and_a_gradient(judge, pictures):
    cont = pictures(1)
    styl = cont.clone().requires_grad_()
    loss = ClassificationLoss(judge.aim("blue", "a photo", cont))(styl, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss, styl)
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(slope).all()
    assert slope[:, 2].sum() < min(0, slope[:, 0].sum())  # more blue, before anything else


def test_confidence_is_the_log_share_of_the_style_text(judge, pictures):
    styl = pictures(2, seed=4)
    aim = judge.aim("red", "a photo", pictures(2), ["blue", "dark"])
    expected = 0.0
    for picture in styl:
        embedded = judge.see(picture[None])[0][0].double()
        scores = []
        for word in ("red", "a photo", "blue", "dark"):
            rows = [judge.text([t.replace("{}", word)])[0].double() for t in TEMPLATES]
            mean = sum(rows) / len(rows)
            scores.append(math.exp(judge.scale * float(embedded @ mean / mean.norm())))
        expected += -math.log(scores[0] / sum(scores)) / judge.scale / 2
    assert ConfidenceLoss(aim)(styl, torch.tensor([1, 0])).item() == pytest.approx(expected, abs=1e-6)


def test_other_texts_matter_to_confidence_alone(judge, pictures):
    cont, styl, frame = pictures(2), pictures(2, seed=4), torch.tensor([0, 1])
    few, many = judge.aim("red", "a photo", cont), judge.aim("red", "a photo", cont, ["blue"])
    assert ConfidenceLoss(many)(styl, frame) > ConfidenceLoss(few)(styl, frame) + 1e-3
    assert torch.equal(many.loss(styl, frame), few.loss(styl, frame))
    assert torch.equal(many.layout(styl), few.layout(styl))


def test_patch_classification_is_the_weighted_mean_over_scales_of_kept_losses(judge, pictures):
    cont, styl = pictures(2), pictures(2, seed=4)
    aim = judge.aim("red", "a photo", cont)
    scales = {"intermediate": 0.5, "local": 2.0}
    loss = PatchLoss(
        aim, judge.size, scales, patches=7, threshold=0.9, generator=torch.Generator().manual_seed(3)
    )
    got = loss(styl, torch.tensor([1, 0])).item()

    again = torch.Generator().manual_seed(3)
    expected, kept = 0.0, 0
    for name, weight in scales.items():
        drawn = cut(styl, loss.counts[name], SIDES[name], judge.size, again)
        each = [
            cosine_loss(judge, patch, cont[1 - int(i)], "red", "a photo")
            for patch, i in zip(drawn.images, drawn.frame, strict=True)
        ]
        kept += sum(v >= 0.9 for v in each)
        expected += weight / 2.5 * sum(v if v >= 0.9 else 0.0 for v in each) / len(each)
    assert got == pytest.approx(expected, abs=1e-5)
    assert 0 < kept < 7  # some rejected, some not


def test_rejected_patches_pull_no_more():
    losses = torch.tensor([0.2, 0.7, 0.9], requires_grad=True)
    kept = reject(losses, 0.7)
    kept.sum().backward()
    assert kept.tolist() == pytest.approx([0, 0.7, 0.9])
    assert losses.grad.tolist() == [0, 1, 1]


def test_alignment_is_the_mean_square_of_f_styl_minus_a():
    g = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randn(2, c, 3, 5, generator=g) for _ in range(2)) for c in (8, 16)]
    expected = 0.0
    for f_styl, aligned in pairs:
        squares = [
            (a - b) ** 2 for a, b in zip(f_styl.flatten().tolist(), aligned.flatten().tolist(), strict=True)
        ]
        expected += sum(squares) / len(squares) / len(pairs)
    assert AlignmentLoss()(pairs).item() == pytest.approx(expected, rel=1e-5)


def test_content_is_the_relative_distance_of_the_named_features(pictures):
    def network(x):
        return {"a": x * 3 + 1, "b": x[..., ::2, ::2] ** 2, "c": x.mean((2, 3)) - 7}

    cont, styl = pictures(3), pictures(2, seed=5)
    frame = torch.tensor([2, 0])
    expected = 0.0
    for name in ("b", "c"):  # the two deepest
        phi, goal = network(styl)[name], network(cont)[name]
        scale = goal.double().square().mean().sqrt()
        expected += float(((phi - goal[frame]).double() / scale).square().mean())
    assert ContentLoss(network, cont)(styl, frame).item() == pytest.approx(expected, rel=1e-5)


def test_content_looks_where_the_network_says(pictures):
    class Named:
        content = ("a",)

        def __call__(self, x):
            return {"a": x, "b": x * 0, "c": x * 0}

    cont = pictures(1)
    assert ContentLoss(Named(), cont)(cont + 0.1, torch.tensor([0])).item() == pytest.approx(
        0.01 / cont.square().mean().item(), rel=1e-4
    )


def test_clipstylers_content_layers_are_two_of_vgg(pictures):
    torch.manual_seed(0)
    vgg, cont, styl = VGG(last=2).freeze(), pictures(1, 48, 48), pictures(1, 48, 48, seed=4)
    expected = 0.0
    for name in ("relu4_2", "relu5_2"):
        a, b = vgg(styl)[name], vgg(cont)[name]
        expected += ((a - b).square().mean() / b.square().mean()).item()
    loss = ContentLoss(vgg, cont, "CLIPstyler (conv4_2, conv5_2)")
    assert loss(styl, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-4)
    assert ContentLoss(vgg, cont)(styl, torch.tensor([0])).item() != pytest.approx(expected, rel=1e-2)
    with pytest.raises(ValueError, match="need a VGG, but the perceptual network"):
        ContentLoss(VGG().freeze(), cont, "CLIPstyler (conv4_2, conv5_2)")


def test_layout_compares_standardised_maps(judge, pictures):
    cont, styl = pictures(2), pictures(2, seed=4)
    aim = judge.aim("red", "a photo", cont)
    frame = torch.tensor([1, 0])

    def relief(image):
        tokens = judge.see(image[None])[1][0].double()
        maps = []
        for word in aim.words.double():
            m = [float(t @ word) for t in tokens]
            mean = sum(m) / len(m)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in m) / len(m) + 1e-8)
            maps += [(v - mean) / (deviation + 0.01) for v in m]
        return maps

    expected = 0.0
    for i in range(2):
        a, b = relief(styl[i]), relief(cont[frame[i]])
        expected += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a) / 2
    assert LayoutLoss(aim, cont)(styl, frame).item() == pytest.approx(expected, rel=1e-4)


def test_layout_does_not_mind_how_much_a_text_fits(judge, pictures):
    cont = pictures(1)
    layout = LayoutLoss(judge.aim("red", "a photo", cont), cont)
    maps = layout.aim.layout(cont)
    torch.testing.assert_close(layout.relief(maps * 3 + 0.5), layout.content, atol=0.1, rtol=0.1)
    flat = layout.relief(torch.zeros(1, 2, 16, requires_grad=True))
    assert flat.abs().max() == 0


def test_total_variation_is_four_norms(pictures):
    x = pictures(2, 6, 7).double()
    expected = 0.0
    for image in x:
        for dy, dx in ((0, 1), (1, 0), (1, -1), (1, 1)):
            total = 0.0
            for c in range(3):
                for i in range(6):
                    for j in range(7):
                        if i + dy < 6 and 0 <= j + dx < 7:
                            total += float(image[c, i + dy, j + dx] - image[c, i, j]) ** 2
            expected += math.sqrt(total) / 2
    assert TotalVariationLoss()(x).item() == pytest.approx(expected, rel=1e-6)


def test_temporal_is_the_masked_error_after_warping_by_texture_and_by_tone(pictures):
    a, b = pictures(1, 8, 9), pictures(1, 8, 9, seed=2)
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 9).contiguous()
    valid = torch.zeros(1, 8, 9)
    valid[:, 3:, :6] = 1

    def mine(c, y, x):
        return float(a[0, c, y, x])

    def found(c, y, x):  # frame b along the flow; its border goes on outside
        return float(b[0, c, max(y - 2, 0), min(x + 1, 8)])

    def apart(c, y, x):
        return found(c, y, x) - mine(c, y, x)

    def around(side, c, i, j):
        rows = [min(max(i + y, 0), 7) for y in range(-3, 4)]
        columns = [min(max(j + x, 0), 8) for x in range(-3, 4)]
        return [side(c, y, x) for y in rows for x in columns]

    def varies(side, i, j):
        return sum(statistics.pvariance(around(side, c, i, j)) for c in range(3)) / 3

    places = [(i, j) for i in range(3, 8) for j in range(6)]
    total = 0.0
    for at in places:
        tone = sum(statistics.mean(around(apart, c, *at)) ** 2 for c in range(3)) / 3
        floor = (varies(mine, *at) + varies(found, *at)) / 2 + (4 / 255) ** 2
        total += varies(apart, *at) / floor + tone / (floor + tone / 2)
    assert TemporalLoss()(a, b, flow, valid).item() == pytest.approx(total / 30, rel=1e-4)


def noise(size, seed):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_the_temporal_loss_does_not_care_which_frame_is_which():
    grainy, flat = 0.5 + 0.4 * noise((24, 32), 0), torch.full((1, 3, 24, 32), 0.5)
    still, everywhere = torch.zeros(1, 2, 24, 32), torch.ones(1, 24, 32)
    one, other = (
        TemporalLoss()(grainy, flat, still, everywhere),
        TemporalLoss()(flat, grainy, still, everywhere),
    )
    assert one.item() == pytest.approx(other.item(), rel=1e-5) and one > 1


def test_neither_flattening_nor_more_contrast_pleases_the_temporal_loss():
    a, b = (0.5 + noise((24, 80), seed) for seed in (0, 1))
    b = torch.where(torch.arange(80) < 40, a, b)  # flickers on the right alone
    still, everywhere = torch.zeros(1, 2, 24, 80), torch.ones(1, 24, 80)
    full = TemporalLoss()(a, b, still, everywhere).item()
    for share in (torch.tensor(0.5), torch.where(torch.arange(80) < 40, 1.0, 0.5)):
        flatter = (0.5 + share * (x - 0.5) for x in (a, b))
        assert TemporalLoss()(*flatter, still, everywhere).item() == pytest.approx(full, rel=0.05)
    share = torch.ones((), requires_grad=True)  # the derivative is what training sees: 2 if v were a constant
    loss = TemporalLoss()(0.5 + share * (a - 0.5), 0.5 + share * (b - 0.5), still, everywhere)
    (slope,) = torch.autograd.grad(loss.log(), share)
    assert slope.abs() < 0.02


@pytest.mark.parametrize("apart", [0, 3, 12])
def test_grain_in_flat_places_costs(apart):
    """A scene with a flat half whose brightness flickers: grain there, in one frame or both, never pays."""
    left = torch.arange(64) < 32
    a = torch.where(left, torch.full((1, 3, 32, 64), 0.5), 0.5 + noise((32, 64), 5))
    b = torch.where(left, a + apart / 255, a)
    still, everywhere = torch.zeros(1, 2, 32, 64), torch.ones(1, 32, 64)
    plain = TemporalLoss()(a, b, still, everywhere).item()
    for strength in (0.01, 0.03, 0.1, 0.3):
        grain = [torch.where(left, strength * noise((32, 64), seed), torch.zeros(())) for seed in (0, 1)]
        for x, y in ((a + grain[0], b), (a, b + grain[1]), (a + grain[0], b + grain[1])):
            assert TemporalLoss()(x, y, still, everywhere).item() > plain


def test_temporal_without_a_valid_pixel_is_zero(pictures):
    a = pictures(1, 8, 8)
    assert TemporalLoss()(a, a * 0, torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8)).item() == 0
