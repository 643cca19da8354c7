"""Damaged frame caches: a save that continues from one must give the same frames as one without."""

import random
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from outcomes import Log, load, outcome

from reelbrush.nodes import host
from reelbrush.nodes.video import frame_cache


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    """Two caches to damage: one of a cancelled save, with states, and one of a finished save."""
    graphs = load("video", "graphs")
    video = graphs.costly(graphs.lazy(40))
    cache = frame_cache.FrameCache(video.operation).path
    masters = []
    at = host.Progress.at
    for last in (26, 10**6):

        def cancel(self, done, preview=None, last=last):
            if done >= last:
                raise KeyboardInterrupt
            at(self, done, preview)

        host.Progress.at = cancel
        with suppress(KeyboardInterrupt):
            video.save_to(folder / "output" / "a.mkv", codec="ffv1")
        host.Progress.at = at
        masters.append(shutil.copytree(cache, folder / f"master{last}"))
    wanted = graphs.saved(folder / "output" / "a.mkv")
    return SimpleNamespace(video=video, cache=cache, masters=masters, wanted=wanted, graphs=graphs, log=Log())


def count(state: SimpleNamespace) -> int:
    return 100


def damage(folder: Path, rng: random.Random) -> None:
    """One to three changes of the files in a folder."""
    for _ in range(rng.randint(1, 3)):
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "lock")
        if not files:
            return
        path, other = rng.choice(files), rng.choice(files)
        data = bytearray(path.read_bytes())
        at, size = rng.randrange(len(data) or 1), rng.choice((1, 8, 100, 40_000))
        match rng.randrange(10):
            case 0:
                data[at : at + size] = bytes(b ^ 0x5A for b in data[at : at + size])
            case 1:
                data[at : at + size] = bytes(len(data[at : at + size]))
            case 2:
                del data[at:]
            case 3:
                data = bytearray()
            case 4:
                data = bytearray(rng.randbytes(300))
            case 5:
                data, theirs = bytearray(other.read_bytes()), data
                other.write_bytes(theirs)
            case 6:
                path.unlink()
                continue
            case 7:
                path.unlink()
                path.mkdir()
                continue
            case 8:
                data += rng.randbytes(size)
            case 9:
                (folder / rng.choice(("00009.mkv", "00001.states", "x", ".00001.mkv.1@x.part"))).write_bytes(
                    data
                )
        path.write_bytes(data)


def case(state: SimpleNamespace, number: int) -> str:
    rng = random.Random(f"cache {number}")
    shutil.rmtree(state.cache, ignore_errors=True)
    shutil.copytree(state.masters[number % 2], state.cache)
    damage(state.cache, rng)
    target = state.cache.parents[1] / "b.mkv"
    text, _ = outcome(lambda: state.video.save_to(target, codec="ffv1"), state.log)
    if not text.startswith(("result", "warning")):
        return f"failure: {text}"
    if not torch.equal(state.graphs.saved(target), state.wanted):
        return "failure: other frames"
    read = torch.cat(list(state.video.chunks(7)))
    again = torch.stack([frame.float() / 255 for frame in state.wanted])
    if not torch.equal(read, again):
        return "failure: other frames when they are read again"
    return text
