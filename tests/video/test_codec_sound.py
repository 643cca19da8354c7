"""Writing sound: copied, cut or encoded again, in step with the pictures; opened with PyAV."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.codec import VideoInfo

from .clips import encode, gradient, numbered, packets, tone, with_sound, write


@pytest.mark.parametrize(
    ("made", "container"), [("mp4", "mp4"), ("mp4", "mkv"), ("mp4", "mov"), ("matroska", "mp4")]
)
def test_sound_is_copied_packet_by_packet(made, container):
    source = with_sound(numbered(50), tone(2.0), container=made)
    target = write(io.BytesIO(), [f for f, _ in codec.Reader(source)], container=container, audio_from=source)
    before, after = packets(source), packets(target)
    assert [data for _, data in before] == [data for _, data in after]
    shift = [b - a for (a, _), (b, _) in zip(before, after, strict=True)]
    assert max(shift) - min(shift) < 2e-3


def offset_of(found, wanted, rate):
    """Seconds by which `found` lags, by the best agreement of the whole wave."""
    n = min(found.shape[-1], wanted.shape[-1])
    a, b = np.fft.rfft(found[0, :n], 2 * n), np.fft.rfft(wanted[0, :n], 2 * n)
    lag = int(np.argmax(np.fft.irfft(a * b.conj())))
    return (lag if lag < n else lag - 2 * n) / rate


def chirp(seconds, rate):
    """A sweep: its autocorrelation has one sharp peak."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (200 + 600 * t) * t)] * 2).astype(np.float32)


@pytest.mark.parametrize("container", ["webm", "mp4", "mkv", "mov"])
def test_a_part_of_the_sound_is_encoded_again_in_step(container):
    rate = 48000
    wave = chirp(3.0, rate)
    source = with_sound(numbered(75), wave, rate=rate)
    span = (Fraction(4, 5), Fraction(2))
    frames = [f for f, _ in codec.Reader(source, start=20, stop=50)]
    info = VideoInfo(64, 48, Fraction(25))
    target = write(io.BytesIO(), frames, info=info, container=container, audio_from=source, audio_range=span)
    found = codec.read_audio(target)
    seconds = found["waveform"].shape[2] / found["sample_rate"]
    assert abs(seconds - 1.2) < 0.06
    wanted = wave[:, round(0.8 * rate) : round(2.0 * rate)]
    assert abs(offset_of(found["waveform"][0].numpy(), wanted, rate)) < 0.003


def test_sound_from_the_beginning_is_cut_at_the_end_without_encoding():
    source = with_sound(numbered(50), tone(2.0))
    target = write(
        io.BytesIO(), gradient(20, 64, 48), audio_from=source, audio_range=(Fraction(0), Fraction(4, 5))
    )
    before, after = packets(source), packets(target)
    assert [d for _, d in after] == [d for _, d in before][: len(after)]
    assert 0.75 < after[-1][0] < 0.8


@pytest.mark.parametrize("container", ["mp4", "webm"])
@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 2), (4, 2), (6, 6), (7, 2), (8, 8)])
def test_comfyui_audio_is_encoded(container, channels, kept):
    wave = np.concatenate([chirp(1.0, 44100)] * 4)[:channels]
    audio = {"waveform": torch.from_numpy(wave)[None], "sample_rate": 44100}
    target = write(io.BytesIO(), gradient(24, 64, 48), container=container, audio=audio)
    found = codec.read_audio(target)
    assert found["waveform"].shape[1] == kept
    rate = found["sample_rate"]
    positions = np.linspace(0, 44099, round(rate))
    wanted = np.interp(positions, np.arange(44100), wave[0])[None]
    assert abs(offset_of(found["waveform"][0].numpy(), wanted, rate)) < 0.003


def with_eight_channels(frames, codec="flac", channels=8, pts=0):
    """A Matroska clip with 7.1 sound; the channels hold 1/100, 2/100 and so on."""
    target = encode(frames, "ffv1", "matroska", pixels="bgr0")
    out = io.BytesIO()
    with av.open(target) as source, av.open(out, "w", format="matroska") as file:
        video = file.add_stream_from_template(source.streams.video[0])
        layout = {8: "7.1", 16: "hexadecagonal", 1: "mono"}[channels]
        audio = file.add_stream(codec, rate=48000, layout=layout)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                file.mux(packet)
        for number in range(10):
            level = np.arange(1, channels + 1) * 0.01 * 32768
            wave = np.tile(level.astype(np.int16), 1024)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = 48000, pts + number * 1024, Fraction(1, 48000)
            file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    out.seek(0)
    return out


def test_all_eight_channels_are_read():
    """PyAV crashes when it makes a planar array of so many."""
    found = codec.read_audio(with_eight_channels(numbered(5)))["waveform"]
    assert found.shape == (1, 8, 10240)
    levels = torch.arange(1, 9)[None, :, None] * 0.01
    assert (found - levels).abs().max() < 1e-3


def test_sound_with_more_channels_than_layouts_is_left_out_with_a_warning(caplog):
    source = with_eight_channels(numbered(5), "pcm_s16le", 16)
    target = write(io.BytesIO(), [f for f, _ in codec.Reader(source)], audio_from=source)
    assert codec.probe(target).has_audio is False
    assert caplog.messages == ["sound with 16 channels cannot be written and is left out: give 1 to 8"]


def test_sound_without_samples_is_no_track(caplog):
    audio = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}
    target = write(io.BytesIO(), gradient(3, 64, 48), audio=audio)
    assert len(list(codec.Reader(target))) == 3 and not caplog.messages


def test_a_damaged_time_does_not_become_hours_of_silence(caplog):
    source = with_eight_channels(numbered(5), "pcm_s16le", 1, pts=36_000 * 48_000)
    assert codec.read_audio(source)["waveform"].shape == (1, 1, 0)
    assert caplog.messages == ["the sound of the video in memory ends early: its times are damaged"]


def test_sound_that_cannot_be_read_is_left_out_with_a_warning(caplog):
    source = with_sound(numbered(25), tone(1.0), container="matroska")
    broken = io.BytesIO(source.getvalue().replace(b"A_AAC", b"A_XXX"))
    frames = [f for f, _ in codec.Reader(broken)]
    target = write(io.BytesIO(), frames, audio_from=broken)
    assert codec.probe(target).has_audio is False and len(frames) == 25
    assert codec.read_audio(broken) is None
    assert set(caplog.messages) == {
        "the sound of the video in memory cannot be read and is left out: copy or download it again"
    }


def test_a_clip_that_the_container_rejects_is_one_sentence():
    """Matroska rejects AAC without its description; FFmpeg says so when it writes the header."""
    data = bytearray(with_sound(numbered(25), tone(1.0)).getvalue())
    at = data.index(b"esds")
    data[at + 4 : at + 40] = bytes(36)
    broken = io.BytesIO(bytes(data))
    with pytest.raises(ValueError, match=r"this clip cannot be written as h264 \(Invalid argument\)"):
        write(io.BytesIO(), [f for f, _ in codec.Reader(broken)], container="mkv", audio_from=broken)


def test_sound_and_pictures_lie_side_by_side():
    """A player must not have to read to the end for the sound: no long run of one kind."""
    source = with_sound(numbered(100), tone(4.0))
    target = write(io.BytesIO(), [f for f, _ in codec.Reader(source)], container="mkv", audio_from=source)
    with av.open(target) as file:
        times = [(p.stream.type, float((p.pts or 0) * p.time_base)) for p in file.demux() if p.size]
    clock = {"video": 0.0, "audio": 0.0}
    for kind, time in times:
        clock[kind] = time
        assert abs(clock["video"] - clock["audio"]) < 1.5 or clock["video"] > 3


def test_a_silent_source_and_a_gif_take_no_sound():
    silent = encode(numbered(4))
    target = write(io.BytesIO(), gradient(4, 64, 48), audio_from=silent)
    assert not codec.probe(target).has_audio
    loud = with_sound(numbered(4), tone(0.2))
    assert not codec.probe(
        write(io.BytesIO(), gradient(4, 64, 48), container="gif", audio_from=loud)
    ).has_audio
