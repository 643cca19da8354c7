"""A picture's colours matched to another's, by moments and by palettes; neither is clamped to 0..1."""

from reelbrush.kernels.moments import color_map, color_moments
from reelbrush.kernels.palette import look_up, palette_table, sample


def match_colors(x, reference, gain=4.0):
    """x with the reference's mean colour and colour covariance."""
    matrix, offset = color_map(color_moments(x), color_moments(reference), gain)
    return (matrix @ x.flatten(2) + offset[..., None]).view(x.shape)


def match_palette(x, reference):
    """x in the reference's palette."""
    return look_up(x, palette_table(sample(x), sample(reference)))
