"""Flow on disk."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reelbrush.kernels.flow import invert
from reelbrush.lab.sample import draw
from reelbrush.nodes.flow import store
from reelbrush.nodes.flow.conventions import soft_reliability
from reelbrush.nodes.flow.nodes import LoadFlow

from .scenes import exact, occluder, sample_scene, uniform, write_flo


def same(a, b):
    names = ("forward", "backward", "forward_valid", "backward_valid")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_saved_flow_comes_back_whole(tmp_path):
    flow = uniform(4, 6, 9, 1.25, -0.5, 2)
    flow = replace(flow, method="m", consistency=(0.4, 0.02), cuts=(2,))
    back = store.load(store.save(flow, tmp_path / "deep" / "x.flow.safetensors"))
    assert same(flow, back)
    assert (back.stride, back.method, back.consistency, back.cuts) == (2, "m", (0.4, 0.02), (2,))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.flow.safetensors"]


def test_flo_files_are_what_middlebury_says(tmp_path):
    vectors = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    write_flo(tmp_path / "a.flo", vectors)
    raw = (tmp_path / "a.flo").read_bytes()
    assert raw[:4] == b"PIEH" and np.frombuffer(raw[4:12], "<i4").tolist() == [4, 3]
    assert np.frombuffer(raw[12:20], "<f4").tolist() == [0.0, 12.0]  # u and v of the first pixel
    flow, known = store.read_flo(tmp_path / "a.flo")
    assert torch.equal(flow[0], vectors) and known.all()


@pytest.mark.parametrize("step", [1, 2])
def test_a_folder_as_artistic_videos_names_it(tmp_path, step):
    _, _, flow = occluder(5, 24, 40, 8, 2)
    for t in range(flow.pairs):
        write_flo(tmp_path / f"forward_{t + 9}_{t + 9 + step}.flo", flow.forward[t])
        write_flo(tmp_path / f"backward_{t + 9 + step}_{t + 9}.flo", flow.backward[t])
    back = store.load(tmp_path)
    assert same(flow, back) and back.stride == step  # 9, 10, 11, 12: numbers, not letters


def test_forward_files_alone_are_inverted(tmp_path):
    _, masks, flow = occluder(4, 24, 40, 8, 2)
    for t in range(flow.pairs):
        write_flo(tmp_path / f"{t:05}.flo", flow.forward[t])
    back = store.load(tmp_path)
    assert torch.equal(back.forward, flow.forward)
    known = invert(flow.forward)[1]
    assert torch.equal(
        back.backward[known[:, None].expand(-1, 2, -1, -1)],
        flow.backward[known[:, None].expand(-1, 2, -1, -1)],
    )
    uncovered = masks[:-1] & ~masks[1:]
    assert not back.backward_valid[uncovered].any()


def test_unknown_motion_is_not_valid(tmp_path):
    for way, start, end in (("forward", 1, 2), ("backward", 2, 1)):
        vectors = torch.zeros(2, 6, 8)
        vectors[:, 2, 3], vectors[0, 4, 4] = 1e9, torch.nan
        write_flo(tmp_path / f"{way}_{start}_{end}.flo", vectors)
    flow = store.load(tmp_path)
    assert flow.forward.abs().max() == 0
    assert (~flow.forward_valid).nonzero().tolist() == [[0, 2, 3], [0, 4, 4]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "contains no .flo files"),
        (["forward_1_2.flo", "forward_3_4.flo"], "do not follow each other"),
        (["forward_1_2.flo", "forward_2_4.flo"], "one stride"),
    ],
)
def test_a_folder_that_makes_no_clip_is_rejected(tmp_path, names, words):
    for name in names:
        write_flo(tmp_path / name, torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=words):
        store.load(tmp_path)


def test_broken_files_are_rejected(tmp_path):
    (tmp_path / "a.flo").write_bytes(b"PIEH" + np.array([40, 30], "<i4").tobytes() + b"1234")
    with pytest.raises(ValueError, match="too short"):
        store.read_flo(tmp_path / "a.flo")
    (tmp_path / "b.flo").write_bytes(b"JPEG1234567890")
    with pytest.raises(ValueError, match="tag PIEH"):
        store.read_flo(tmp_path / "b.flo")
    (tmp_path / "c.flow.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged or no flow file"):
        store.load(tmp_path / "c.flow.safetensors")


def test_the_loader_lists_what_is_there(home):
    (nothing,) = store.names()  # a combo is never empty
    with pytest.raises(ValueError, match="no flow to load: save one"):
        LoadFlow().load(nothing)
    flow = uniform(3, 8, 8, 1, 0)
    store.save(flow, store.target("night/one"))
    store.save(flow, home / "input" / "two.flow.safetensors")
    (home / "input" / "sintel").mkdir()
    write_flo(home / "input" / "sintel" / "frame_0001.flo", flow.forward[0])
    (home / "input" / "empty").mkdir()
    names = store.names()
    assert names == ["two.flow.safetensors", "sintel", "night/one.flow.safetensors [output]"]
    for name in names[:3]:
        assert LoadFlow().load(name)[0].pairs in (1, 2)
    before = LoadFlow.IS_CHANGED("sintel")
    os.utime(home / "input" / "sintel" / "frame_0001.flo", (1, 1))
    assert LoadFlow.IS_CHANGED("sintel") != before


def test_the_samples_flow_is_its_exact_one(home):
    scene = sample_scene(4)
    draw.write_flow(home / "input" / draw.FLOW, scene)
    assert store.names() == [draw.FLOW]
    loaded, truth = store.load(store.find(draw.FLOW)), exact(scene)
    for name in ("forward", "backward"):  # half precision
        torch.testing.assert_close(getattr(loaded, name), getattr(truth, name), atol=5e-3, rtol=1e-3)
        assert torch.equal(getattr(loaded, f"{name}_valid"), getattr(truth, f"{name}_valid"))


def test_inverting_a_whole_pixel_motion_is_exact():
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 8).contiguous()
    back, known = invert(flow)
    assert torch.equal(back[0][:, :5, 2:], -flow[0][:, :5, 2:])
    assert known[0, :5, 2:].all() and known.sum() == 30


ARTISTIC = os.environ.get("ARTISTIC_VIDEOS_PATH")


@pytest.mark.skipif(not ARTISTIC, reason="needs a checkout of artistic-videos: set ARTISTIC_VIDEOS_PATH")
def test_the_masks_that_artistic_videos_ships():
    folder = Path(ARTISTIC) / "example" / "deepflow"
    flow = store.load(folder)
    for t in range(flow.pairs):
        ways = ((flow.forward, flow.backward, t + 1, t + 2), (flow.backward, flow.forward, t + 2, t + 1))
        for along, back, start, end in ways:
            raw = (folder / f"reliable_{start}_{end}.pgm").read_bytes()[-flow.height * flow.width :]
            shipped = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(flow.height, flow.width)
            ours = soft_reliability(along[t : t + 1], back[t : t + 1])[0] * 255
            assert (ours - shipped).abs().max() < 1.01
