"""Damaged clips: bytes are flipped, cut out, repeated or replaced, and the clip is rendered."""

import io
import random
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch
from outcomes import Log, load, outcome

from reelbrush.nodes.video import codec
from reelbrush.nodes.video.lazy_video import LazyVideo

FRAMES, WIDTH, HEIGHT = 16, 64, 48


def prepare(folder: Path, container: str) -> SimpleNamespace:
    clips = load("video", "clips")
    frames = [torch.from_numpy(f) for f in clips.numbered(FRAMES, WIDTH, HEIGHT)]
    info = codec.VideoInfo(WIDTH, HEIGHT, Fraction(25), FRAMES)
    sound = torch.from_numpy(clips.tone(FRAMES / 25))[None]
    audio = {"waveform": sound, "sample_rate": 44100} if container != "gif" else None
    target = clips.write(io.BytesIO(), frames, info=info, container=container, audio=audio)
    return SimpleNamespace(clip=target.getvalue(), suffix=container, folder=folder, log=Log())


def count(state: SimpleNamespace) -> int:
    return 300


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file. Half of them are in its first 2,000 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(out), 2000) if rng.random() < 0.5 else len(out))
        size = min(rng.choice((1, 4, 40, 400, 3000)), len(out) - at)
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + size] = bytes(size)
            case 2:
                out[at : at + size] = rng.randbytes(size)
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[max(0, at - size) : at]
            case 5:
                out[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
            case 6:
                out[at : at + 8] = struct.pack(">Q", rng.choice((0, 2**40, 2**63, 2**64 - 1)))
            case 7:
                del out[at:]
        if not out:
            break
    return bytes(out)


def case(state: SimpleNamespace, number: int) -> str:
    rng = random.Random(f"{state.suffix} {number}")
    path = state.folder / "input" / f"{number}.{state.suffix}"
    path.write_bytes(damaged(state.clip, rng))
    target = io.BytesIO()

    def render() -> None:
        video = LazyVideo.from_file(path)
        if number % 4 == 1:
            video = video.trim(rng.randrange(4), 0, rng.randint(1, 2))
        if number % 4 == 2:
            video.get_components()
        video.save_to(target, format="mkv", codec="ffv1")

    text, _ = outcome(render, state.log)
    path.unlink()
    if text.startswith(("result", "warning")):
        target.seek(0)
        with codec.Reader(target) as reader:
            made = sum(1 for _ in reader)
        if not made:
            return "failure: a file without frames"
        if made < FRAMES and text == "result" and number % 4 != 1:  # not trimmed
            return f"silent: {made} of {FRAMES} frames"
    return text
