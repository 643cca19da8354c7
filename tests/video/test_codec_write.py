"""Writing: what goes in comes out, in every container and codec that this build has; opened with PyAV."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.codec import VideoInfo, Writer
from reelbrush.nodes.video.codec.muxer import FileSink

from .clips import RATE, encode, gradient, number_of, numbered, write

EVERY = [(container, name) for container in codec.containers() for name in codec.codecs(container)]


def read(source):
    return [frame for frame, _ in codec.Reader(source)]


def distance(frames, others):
    pairs = zip(frames, others, strict=True)
    return max((codec.to_float(a) - codec.to_float(b)).abs().mean().item() * 255 for a, b in pairs)


# -- pictures --------------------------------------------------------------------------------------

SHAPES = {
    "8 bit": (96, 64, 3, torch.uint8),
    "odd, alpha": (99, 67, 4, torch.uint8),
    "16 bit, odd width": (99, 64, 3, torch.uint16),
    "16 bit, alpha": (96, 64, 4, torch.uint16),
}


@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
@pytest.mark.parametrize(("container", "name"), EVERY)
def test_every_codec_gives_back_size_count_and_pixels(container, name, shape, tmp_path):
    width, height, channels, dtype = shape
    frames = list(gradient(6, width, height, channels, dtype))
    target = write(tmp_path / f"clip.{container}", frames, container=container, codec=name)
    info, found = codec.probe(target), read(target)
    assert (info.width, info.height, info.frame_count, len(found)) == (width, height, 6, 6)
    kept = found[0].shape[2]
    assert kept == (4 if channels == 4 and name in ("vp9", "prores", "ffv1", "png", "gif") else 3) or (
        name == "vp9" and container == "mp4"  # has no place for alpha
    )
    if kept == 3:
        error = distance([f[..., :3] for f in frames], found)
        assert error < (10 if name == "gif" else 2.5)
    elif name != "gif":
        assert distance(frames, found) < 2.5
    if dtype == torch.uint16 and name != "gif" and (name != "vp9"):
        assert info.bit_depth >= (10 if not (name == "av1" and width % 2) else 8)


@pytest.mark.parametrize(
    ("container", "name", "levels"),
    [
        ("webm", "vp9", 2.5),
        ("mkv", "vp9", 2.5),
        ("mov", "prores", 0.5),
        ("mkv", "ffv1", 0),
        ("png", "png", 0),
    ],
)
def test_alpha_is_kept_straight(container, name, levels, tmp_path):
    """Colours under clear pixels stay what they were: alpha is not multiplied in."""
    frames = list(gradient(3, 64, 48, 4))
    target = write(tmp_path / f"clip.{container}", frames, container=container, codec=name)
    for wanted, found in zip(frames, read(target), strict=True):
        error = (codec.to_float(wanted) - codec.to_float(found)).abs() * 255
        assert error[..., 3].mean() <= levels
        assert error[:, 56:, :3].mean() <= levels + 1


def test_auto_chooses_what_keeps_alpha_and_depth():
    choose = codec.formats.choose
    plain = VideoInfo(64, 48, RATE)
    clear, deep = VideoInfo(64, 48, RATE, alpha=True), VideoInfo(64, 64, RATE, bit_depth=10)
    assert [choose(c, "auto", plain) for c in ("mp4", "mkv", "webm", "mov")] == [
        "h264",
        "h264",
        "vp9",
        "h264",
    ]
    assert [choose(c, "auto", clear) for c in ("mp4", "mkv", "webm", "mov")] == [
        "h264",
        "vp9",
        "vp9",
        "prores",
    ]
    assert [choose(c, "auto", deep) for c in ("mp4", "webm")] == ["h265", "av1"]
    assert choose("webm", "auto", replace(deep, height=63)) == "vp9"  # too small for av1


SMALL = """
import io, itertools, sys, torch
from fractions import Fraction
from reelbrush.nodes.video.codec import VideoInfo, Writer
from reelbrush.nodes.video.codec.muxer import FileSink

sizes = [(1, 1), (16, 16), (48, 32), (40, 30), (33, 21), (20, 106), (46, 110), (146, 24)]
for (width, height), depth in itertools.product(sizes, (8, 10)):
    frames = torch.randint(0, 256 * 257 if depth > 8 else 256, (12, height, width, 3))
    frames = frames.to(torch.uint16 if depth > 8 else torch.uint8)
    try:
        info = VideoInfo(width, height, Fraction(25), bit_depth=depth)
        with Writer(io.BytesIO(), info, container="mkv", codec=sys.argv[1]) as writer:
            for frame in frames:
                writer.write(frame)
    except ValueError as error:
        assert "choose another" in str(error), error
"""


@pytest.mark.parametrize("name", codec.codecs("mkv"))
def test_small_frames_neither_crash_nor_hang_an_encoder(name):
    """libx265 and SVT-AV1 overwrite memory or hang, so this runs in a process of its own."""
    subprocess.run([sys.executable, "-c", SMALL, name], check=True, timeout=120)


@pytest.mark.parametrize(
    ("container", "name", "words"),
    [
        ("mp4", "h264", "transparency"),
        ("webm", "vp9", "depth"),
        ("mov", "prores", None),
        ("png", "png", None),
    ],
)
def test_what_a_codec_cannot_keep_is_logged(container, name, words, tmp_path, caplog):
    frames = gradient(2, 64, 64, 4, torch.uint16)
    write(tmp_path / f"clip.{container}", frames, container=container, codec=name)
    assert [words in m for m in caplog.messages] == ([] if words is None else [True])


def test_a_gif_has_one_palette_for_the_whole_clip(tmp_path):
    """The last scene's colours are as good as the first's: the palette is not that of a first sample."""
    scenes = [(200, 30, 30)] * 6 + [(30, 60, 200)] * 3 + [(20, 160, 60)] * 3
    frames = [torch.tensor(c, dtype=torch.uint8).expand(32, 32, 3) for c in scenes]
    target = write(tmp_path / "clip.gif", frames, container="gif")
    for wanted, found in zip(frames, read(target), strict=True):
        assert (wanted.int() - found.int()).abs().max() <= 4
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"]  # the waiting frames are gone
    data = target.read_bytes()
    assert data[10] & 0x80 and b"NETSCAPE2.0" in data  # a global colour table; it loops


def test_a_gif_is_never_faster_than_viewers_show_it():
    info = VideoInfo(32, 32, Fraction(100), 10)
    target = write(io.BytesIO(), list(gradient(10, 32, 32)), info=info, container="gif")
    times = [t for _, t in codec.Reader(target)]
    assert len(times) == 5 and all(b - a >= Fraction(2, 100) for a, b in pairwise(times))


def test_the_writer_does_not_hold_the_callers_memory(tmp_path):
    for container, name in (("mp4", "h264"), ("png", "png"), ("mkv", "ffv1")):
        wanted = list(gradient(8, 64, 48))
        shared = torch.empty_like(wanted[0])
        target = tmp_path / f"clip.{container}"
        with Writer(target, VideoInfo(64, 48, RATE), container=container, codec=name, quality=1) as writer:
            for frame in wanted:
                writer.write(shared.copy_(frame))
        assert distance(wanted, read(target)) < 1.5


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "precision"),
    [
        ("mp4", "1/60000"),
        ("mov", "1/60000"),
        ("mkv", "1/1000"),
        ("webm", "1/1000"),
        ("gif", "1/100"),
        ("png", "0"),
    ],
)
def test_a_variable_rate_is_kept(container, precision, tmp_path):
    times = [Fraction(5) + Fraction(n * n + 7 * n, 144) for n in range(10)]
    info = VideoInfo(64, 48, RATE, variable=True)
    target = write(
        tmp_path / f"c.{container}", gradient(10, 64, 48), times=times, info=info, container=container
    )
    for wanted, (_, found) in zip(times, codec.Reader(target), strict=True):
        assert abs(wanted - times[0] - found) <= Fraction(precision)


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(25), Fraction(10), Fraction(30000, 1001)])
def test_frame_rates_are_exact(fps):
    target = write(io.BytesIO(), gradient(12, 64, 48), info=VideoInfo(64, 48, fps))
    with av.open(target) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == fps and stream.frames == 12
        assert stream.duration * stream.time_base == 12 / fps
    assert [t for _, t in codec.Reader(target)] == [n / fps for n in range(12)]


def test_pixel_aspect_and_rate_are_tagged():
    info = VideoInfo(64, 48, Fraction(50), pixel_aspect=Fraction(16, 15))
    for container in ("mp4", "mkv", "mov"):
        found = codec.probe(write(io.BytesIO(), gradient(4, 64, 48), info=info, container=container))
        assert (found.pixel_aspect, found.fps) == (Fraction(16, 15), 50)


# -- metadata --------------------------------------------------------------------------------------

WORKFLOW = {"nodes": [{"id": 1, "title": "Stil ä"}]}
WORDS = {"prompt": {"1": {"inputs": {}}}, "workflow": WORKFLOW, "note": "plain text"}


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
def test_the_workflow_travels_as_core_save_video_writes_it(container, tmp_path):
    target = write(tmp_path / "clip", gradient(4, 64, 48), container=container, metadata=WORDS)
    with av.open(str(target)) as file:
        found = {k.lower(): v for k, v in file.metadata.items()}
    assert json.loads(found["workflow"]) == WORKFLOW and json.loads(found["prompt"]) == WORDS["prompt"]
    assert found["note"] == "plain text"
    head = target.read_bytes()
    if container in ("mp4", "mov"):  # in front of the pictures, where the front end looks
        assert head.index(b"moov") < head.index(b"mdat")


def test_a_gif_has_the_workflow_in_a_comment(tmp_path):
    long = {"nodes": [{"id": n, "title": "Stil ä"} for n in range(40)]}  # more than one block of 255 bytes
    target = write(tmp_path / "clip", gradient(4, 64, 48), container="gif", metadata={"workflow": long})
    plain = write(tmp_path / "plain", gradient(4, 64, 48), container="gif")
    assert json.loads(codec.probe(target).metadata["workflow"]) == long
    assert codec.probe(plain).metadata == {}
    with av.open(str(target)) as a, av.open(str(plain)) as b:
        for one, other in zip(a.decode(video=0), b.decode(video=0), strict=True):
            assert np.array_equal(one.to_ndarray(format="rgba"), other.to_ndarray(format="rgba"))


def test_a_sources_own_tags_stay_without_what_describes_the_old_file():
    info = VideoInfo(64, 48, RATE, metadata={"title": "mine", "encoder": "old", "major_brand": "isom"})
    found = codec.probe(
        write(io.BytesIO(), gradient(3, 64, 48), info=info, metadata={"title": "new"})
    ).metadata
    assert found["title"] == "new" and found.get("encoder") != "old"


def test_an_old_workflow_does_not_survive_in_other_letters():
    """Matroska writes its tags in capitals; the front end reads them in any."""
    first = write(io.BytesIO(), gradient(3, 64, 48), container="mkv", metadata={"workflow": {"old": 1}})
    info = codec.probe(first)
    assert json.loads(info.metadata["workflow"]) == {"old": 1}
    second = write(io.BytesIO(), gradient(3, 64, 48), info=info, metadata={"workflow": WORKFLOW})
    found = codec.probe(second).metadata
    assert [json.loads(v) for k, v in found.items() if k.lower() == "workflow"] == [WORKFLOW]


def chunks(data):
    """(kind, data) of a PNG's chunks, checksums verified."""
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        yield kind, body
        at += 12 + length


def test_every_png_carries_the_workflow(tmp_path):
    target = write(tmp_path / "frames", gradient(3, 64, 48), container="png", metadata=WORDS)
    assert sorted(p.name for p in target.iterdir()) == [f"frame_{n:05}.png" for n in (1, 2, 3)]
    for path in target.iterdir():
        found = list(chunks(path.read_bytes()))
        texts = dict(body.split(b"\0", 1) for kind, body in found if kind == b"tEXt")
        assert json.loads(texts[b"workflow"]) == WORKFLOW
        assert found[0][0] == b"IHDR" and found[-1] == (b"IEND", b"")
    info = codec.probe(target)
    assert info.fps == RATE and json.loads(info.metadata["workflow"]) == WORKFLOW


def test_folders_are_read_in_the_order_of_counting(tmp_path):
    for number in (1, 2, 10, 9):
        frame = next(iter(numbered(1)))
        frame[:8] = 0
        frame[:8, : 8 * 8] = np.repeat([(number >> b & 1) * 255 for b in range(8)], 8)[None, :, None]
        encode([frame], codec="png", container="image2", target=tmp_path / f"pic{number}.png", pixels="rgb24")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    assert [number_of(f) for f in read(tmp_path)] == [1, 2, 9, 10]
    assert [number_of(f) for f, _ in codec.Reader(tmp_path, start=1, stop=3)] == [2, 9]
    (tmp_path / "pic10.png").rename(tmp_path / "pic10 %03d.png")  # a name, not a pattern
    assert [number_of(f) for f in read(tmp_path)] == [1, 2, 9, 10]


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mkv", "gif", "png"])
def test_an_exception_leaves_nothing_behind(container, tmp_path):
    target = tmp_path / f"clip.{container}"
    with (
        pytest.raises(KeyboardInterrupt),
        Writer(target, VideoInfo(64, 48, RATE), container=container) as writer,
    ):
        for frame in gradient(5, 64, 48):
            writer.write(frame)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_keeps_its_own_files(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with (
        pytest.raises(ZeroDivisionError),
        Writer(tmp_path, VideoInfo(64, 48, RATE), container="png") as writer,
    ):
        writer.write(next(gradient(1, 64, 48)))
        writer.write(torch.zeros(48, 64, 3, dtype=torch.uint8), Fraction(1, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


FAULTS = {
    "another size": ({}, [(48, 64), (64, 48)], "frame 1 is 48x64.*clip is 64x48"),
    "no frames": ({}, [], "no frames were written"),
    "unknown container": ({"container": "ogv"}, [(48, 64)], "'ogv' is not a video container"),
    "codec that does not fit": ({"container": "webm", "codec": "h264"}, [(48, 64)], "one of vp9"),
}  # fmt: skip


@pytest.mark.parametrize(("how", "sizes", "words"), list(FAULTS.values()), ids=list(FAULTS))
def test_a_fault_is_one_sentence_and_leaves_no_file(how, sizes, words, tmp_path):
    with (
        pytest.raises(ValueError, match=words),
        Writer(tmp_path / "clip", VideoInfo(64, 48, RATE), **how) as writer,
    ):
        for height, width in sizes:
            writer.write(torch.zeros(height, width, 3, dtype=torch.uint8))
    assert list(tmp_path.iterdir()) == []


# -- lossless chunks -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("shape", [(5, 48, 64, 3), (2, 33, 47, 4), (1, 16, 16, 3), (1, 5, 9, 4)])
def test_lossless_chunks_are_bit_exact(dtype, shape, tmp_path):
    noise = torch.randint(0, 256 if dtype == torch.uint8 else 65536, shape, generator=torch.manual_seed(0))
    frames = noise.to(torch.int32).to(dtype)
    times = tuple(Fraction(n, 7) for n in range(len(frames)))
    codec.write_lossless(tmp_path / "chunk", frames, times)
    read, read_times = codec.read_lossless(tmp_path / "chunk")
    assert read.dtype == dtype and torch.equal(read, frames)
    assert read_times == times


def test_damage_to_a_chunk_is_never_silent(tmp_path):
    frames = torch.stack(list(gradient(4, 64, 48)))
    path = tmp_path / "chunk"
    times = (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(7, 5))
    codec.write_lossless(path, frames, times)
    data = path.read_bytes()
    noticed = 0
    for at in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            read, read_times = codec.read_lossless(path)
            assert torch.equal(read, frames) and read_times == times  # this byte does not matter
        except ValueError as error:
            assert "damaged" in str(error)
            noticed += 1
    assert noticed > 20
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        codec.read_lossless(path)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EDQUOT, "the disk is full"), (errno.EFBIG, "file cannot")]
)
def test_an_error_of_the_disk_is_not_blamed_on_the_codec(number, words, tmp_path, monkeypatch):
    def fail(self, *_):
        raise av.error.FFmpegError(number, os.strerror(number))

    monkeypatch.setattr(FileSink, "write", fail)
    with (
        pytest.raises(OSError, match=words),
        Writer(tmp_path / "a.mp4", VideoInfo(64, 48, RATE)) as writer,
    ):
        writer.write(torch.zeros(48, 64, 3, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())
