"""Colours against the equations of BT.601, 709 and 2020, evaluated in float64 on flat bars.

Files are made and opened with PyAV directly, losslessly, plane by plane: no conversion of FFmpeg's is in
the oracle.
"""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.codec import ColorTags

KR_KB = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
NUMBER = {"bt709": 1, "bt601": 6, "bt2020": 9}
BARS = [(r, g, b) for r in (0, 180, 255) for g in (0, 180, 255) for b in (0, 180, 255)]
SIDE = 16  # of a bar: wide enough that its middle sees no neighbour


def codes_of(rgb, matrix, full, bits):
    """Y', Cb, Cr of R'G'B' in 0..255, as unrounded codes."""
    kr, kb = KR_KB[matrix]
    r, g, b = np.asarray(rgb, float) / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    scale, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        return y * top, cb * top + 128 * scale, cr * top + 128 * scale
    return (16 + 219 * y) * scale, (128 + 224 * cb) * scale, (128 + 224 * cr) * scale


def fill(plane, values):
    """Writes the array [h, w] into a plane."""
    wide = values.dtype.itemsize
    rows = np.frombuffer(plane, values.dtype).reshape(plane.height, plane.line_size // wide)
    rows[:, : values.shape[1]] = values


def planes_of(frame):
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    return [np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width].astype(int) for p in frame.planes]


def bars_clip(pixels, matrix, full, *, tagged=True, height=32):
    """An H.264 clip of one frame, its planes filled with the rounded codes of the bars."""
    bits = 10 if "10" in pixels else 8
    width = SIDE * len(BARS)
    frame = av.VideoFrame(width, height, pixels)
    codes = np.array([codes_of(c, matrix, full, bits) for c in BARS]).round().clip(0, 2**bits - 1)
    for i, plane in enumerate(frame.planes):
        side = SIDE * plane.width // width
        row = np.repeat(codes[:, i], side).astype(np.uint16 if bits > 8 else np.uint8)
        fill(plane, np.broadcast_to(row, (plane.height, plane.width)))
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if tagged:
            context = stream.codec_context
            context.color_range, context.colorspace = (2 if full else 1), NUMBER[matrix]
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target


def middles(picture, levels):
    """The colours in the middles of the bars, in 0..255."""
    row = picture[picture.shape[0] // 2, SIDE // 2 :: SIDE]
    return row.to(torch.float64).numpy() / levels


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", list(KR_KB))
@pytest.mark.parametrize(
    ("pixels", "tolerance"),
    [("yuv420p", 2.0), ("yuv444p", 2.0), ("yuv420p10le", 0.55), ("yuv444p10le", 0.55)],
)
def test_decoded_bars_have_the_colours_of_the_equation(pixels, tolerance, matrix, full):
    clip = bars_clip(pixels, matrix, full)
    info = codec.probe(clip)
    assert (info.color.matrix, info.color.range) == (matrix, "full" if full else "limited")
    ((picture, _),) = codec.Reader(clip)
    deep = "10" in pixels
    assert picture.dtype == (torch.uint16 if deep else torch.uint8)
    error = middles(picture, 257 if deep else 1) - BARS
    assert np.abs(error).max() < tolerance  # a rounded chroma code alone is worth about one level
    assert np.abs(error.mean()) < tolerance / 8  # no colour is darker as a rule


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", list(KR_KB))
@pytest.mark.parametrize("depth", [8, 10])
def test_encoded_bars_have_the_codes_of_the_equation(depth, matrix, full):
    picture = torch.tensor(BARS).repeat_interleave(SIDE, 0).expand(32, -1, 3)
    picture = picture.to(torch.uint8) if depth == 8 else (picture * 257).to(torch.uint16)
    tags = ColorTags("full" if full else "limited", matrix)
    info = codec.VideoInfo(picture.shape[1], 32, Fraction(25), bit_depth=depth, color=tags)
    target = io.BytesIO()
    with codec.Writer(target, info, codec="h264", quality=0) as writer:
        writer.write(picture)
    target.seek(0)
    with av.open(target) as file:
        context = file.streams.video[0].codec_context
        frame = next(file.decode(video=0))
        assert (context.color_range, context.colorspace) == (2 if full else 1, NUMBER[matrix])
        planes = planes_of(frame)
    wanted = np.array([codes_of(c, matrix, full, depth) for c in BARS]).clip(0, 2**depth - 1)
    for plane, codes in zip(planes, wanted.T, strict=True):
        side = plane.shape[1] // len(BARS)
        error = plane[plane.shape[0] // 2, side // 2 :: side] - codes
        assert (
            np.abs(error).max() < 1.6
        )  # x264's lossless 10-bit mode and swscale's full range are off by one


def test_range_and_matrix_matter_by_far_more_than_the_tolerance():
    """The tests above would notice a forgotten tag: the wrong matrix or range is many levels off."""
    ((right, _),) = codec.Reader(bars_clip("yuv444p", "bt709", False))
    for matrix, full in (("bt601", False), ("bt709", True)):
        ((wrong, _),) = codec.Reader(bars_clip("yuv444p", matrix, full, tagged=False, height=736))
        assert np.abs(middles(right, 1) - middles(wrong, 1)).max() > 12


@pytest.mark.parametrize(("height", "guess"), [(32, "bt601"), (576, "bt601"), (592, "bt709")])
def test_untagged_clips_are_read_as_players_read_them(height, guess):
    clip = bars_clip("yuv444p", guess, False, tagged=False, height=height)
    assert codec.probe(clip).color[:2] == ("limited", guess)
    ((picture, _),) = codec.Reader(clip)
    assert np.abs(middles(picture, 1) - BARS).max() < 2


def test_a_clip_that_is_read_and_written_again_keeps_its_colours_and_tags():
    source = bars_clip("yuv444p", "bt601", True)
    tags = ColorTags("full", "bt601", "smpte170m", "srgb")
    for _ in range(4):  # four generations: a bias of half a level would show
        info = codec.probe(source)
        target = io.BytesIO()
        wanted = codec.VideoInfo(info.width, info.height, info.fps, color=tags)
        with codec.Writer(target, wanted, codec="h264", quality=0) as writer:
            for picture, time in codec.Reader(source):
                writer.write(picture, time)
        source = target
    assert codec.probe(source).color == tags
    assert np.abs(middles(picture, 1) - BARS).mean() < 1


def test_pictures_without_a_matrix_become_tagged_bt709():
    picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    target = io.BytesIO()
    rgb = ColorTags("full", "rgb", "unknown", "unknown")
    with codec.Writer(target, codec.VideoInfo(32, 32, Fraction(25), color=rgb)) as writer:
        writer.write(picture)
    assert codec.probe(target).color == ColorTags("limited", "bt709", "bt709", "bt709")


@pytest.mark.parametrize("bits", [8, 16])
def test_floats_and_integers_are_inverses(bits):
    dtype, top = (torch.uint8, 255) if bits == 8 else (torch.uint16, 65535)
    values = torch.arange(top + 1).to(dtype)
    floats = codec.to_float(values)
    assert floats.dtype == torch.float32
    assert floats.min() == 0 and floats.max() == 1
    assert torch.equal(codec.from_float(floats, bits), values)
    outside = torch.tensor([-1.0, 2.0, 0.5 / top * 0.99, 0.5 / top * 1.01])
    assert codec.from_float(outside, bits).tolist() == [0, top, 0, 1]
