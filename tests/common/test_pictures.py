"""Picture files: what is written is what is read, at the depth of the file."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from reelbrush.nodes.common.pictures import read, write


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


def test_what_is_no_picture_is_an_error_message(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"'a.png' cannot be read"):
        read(tmp_path / "a.png")
