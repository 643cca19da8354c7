"""Picture files: what is written is what is read, at the depth of the file."""

import io
import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from reelbrush.nodes.common.pictures import read, write
from reelbrush.nodes.video import codec


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_comes_back(tmp_path, channels):
    picture = torch.randint(256, (5, 7, channels), dtype=torch.uint8)
    colour, opacity = read(write(tmp_path / "a.png", picture))
    wanted = picture.float() / 255
    assert torch.equal(colour, wanted[..., :3].expand(5, 7, 3))
    assert (opacity is None) == (channels < 4)
    if opacity is not None:
        assert torch.equal(opacity, wanted[..., 3])


def test_float_values_are_rounded(tmp_path):
    picture = torch.full((2, 2, 3), 0.4999 / 255)
    picture[0] = 0.5001 / 255
    assert (read(write(tmp_path / "a.png", picture))[0] * 255)[:, 0, 0].tolist() == [1, 0]


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay(tmp_path, ending, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 6, channels), dtype=np.uint16)
    path = tmp_path / f"deep.{ending}"
    cv2.imwrite(str(path), pixels)
    colour, opacity = read(path)
    wanted = torch.from_numpy(pixels.astype(np.float32) / 65535)
    assert torch.equal(colour, wanted[..., [2, 1, 0]] if channels > 1 else wanted.expand(4, 6, 3))
    assert opacity is None or torch.equal(opacity, wanted[..., 3])


def test_a_float_tiff_is_read(tmp_path):
    pixels = np.random.default_rng(0).random((4, 6, 3), np.float32)
    cv2.imwrite(str(tmp_path / "f.tif"), pixels)
    assert torch.equal(read(tmp_path / "f.tif")[0], torch.from_numpy(pixels[..., ::-1].copy()))


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg")[0].shape == (8, 4, 3)


def test_a_palette_with_a_transparent_entry_has_opacity(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([0, 1])
    picture.save(tmp_path / "p.png", transparency=1)
    assert read(tmp_path / "p.png")[1].tolist() == [[1.0, 0.0]]


def png_of(width, height):
    """A PNG of a few bytes whose header claims a size."""
    target = io.BytesIO()
    Image.new("RGB", (1, 1)).save(target, "PNG")
    data = target.getvalue()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (16_000, 16_000), (10_001, 10_000)])
def test_a_picture_that_claims_a_huge_size_is_an_error_message(tmp_path, width, height):
    (tmp_path / "huge.png").write_bytes(png_of(width, height))
    for open_it in (read, codec.probe):
        with pytest.raises(ValueError, match=r"huge.png'? (has|is too large).*make it smaller"):
            open_it(tmp_path / "huge.png")


def test_the_limit_of_pixels_is_configurable(tmp_path, monkeypatch):
    write(tmp_path / "a.png", torch.zeros(30, 40, 3))
    monkeypatch.setenv("REELBRUSH_MAX_MEGAPIXELS", "0.001")
    with pytest.raises(ValueError, match=r"40x30 pixels.*REELBRUSH_MAX_MEGAPIXELS"):
        read(tmp_path / "a.png")
    monkeypatch.setenv("REELBRUSH_MAX_MEGAPIXELS", "inf")
    assert read(tmp_path / "a.png")[0].shape == (30, 40, 3)
    for wrong in ("many", "nan", "-1"):
        monkeypatch.setenv("REELBRUSH_MAX_MEGAPIXELS", wrong)
        with pytest.raises(ValueError, match=f"REELBRUSH_MAX_MEGAPIXELS is '{wrong}': give a number"):
            read(tmp_path / "a.png")


def test_a_huge_float_tiff_is_an_error_message(tmp_path):
    pixels = np.zeros((4, 6, 3), np.float32)
    cv2.imwrite(str(tmp_path / "f.tif"), pixels)
    data = (tmp_path / "f.tif").read_bytes()
    for tag, value in ((256, 6), (257, 4)):  # entries of the directory: tag, type, count, value
        for kind, size in ((3, "HH"), (4, "I")):
            entry = struct.pack("<HHI", tag, kind, 1) + struct.pack("<" + size, *([value, 0][: len(size)]))
            data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, 50_000))
    (tmp_path / "f.tif").write_bytes(data)
    with pytest.raises(ValueError, match="50000x50000 pixels"):
        read(tmp_path / "f.tif")


def test_formats_that_pillow_reads_with_other_programs_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(eps)
    assert Image.open(tmp_path / "a.png").format == "EPS"
    with pytest.raises(ValueError, match=r"'a.png' cannot be read"):
        read(tmp_path / "a.png")


def test_what_is_no_picture_is_an_error_message(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"'a.png' cannot be read"):
        read(tmp_path / "a.png")
