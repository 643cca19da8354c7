"""Saving: formats, errors, and the sound that comes along."""

import io
from fractions import Fraction

import pytest
import torch

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.save import save

from .graphs import Blur, frames, lazy


def test_saving_into_memory_and_other_formats(home):
    video = lazy(8, (32, 48)).then(Blur, 1, 0)
    buffer = io.BytesIO()
    video.save_to(buffer, format="mp4")
    buffer.seek(0)
    assert codec.probe(buffer).frame_count == 8
    for name in ("a.webm", "a.mov", "a.mkv"):
        video.save_to(home / "output" / name)
        assert codec.probe(home / "output" / name).frame_count == 8
    with pytest.raises(ValueError, match="need a folder"):
        video.save_to(io.BytesIO(), format="png")


def test_an_error_of_the_encoder_is_raised_and_leaves_nothing(home, monkeypatch):
    def broken(self, frame, time=None):
        raise OSError("no space left on device")

    monkeypatch.setattr(codec.Writer, "write", broken)
    with pytest.raises(OSError, match="no space"):
        lazy().save_to(home / "output" / "a.mkv")
    assert not [p for p in (home / "output").iterdir() if p.name != ".reelbrush"]


@pytest.mark.parametrize(("bit_depth", "channels"), [(8, 3), (8, 4), (10, 3)])
def test_a_file_has_the_depth_and_alpha_of_its_frames(tmp_path, bit_depth, channels):
    pictures = torch.rand(5, 16, 24, channels, generator=torch.Generator().manual_seed(0))
    LazyVideo.from_frames(pictures, 12, bit_depth=bit_depth).trim(1).save_to(
        tmp_path / "a.mov", codec="prores"
    )
    info = codec.probe(tmp_path / "a.mov", count=True)
    assert (info.frame_count, info.fps, info.alpha) == (4, 12, channels == 4)
    LazyVideo.from_frames(pictures[..., :3], 12, bit_depth=bit_depth).save_to(tmp_path / "b.mkv")
    assert codec.probe(tmp_path / "b.mkv").bit_depth == bit_depth


# -- sound


def tone(seconds, rate=8000):
    t = torch.arange(int(seconds * rate)) / rate
    return {"waveform": torch.sin(t * 2 * torch.pi * (200 + 100 * t)).view(1, 1, -1), "sample_rate": rate}


def test_sound_comes_along_and_a_trim_cuts_it(tmp_path):
    video = LazyVideo.from_frames(frames(48, (16, 16)), 12, tone(4))
    path = tmp_path / "a.mkv"
    video.then(Blur, 0, 0).save_to(path)
    loaded = LazyVideo.from_file(path)
    whole = loaded.get_components().audio
    assert whole["waveform"].shape[-1] == pytest.approx(32000, rel=0.05)
    part = loaded.trim(24, 12).get_components().audio
    assert part["waveform"].shape[-1] == pytest.approx(8000, rel=0.05)
    loaded.trim(24, 12).save_to(tmp_path / "b.mkv")
    video.trim(24, 12).save_to(tmp_path / "c.mkv")
    for name in ("b.mkv", "c.mkv"):
        saved = LazyVideo.from_file(tmp_path / name).get_components().audio
        assert saved["waveform"].shape[-1] / saved["sample_rate"] == pytest.approx(1.0, abs=0.1)


def beeps(seconds, rate=8000):
    """Second s sounds at 200 * (s + 1) Hz."""
    t = torch.arange(seconds * rate) / rate
    return {
        "waveform": torch.sin(t * 2 * torch.pi * 200 * (t.long() + 1)).view(1, 1, -1),
        "sample_rate": rate,
    }


def pitches(audio):
    """The strongest frequency of each second, in Hz."""
    wave, rate = audio["waveform"][0, 0], audio["sample_rate"]
    whole = round(len(wave) / rate) * rate
    seconds = torch.nn.functional.pad(wave, (0, max(0, whole - len(wave))))[:whole].view(-1, rate)
    return [round(second.abs().argmax().item() / 50) * 50 for second in torch.fft.rfft(seconds)]


def test_the_right_part_of_the_sound_is_heard(tmp_path):
    video = LazyVideo.from_frames(frames(48, (16, 16)), 12, beeps(4))
    video.save_to(tmp_path / "clip.mkv")
    loaded = LazyVideo.from_file(tmp_path / "clip.mkv")
    silent = LazyVideo.from_frames(frames(24, (16, 16)), 12)
    for source in (video, loaded):
        for part, heard in [
            (source, [200, 400, 600, 800]),
            (source.trim(24), [600, 800]),
            (source.trim(12, 12), [400]),
            (source.trim(12, 12, 2), [400, 600]),
        ]:
            assert pitches(part.get_components().audio) == heard
            part.save_to(tmp_path / "part.mkv")
            assert pitches(LazyVideo.from_file(tmp_path / "part.mkv").get_components().audio) == heard
        save(silent.operation, tmp_path / "from.mkv", "mkv", audio_from=source.trim(12).operation)
        assert pitches(LazyVideo.from_file(tmp_path / "from.mkv").get_components().audio) == [400, 600]


def test_sound_from_a_silent_clip_is_a_warning(tmp_path, caplog):
    silent = LazyVideo.from_frames(frames(4, (16, 16)), 12)
    loud = LazyVideo.from_frames(frames(4, (16, 16)), 12, beeps(1))
    save(silent.operation, tmp_path / "loud.mkv", "mkv", audio_from=loud.operation)
    assert "no sound" not in caplog.text
    save(loud.operation, tmp_path / "silent.mkv", "mkv", audio_from=silent.operation)
    assert "audio_from has no sound" in caplog.text
    assert not codec.probe(tmp_path / "silent.mkv").has_audio


def test_the_sound_of_a_clip_with_a_changing_rate_ends_with_its_picture(tmp_path):
    info = codec.VideoInfo(16, 16, Fraction(20), 100, True)
    pictures = [(f * 255).byte() for f in frames(100, (16, 16))]
    times = [Fraction(i, 10) for i in range(20)] + [2 + Fraction(i, 40) for i in range(80)]
    with codec.Writer(tmp_path / "vfr.mkv", info, container="mkv", audio=beeps(4)) as writer:
        for picture, time in zip(pictures, times, strict=True):
            writer.write(picture, time)
    loaded = LazyVideo.from_file(tmp_path / "vfr.mkv")
    loaded.trim(10, 10).save_to(tmp_path / "part.mkv")
    assert pitches(LazyVideo.from_file(tmp_path / "part.mkv").get_components().audio) == [400]
