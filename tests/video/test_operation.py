"""Operations as data: fingerprints, serialized graphs, clips that do not fit together."""

import importlib.util
import io
import re
from pathlib import Path

import pytest
import torch

from reelbrush.nodes.flow.stabilize import StabilizeFrames
from reelbrush.nodes.stya2k.stylize import StylizeFrames
from reelbrush.nodes.video import operation
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.operation import from_data, to_data
from reelbrush.nodes.video.vae import DecodeLatents

from .graphs import Blur, Trail, all_of, frames, lazy


def test_a_fingerprint_changes_with_anything_that_changes_frames(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    video, style = lazy(), torch.ones(3)

    def fingerprint(of=video, before=1, after=1, tensors=(style,), files=(file,), **label):
        return of.then(Blur, before, after, tensors, files, **label).operation.fingerprint

    base = fingerprint()
    assert base == fingerprint() == fingerprint(node="another name")
    changed = [
        fingerprint(of=lazy(seed=1)),
        fingerprint(before=2),
        fingerprint(after=2),
        fingerprint(tensors=(style * 2,)),
        fingerprint(tensors=(style, style)),
        fingerprint(tensors=(style.double(),)),
        fingerprint(of=video.trim(1)),
        video.then(Trail).operation.fingerprint,
        video.then(Trail, video.operation).operation.fingerprint,
        video.then(Trail, variant=1).operation.fingerprint,
    ]
    file.write_bytes(b"three")
    changed.append(fingerprint())
    monkeypatch.setattr(operation, "_code", lambda: "an updated pack")
    changed.append(fingerprint())
    assert len({base, *changed}) == len(changed) + 1


def through_json(video):
    return LazyVideo(from_data(*to_data(video.operation)))


def test_a_graph_is_rebuilt_from_its_data(tmp_path):
    path = tmp_path / "clip.mkv"
    lazy(12, (32, 32)).save_to(path)
    source = LazyVideo.from_file(path)
    part = source.trim(1, 9)
    made = part.then(Blur, 1, 1, (torch.arange(4),)).then(Trail, part.operation, node="Trail").fit(16)
    rebuilt = through_json(made)
    assert rebuilt.operation.fingerprint == made.operation.fingerprint
    assert torch.equal(all_of(rebuilt), all_of(made))


def test_sound_and_files_in_memory_are_rebuilt_too():
    buffer = io.BytesIO()
    tone = {"waveform": torch.sin(torch.arange(8000) / 9).view(1, 1, -1), "sample_rate": 8000}
    source = LazyVideo.from_frames(frames(12, (16, 16)), 12, tone)
    source.save_to(buffer, format="mkv")
    for made in (source, LazyVideo.from_file(buffer)):
        one, two = through_json(made).get_components(), made.get_components()
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.audio["waveform"], two.audio["waveform"])


def test_the_pack_s_own_operations_are_rebuilt_field_by_field(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    video = lazy()
    stylized = video.then(
        StylizeFrames, file, "auto", False, (torch.ones(1, 4, 4, 3),), (1.0,), (None,), 0.5, True
    )
    made = stylized.then(StabilizeFrames, video.operation, 0.8, "dis-fast", (), node="Stabilize")
    rebuilt = through_json(made).operation
    assert rebuilt.fingerprint == made.operation.fingerprint
    assert rebuilt.label == "Stabilize"
    assert rebuilt.stylized.model == file
    assert rebuilt.stylized.masks == (None,)


def test_a_graph_with_an_object_that_is_not_data_says_that_it_cannot_be_sent():
    decoded = DecodeLatents(torch.zeros(2, 4, 3, 3), object(), "hash of its weights", 8, lazy().fps)
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        to_data(decoded)


def test_two_operations_cannot_have_one_name():
    with pytest.raises(ValueError, match=r"two operations are named 'video\.resize'"):

        class Sharpen(operation.Operation, name="video.resize"):
            source: operation.Operation


def test_an_unknown_operation_is_named():
    text, tensors = to_data(lazy().operation)
    with pytest.raises(ValueError, match=r"video\.unknown"):
        from_data(text.replace('"frames"', '"video.unknown"'), tensors)


def test_clips_of_different_lengths_are_rejected_when_the_graph_is_built():
    with pytest.raises(ValueError, match=r"^Trail: .*9 and 12 frames.*Trim Video"):
        lazy(9).then(Trail, lazy(12, seed=1).operation, node="Trail")


def test_the_longest_chain_runs_within_pythons_stack(home):
    """ComfyUI's own frames and pytest's are below it."""
    video = lazy(2)
    for _ in range(149):
        video = video.then(Blur, 0, 0)
    assert from_data(*to_data(video.operation)).fingerprint == video.operation.fingerprint
    video.save_to(io.BytesIO())
    with pytest.raises(ValueError, match="more than 150 operations in a row"):
        video.then(Blur, 0, 0).then(Blur, 0, 0)


def test_the_example_of_contributing_sharpens_a_clip(tmp_path):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "sharpen.py").write_text(example)
    spec = importlib.util.spec_from_file_location("reelbrush.nodes.video.sharpen", tmp_path / "sharpen.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clip = lazy(6, (16, 16))
    sharp = all_of(clip.then(module.Sharpen, 1.0, node="Sharpen Video"))
    edges = [(x[:, :, 1:] - x[:, :, :-1]).abs().mean() for x in (all_of(clip), sharp)]
    assert sharp.shape == (6, 16, 16, 3) and edges[1] > 1.2 * edges[0]
