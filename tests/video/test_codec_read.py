"""Reading: any frame by its number, the right way up, at its time; what cannot be read is said in words."""

import gc
import io
import re
import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

from .clips import encode, number_of, numbered, tone, with_sound, write


def plain(source):
    """All frames by PyAV alone, as arrays of planes: the linear decode."""
    source.seek(0)
    with av.open(source) as file:
        return [(f.pts, [np.frombuffer(p, np.uint8).copy() for p in f.planes]) for f in file.decode(video=0)]


IRREGULAR = [Fraction(n * n + 10 * n, 400) for n in range(40)]  # steps from 27 to 220 ms
SEEKING = {
    "b-frames": {"bf": 3, "g": 12},
    "open gop": {"bf": 3, "g": 10, "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"},
    "one key frame": {"g": 1000},
    "all key frames": {"g": 1},
    "h265 open gop": {"codec": "libx265", "x265-params": "open-gop=1:keyint=10:bframes=3:log-level=none"},
    "vp9 with hidden frames": {"codec": "libvpx-vp9", "container": "webm", "g": 10, "auto-alt-ref": 1,
                               "lag-in-frames": 12, "deadline": "realtime", "cpu-used": 8},
    "vp8 in webm": {"codec": "libvpx", "container": "webm", "g": 10, "deadline": "realtime", "cpu-used": 8},
    "mpeg-4 in avi": {"codec": "mpeg4", "container": "avi", "bf": 2, "g": 10},
    "matroska": {"container": "matroska", "bf": 3, "g": 12},
    "transport stream": {"container": "mpegts", "bf": 3, "g": 12},
    "bare h264": {"container": "h264", "bf": 2, "g": 10},
    "variable rate": {"times": IRREGULAR, "tick": Fraction(1, 90000), "bf": 3, "g": 12},
    "variable rate in matroska": {
        "times": IRREGULAR, "tick": Fraction(1, 1000), "container": "matroska", "bf": 3, "g": 12
    },
    "fragmented": {"movflags": "frag_keyframe+empty_moov", "bf": 2, "g": 10},
    "gif": {"codec": "gif", "container": "gif", "pixels": "rgb8", "rate": 10},
}  # fmt: skip


@pytest.mark.parametrize("how", list(SEEKING.values()), ids=list(SEEKING))
def test_any_frame_number_gives_that_frame(how):
    source = encode(numbered(40), **how)
    everything = list(codec.Reader(source))
    assert [number_of(f) for f, _ in everything] == list(range(40))
    times = [t for _, t in everything]
    assert times[0] == 0 and times == sorted(set(times))
    if "times" in how:
        tick = how["tick"]
        assert all(abs(t - wanted) <= tick for t, wanted in zip(times, IRREGULAR, strict=True))
    for start in (1, 7, 9, 10, 11, 12, 23, 24, 38, 39):
        found = list(codec.Reader(source, start=start, stop=start + 3))
        assert len(found) == min(3, 40 - start)
        for (frame, time), (same, when) in zip(found, everything[start:], strict=False):
            assert torch.equal(frame, same) and time == when
    assert list(codec.Reader(source, start=5, stop=5)) == []


def test_a_start_after_the_end_is_rejected():
    source = encode(numbered(10))
    with pytest.raises(ValueError, match=r"has 10 frames, so frame 10 does not"):
        list(codec.Reader(source, start=10))


def test_counting_is_exact_where_the_header_only_estimates():
    source = encode(numbered(40), container="matroska", times=IRREGULAR, tick=Fraction(1, 1000))
    assert not codec.probe(source).exact
    info = codec.probe(source, count=True)
    assert (info.frame_count, info.exact, info.variable) == (40, True, True)
    even = codec.probe(encode(numbered(40), container="matroska", rate=30), count=True)
    assert (even.frame_count, even.variable) == (40, False)


def test_frames_that_an_edit_list_hides_are_not_there():
    """A clip that was cut without encoding begins inside a group of pictures; players skip to the cut."""
    source, target = encode(numbered(40), bf=3, g=12), io.BytesIO()
    with av.open(source) as whole, av.open(target, "w", format="mp4") as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (
                    t - round(13 / 25 / packet.time_base) for t in (packet.pts, packet.dts)
                )
                packet.stream = stream
                file.mux(packet)
    target.seek(0)
    assert codec.probe(target).frame_count == codec.probe(target, count=True).frame_count == 27
    assert [number_of(f) for f, _ in codec.Reader(target)] == list(range(13, 40))
    for start in (1, 5, 20, 26):
        ((frame, time),) = codec.Reader(target, start=start, stop=start + 1)
        assert number_of(frame) == 13 + start and time == Fraction(start, 25)


def test_frames_are_nobody_elses_memory():
    """Every frame keeps its pixels while the next ones are decoded, and may be written to."""
    for how in ({"codec": "libx264"}, {"codec": "ffv1", "container": "matroska", "pixels": "bgr0"}):
        source = encode(numbered(12), **how)
        reader = codec.Reader(source)
        kept = [(frame, frame.clone()) for frame, _ in reader]
        for frame, copy in kept:
            assert torch.equal(frame, copy)
        first = [f for f, _ in codec.Reader(source)]
        for frame, _ in codec.Reader(source):
            frame.fill_(0)
        assert all(torch.equal(a, b) for a, (_, b) in zip(first, kept, strict=True))


def test_frames_are_freed_without_the_garbage_collector():
    """A cycle between a frame and its parts would keep megabytes until Python looks for cycles."""
    source = encode(numbered(60))
    gc.collect()
    gc.disable()
    try:
        for _ in codec.Reader(source):
            pass
        with codec.Writer(io.BytesIO(), codec.probe(source)) as writer:
            for frame, time in codec.Reader(source):
                writer.write(frame, time)
        del writer
        assert gc.collect() < 60  # of 120 frames that were read, and 60 that were written
    finally:
        gc.enable()


def test_a_reader_can_be_left_early_and_begun_again():
    with codec.Reader(encode(numbered(20))) as reader:
        first = [number_of(f) for f, _ in zip(reader, range(3), strict=False) for f in f[:1]]
        again = [number_of(f) for f, _ in reader]
    assert first == [0, 1, 2] and again == list(range(20))


# -- the way up ------------------------------------------------------------------------------------

ONE = 1 << 16
TURNS = {  # a, b, c, d of the track header's matrix, and the same as an array operation
    "none": ((1, 0, 0, 1), lambda p: p),
    "90": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "180": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "270": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize(("matrix", "turn"), list(TURNS.values()), ids=list(TURNS))
def test_rotation_is_applied_and_not_tagged_again(matrix, turn):
    def wide_pixels(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    source = encode(numbered(2), pixels="yuv444p", qp=0, setup=wide_pixels)
    ((level, _), _) = codec.Reader(source)
    data = bytearray(source.getvalue())
    at = data.index(b"tkhd") + 44  # version 0: the matrix stands 40 bytes behind version and flags
    assert data[at : at + 4] == ONE.to_bytes(4, "big")
    a, b, c, d = (int(v * ONE).to_bytes(4, "big", signed=True) for v in matrix)
    data[at : at + 20] = a + b + bytes(4) + c + d
    turned = io.BytesIO(bytes(data))
    info = codec.probe(turned)
    wanted = turn(level.numpy())
    assert (info.height, info.width) == wanted.shape[:2]
    assert info.pixel_aspect == (Fraction(3, 4) if wanted.shape[0] == 64 else Fraction(4, 3))
    ((frame, _), _) = codec.Reader(turned)
    np.testing.assert_array_equal(frame.numpy(), wanted)

    target = io.BytesIO()
    with codec.Writer(target, info, quality=0) as writer:
        writer.write(frame)
    again = codec.probe(target)
    assert (again.width, again.height, again.pixel_aspect) == (info.width, info.height, info.pixel_aspect)
    ((second, _),) = codec.Reader(target)
    assert (second.int() - frame.int()).abs().float().mean() < 6  # upright: a turned one is off by 80


# -- what cannot be read ---------------------------------------------------------------------------


def cut(source, share):
    return io.BytesIO(source.getvalue()[: int(len(source.getvalue()) * share)])


def index_in_front():
    with tempfile.TemporaryDirectory() as folder:
        path = encode(numbered(30), movflags="faststart", target=Path(folder) / "clip.mp4")
        return io.BytesIO(path.read_bytes())


def sizes_change():
    small = encode(numbered(5), container="h264").getvalue()
    return io.BytesIO(small + encode(numbered(5, 96, 64), container="h264").getvalue())


def sound_only():
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(tone(0.2, channels=1), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return target


def no_frames(container, **options):
    target = io.BytesIO()
    with av.open(target, "w", format=container, options=options) as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()
    return target


def damaged():
    data = bytearray(encode(numbered(60), g=5).getvalue())
    data[1500:3000] = bytes(1500)
    return io.BytesIO(bytes(data))


def zeroed(container, codec):
    """3,000 zeros in the middle of a file: FFmpeg skips them without an error."""
    data = bytearray(encode(numbered(40), codec=codec, container=container).getvalue())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(len(data[middle : middle + 3000]))
    return io.BytesIO(bytes(data))


def half_a_gif():
    target = write(io.BytesIO(), [torch.from_numpy(f) for f in numbered(40)], container="gif")
    return cut(target, 0.5)


def gif_with_a_gap():
    data = write(io.BytesIO(), [torch.from_numpy(f) for f in numbered(40)], container="gif").getvalue()
    middle = len(data) // 2
    return io.BytesIO(data[:middle] + data[middle + 400 :])


def with_frame_duration(duration):
    """An mp4 whose frames claim this duration, in ticks (512 are right)."""
    data = encode(numbered(40)).getvalue()
    at = data.index(b"stts") + 16
    assert struct.unpack(">I", data[at : at + 4]) == (512,)
    return io.BytesIO(data[:at] + struct.pack(">I", duration) + data[at + 4 :])


SHORTENED = {
    "webm with zeros": (lambda: zeroed("webm", "libvpx-vp9"), r"\d+ of 40 frames could be read"),
    "mkv with zeros": (lambda: zeroed("matroska", "libx264"), r"\d+ of 40 frames could be read"),
    "half a gif": (half_a_gif, r"\d+ frames could be read"),
    "gif with a gap": (gif_with_a_gap, r"\d+ frames could be read"),
    "mp4 with wrong times": (lambda: with_frame_duration(0), r"\d+ of 40 frames could be read"),
}


@pytest.mark.parametrize(("make", "words"), list(SHORTENED.values()), ids=list(SHORTENED))
def test_a_damaged_clip_is_not_shortened_silently(make, words, caplog):
    source = make()
    video = LazyVideo.from_file(source)
    read = len(torch.cat(list(video.chunks())))
    assert 0 < read < 40
    (message,) = caplog.messages
    assert re.search(words, message) and message.startswith("the video in memory is damaged or cut short: ")
    assert f" {read} " in message
    with host.strict(), pytest.raises(ValueError, match=words):
        list(video.chunks())


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "gif", "mov", "avi", "mpegts", "flv"])
def test_a_whole_clip_gives_no_warning(container, caplog):
    codec_name = {"webm": "libvpx-vp9", "gif": "gif", "avi": "mpeg4"}.get(container, "libx264")
    pixels = {"gif": "rgb8"}.get(container, "yuv420p")
    source = encode(numbered(60), codec=codec_name, container=container, pixels=pixels)
    uneven = encode(numbered(20), container="matroska", times=[0.04 * i + 0.3 * (i > 9) for i in range(20)])
    for whole in (source, uneven):
        assert len(list(codec.Reader(whole))) in (20, 60)
    assert not caplog.messages


FAULTS = {
    "cut, index lost": (lambda: cut(encode(numbered(30)), 0.6), "cut short"),
    "cut, index in front": (lambda: cut(index_in_front(), 0.8), "cut short"),
    "cut matroska": (lambda: cut(encode(numbered(30), container="matroska"), 0.8), "cut short"),
    "cut webm": (
        lambda: cut(encode(numbered(30), codec="libvpx-vp9", container="webm", deadline="realtime"), 0.5),
        "cut short",
    ),
    "only sound": (sound_only, "only sound"),
    "header without frames": (
        lambda: no_frames("mp4", movflags="empty_moov+frag_keyframe"),
        "without frames",
    ),
    "matroska without frames": (lambda: no_frames("matroska"), "no frames"),
    "no track": (lambda: no_frames("mp4"), "contains no video"),
    "text": (lambda: io.BytesIO(b"this is no video at all\n" * 40), "not a video"),
    "nothing": (io.BytesIO, "empty"),
    "frames of 46 hours": (lambda: with_frame_duration(2**31), "its times are damaged"),
    "size changes": (sizes_change, r"changes its size from 64x48 to 96x64 at frame 5"),
}


@pytest.mark.parametrize(("make", "words"), list(FAULTS.values()), ids=list(FAULTS))
def test_a_fault_is_one_sentence(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        list(codec.Reader(make()))
    assert "\n" not in str(caught.value) and ": " in str(caught.value)  # what is wrong, and what mends it


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{clip}\n#EXT-X-ENDLIST\n",
    "concat.txt": "ffconcat version 1.0\nfile '{clip}'\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_other_file_and_no_address(tmp_path, name):
    (tmp_path / "clip.ts").write_bytes(encode(numbered(5), container="mpegts").getvalue())
    (tmp_path / name).write_text(PLAYLISTS[name].format(clip="clip.ts"))
    assert codec.probe(tmp_path / "clip.ts").width == 64
    with pytest.raises(ValueError, match="is not a video that can be read"):
        codec.probe(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'gone.mp4' does not exist"):
        codec.probe(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="contains no pictures"):
        codec.probe(tmp_path)


# -- sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_sound_is_read_from_any_second(container):
    wave = tone(2.0)
    source = with_sound(numbered(50), wave, container=container)
    whole = codec.read_audio(source)
    assert whole["sample_rate"] == 44100 and whole["waveform"].shape[:2] == (1, 2)
    assert abs(whole["waveform"].shape[2] - wave.shape[1]) <= 1024 + 64
    part = codec.read_audio(source, 1.25, 0.5)["waveform"][0]
    assert part.shape == (2, 22050)
    wanted = wave[:, round(1.25 * 44100) :][:, :22050]
    slack = 50  # Matroska rounds times to milliseconds
    errors = [np.abs(np.roll(part.numpy(), s, 1) - wanted)[:, 200:-200].mean() for s in range(-slack, slack)]
    best = int(np.argmin(errors)) - slack
    assert min(errors) < 0.01 and abs(best) <= (1 if container == "mp4" else 45)
    assert codec.read_audio(source, 10.0)["waveform"].shape[2] == 0
    assert codec.read_audio(encode(numbered(3))) is None


# -- pictures --------------------------------------------------------------------------------------


def picture(folder, pixels):
    """A folder with one PNG of random pixels in a pixel format; and the values of its first plane."""
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(values, format="rgb24").reformat(format=pixels)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pixels, Fraction(1, 25)
    (packet,) = encoder.encode(frame) + encoder.encode(None)
    (folder / "1.png").write_bytes(bytes(packet))
    dtype = ">u2" if pixels.endswith("be") else np.uint8
    return np.frombuffer(frame.planes[0], dtype).reshape(48, -1)


@pytest.mark.parametrize(("pixels", "channels"), [("gray", 1), ("gray16be", 1), ("rgb24", 3), ("rgb48be", 3)])
def test_pictures_are_read_exactly(pixels, channels, tmp_path):
    values = picture(tmp_path, pixels)[:, : 64 * channels].reshape(48, 64, channels)
    ((found, time),) = codec.Reader(tmp_path)
    assert time == 0 and found.dtype == (torch.uint16 if pixels.endswith("be") else torch.uint8)
    np.testing.assert_array_equal(found.numpy(), np.broadcast_to(values, (48, 64, 3)))


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_a_camera_are_upright(tmp_path, ending, orientation):
    """Their EXIF data, which PyAV has no name for, contains the orientation."""
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 1), np.uint8)
    path = tmp_path / f"1.{ending}"
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 3), np.uint8))).save(path, exif=exif, quality=98)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    Image.fromarray(upright.astype(np.uint8)).save(tmp_path / f"2.{ending}", quality=98)
    for frame, _ in codec.Reader(tmp_path):
        assert frame.shape == upright.shape and np.abs(frame.numpy() - upright).mean() < 2


@pytest.mark.parametrize("text", ["x", "0", "-1", "1/0", "nan", "inf", "1e400", "", "1e-30", "9" * 30])
@pytest.mark.parametrize("key", ["fps", "time"])
def test_other_texts_than_numbers_in_pictures_are_ignored(tmp_path, key, text):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(key, text)
    for number in range(3):
        picture = Image.fromarray(np.full((48, 64, 3), number * 20, np.uint8))
        picture.save(tmp_path / f"{number}.png", pnginfo=info)
    info, times = codec.probe(tmp_path), [time for _, time in codec.Reader(tmp_path)]
    assert info.fps == 24
    allowed = [0] * 3 if (key, text) == ("time", "0") else [Fraction(n, 24) for n in range(3)]
    assert times == allowed


def test_a_cut_jpeg_file_is_reported(tmp_path, caplog):
    """FFmpeg shows what is missing as grey, and says nothing."""
    from PIL import Image

    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.jpg")
    path = tmp_path / "1.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    assert len(list(codec.Reader(tmp_path))) == 3
    assert caplog.messages == ["'1.jpg' is damaged or cut short: copy or download it again"]


@pytest.mark.parametrize("tag", ["x", "1:2:3:4", "0:0:1/0", "0:0:1e999999999", "-5:0:0", ":::"])
def test_a_track_with_a_strange_duration_is_read(tag):
    source = encode(
        numbered(6), "ffv1", "nut", pixels="bgr0", setup=lambda s: s.metadata.update({"DURATION": tag})
    )
    assert codec.probe(source).fps == 25
    assert [number_of(f) for f, _ in codec.Reader(source)] == list(range(6))
