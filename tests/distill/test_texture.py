"""Label pictures and the random start they give."""

import pytest
import torch

from reelbrush.nodes.distill import texture

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def stripes(colours, height=32, width=48):
    picture = torch.zeros(1, height, width, 3)
    for i, colour in enumerate(colours):
        picture[:, :, i * width // len(colours) :] = torch.tensor(colour)
    return picture


def test_the_same_colours_get_the_same_labels_wherever_they_are():
    of_source, of_target, n = texture.read_labels(stripes([RED, BLUE]), stripes([BLUE, RED, BLUE], 20, 30))
    assert n == 2
    assert of_source.unique().tolist() == [1, 2]
    assert of_target.shape == (20, 30)
    assert of_target[0, 0] == of_target[0, -1] == of_source[0, -1]
    assert of_target[0, 15] == of_source[0, 0]


def test_soft_edges_and_noise_make_no_labels():
    source = stripes([RED, GREEN, BLUE], 96, 96)
    source[:, :, 32] = torch.tensor([0.5, 0.5, 0.0])
    noisy = (source + 0.02 * torch.randn(source.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    noisy[:, 40, 32:34] = 0.5
    of_source, _, n = texture.read_labels(noisy, stripes([RED, BLUE]))
    clean, _, _ = texture.read_labels(stripes([RED, GREEN, BLUE], 96, 96), stripes([RED, BLUE]))
    assert n == 4  # the painted column is a region of its own; the noise is none
    assert (of_source[:, 40:60] == of_source[0, 50]).all()
    assert clean.unique().tolist() == [1, 2, 3]


def test_a_colour_that_the_source_lacks_raises_an_error():
    with pytest.raises(ValueError, match="#00ff00"):
        texture.read_labels(stripes([RED, BLUE]), stripes([RED, GREEN]))


def test_a_region_starts_as_pixels_of_its_source_region():
    g = torch.Generator().manual_seed(0)
    source = torch.rand(1, 32, 48, 3, generator=g)
    source[:, :, :24, 0], source[:, :, 24:, 0] = (
        0.0,
        1.0,
    )  # the red channel is different for each source region
    of_source, of_target, _ = texture.read_labels(stripes([RED, BLUE]), stripes([BLUE, RED], 40, 56))
    start = texture.fill(source, of_source, of_target, seed=3)
    assert start.shape == (1, 40, 56, 3)
    assert (start[:, :, :28, 0] == 1).all()
    assert (start[:, :, 28:, 0] == 0).all()
    known = {tuple(p) for p in source.reshape(-1, 3).tolist()}
    assert all(tuple(p) in known for p in start.reshape(-1, 3).tolist())
    assert torch.equal(start, texture.fill(source, of_source, of_target, seed=3))
    assert not torch.equal(start, texture.fill(source, of_source, of_target, seed=4))


def test_labels_painted_at_another_size_than_the_picture_serve():
    of_source, of_target, _ = texture.read_labels(stripes([RED, BLUE], 16, 16), stripes([RED, BLUE]))
    assert texture.fill(torch.rand(1, 64, 64, 3), of_source, of_target, seed=0).shape == (1, 32, 48, 3)
