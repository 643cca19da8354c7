"""The pictures of the help pages, and the command that makes them."""

import re
from pathlib import Path

import pytest
from PIL import Image

from reelbrush.lab import help_pictures
from reelbrush.nodes.common import pictures

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"


def test_the_pictures_of_all_pages_are_made_by_the_command():
    pages = [path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")]
    shown = {name for text in pages for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)}
    # attnstyle_ablation.py makes this one, with a private judge
    assert shown - {"attnstyle_ablation.jpg"} == help_pictures.PICTURES.keys()


def test_a_picture_is_made_by_its_node(tmp_path):
    help_pictures.main(["texture_init.jpg", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["texture_init.jpg"]
    with Image.open(tmp_path / "texture_init.jpg") as image:
        assert image.format == "JPEG" and image.width <= help_pictures.WIDTH
    made = pictures.read(tmp_path / "texture_init.jpg")[0]
    side = (made.shape[1] - help_pictures.GAP) // 2
    y, x = made.shape[0] - side // 2, made.shape[1] - side // 2  # the middle of the last of four cells
    red, green, blue = made[y - 20 : y + 20, x - 20 : x + 20].mean((0, 1)).tolist()
    assert min(red, green) > blue + 0.05, "the disc has the yellow of the fields"


def test_names_are_checked(capsys):
    with pytest.raises(SystemExit):
        help_pictures.main(["other.jpg"])
    assert "no picture other.jpg" in capsys.readouterr().err
