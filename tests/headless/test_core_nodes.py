"""Our core nodes give what ComfyUI's give."""

import cv2
import numpy as np
import pytest
import torch

from reelbrush.nodes.common import pictures
from reelbrush.nodes.headless import core_nodes
from reelbrush.nodes.headless.graph import Definition
from reelbrush.nodes.video.codec.pictures import read_text


def define(kind):
    cls, name = core_nodes.CORE_NODES[kind]
    return Definition.from_declaration(
        kind, name, cls.INPUT_TYPES(), cls.RETURN_TYPES, getattr(cls, "OUTPUT_NODE", False)
    )


def test_a_picture_and_its_transparency(home):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = (255, 128, 0, 255)  # blue, green, red, alpha
    cv2.imwrite(str(home / "input" / "a.png"), pixels)
    image, mask = core_nodes.load_image("a.png")
    assert image.shape == (1, 2, 3, 3) and image.dtype == torch.float32
    torch.testing.assert_close(image[0, 0, 0], torch.tensor([0, 128 / 255, 1]))
    assert mask[0, 0, 0] == 0 and mask[0, 1, 1] == 1
    cv2.imwrite(str(home / "input" / "b.jpg"), pixels[..., :3])
    assert core_nodes.load_image("b.jpg")[1].shape == (1, 64, 64)


def test_sixteen_bits_and_grey(home):
    cv2.imwrite(str(home / "input" / "deep.png"), np.full((2, 2, 3), 32768, np.uint16))
    cv2.imwrite(str(home / "input" / "grey.png"), np.full((2, 2), 51, np.uint8))
    assert abs(core_nodes.load_image("deep.png")[0].mean() - 32768 / 65535) < 1e-6
    assert core_nodes.load_image("grey.png")[0].shape == (1, 2, 2, 3)


def test_what_is_no_picture_is_an_error_message(home):
    for name, content in (("empty.png", b""), ("text.png", b"hello")):
        (home / "input" / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"the picture '{name}' cannot be read"):
            core_nodes.load_image(name)


def test_saved_pictures_carry_the_graph(home):
    images = torch.rand(2, 4, 5, 3)
    shown = core_nodes.save_image(images, "x/y", {"1": "é"}, {"workflow": {"nodes": []}})["ui"]["images"]
    assert [entry["filename"] for entry in shown] == ["y_00001_.png", "y_00002_.png"]
    path = home / "output" / "x" / "y_00001_.png"
    assert read_text(path) == {"prompt": '{"1": "\\u00e9"}', "workflow": '{"nodes": []}'}
    assert (pictures.read(path)[0] - images[0]).abs().max() <= 1 / 255


def test_text_is_shown(capsys):
    core_nodes.preview_any("a,b\n1,2\n")
    core_nodes.preview_any({"a": 1})
    assert capsys.readouterr().out == 'a,b\n1,2\n{\n  "a": 1\n}\n'


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_scaling_keeps_the_picture(method):
    image = torch.full((2, 8, 16, 3), 0.25)
    (out,) = core_nodes.scale_image(image, method, 8, 8, "center")
    assert out.shape == (2, 8, 8, 3)
    torch.testing.assert_close(out, torch.full_like(out, 0.25), atol=1 / 255, rtol=0)  # lanczos: 8 bits
    assert core_nodes.scale_image(image, method, 4, 0, "disabled")[0].shape == (2, 2, 4, 3)


# -- compared to ComfyUI -----------------------------------------------------------------------------

# ComfyUI computes the V1 declaration of core nodes in the new style.
WHERE = {
    "LoadVideo": "comfy_extras.nodes_video",
    "SaveVideo": "comfy_extras.nodes_video",
    "CreateVideo": "comfy_extras.nodes_video",
    "GetVideoComponents": "comfy_extras.nodes_video",
    "PrimitiveInt": "comfy_extras.nodes_primitive",
    "PrimitiveString": "comfy_extras.nodes_primitive",
    "PreviewAny": "comfy_extras.nodes_preview_any",
    "MaskPreview": "comfy_extras.nodes_mask",
}


CLASSIC = ("LoadImage", "SaveImage", "PreviewImage", "ImageScale", "ImageBatch")  # in ComfyUI's nodes.py


def core(kind):
    import importlib

    module = importlib.import_module(WHERE.get(kind, "nodes"))
    found = getattr(module, "NODE_CLASS_MAPPINGS", {}).get(kind)
    if found is None:
        names = {"PrimitiveInt": "Int", "PrimitiveString": "String"}
        found = getattr(module, names.get(kind, kind))
    return found


def flat(declared):
    """The names and types of an input and of the inputs that its choices add."""
    yield declared.name.rpartition(".")[2], declared
    for choice in declared.choices or ():
        for added in declared.choice_inputs(choice):
            yield from flat(added)


@pytest.mark.comfyui
@pytest.mark.parametrize("kind", [k for k in core_nodes.CORE_NODES if k in WHERE or k in CLASSIC])
def test_our_node_has_the_inputs_and_outputs_of_the_core_node(kind, home):
    """Ours has those of all versions of ComfyUI, so a version may have fewer."""
    real, mine = core(kind), define(kind)
    shows = bool(getattr(real, "OUTPUT_NODE", False))
    theirs = Definition.from_declaration(kind, kind, real.INPUT_TYPES(), real.RETURN_TYPES, shows)
    assert mine.outputs[: len(theirs.outputs)] == theirs.outputs and mine.is_output == theirs.is_output
    declared = {name: i for top in theirs.inputs.values() for name, i in flat(top)}
    assert list(declared) == [name for name in mine.inputs if name in declared]
    assert all(name in declared for name, i in mine.inputs.items() if i.required)
    for name, real_input in declared.items():
        if real_input.is_widget and not real_input.choices:
            assert mine.inputs[name].type in (real_input.type, "STRING")
        elif not real_input.is_widget:
            assert mine.inputs[name].type == real_input.type


@pytest.mark.comfyui
@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "crop"), [((20, 10), "disabled"), ((10, 10), "center"), ((7, 0), "disabled")]
)
def test_scaling_is_the_core_node_s(method, size, crop):
    image = torch.rand(2, 12, 17, 3, generator=torch.Generator().manual_seed(1))
    (real,) = core("ImageScale")().upscale(image, method, *size, crop)
    (mine,) = core_nodes.scale_image(image, method, *size, crop)
    torch.testing.assert_close(mine, real.clamp(0, 1))


@pytest.mark.comfyui
def test_loading_and_batching_pictures_is_the_core_nodes(home):
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (50, 70, 4)), ("b.png", (60, 60, 3)), ("c.png", (60, 60))):
        cv2.imwrite(str(home / "input" / name), rng.integers(0, 256, shape, np.uint8))
        for real, mine in zip(core("LoadImage")().load_image(name), core_nodes.load_image(name), strict=True):
            # newer versions compute grey pictures with a scale of 255/256
            torch.testing.assert_close(mine, real, atol=1 / 255 if name == "c.png" else 1e-6, rtol=0)
    a, b = torch.rand(1, 6, 6, 3), torch.rand(2, 9, 12, 3)
    (real,), (mine,) = core("ImageBatch")().batch(a, b), core_nodes.batch_images(a, b)
    torch.testing.assert_close(mine, real)
