"""Renders that are killed at a random moment and continued, and renders in parallel on one home.

The graph stabilizes a clip, picks its key frames and saves it; both read the stabilized frames through the
frame cache. Renders are forks of this process, which imports everything and computes nothing itself.
"""

import json
import os
import random
import signal
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch

from reelbrush import __main__ as command
from reelbrush.nodes.video import codec

FRAMES, HEIGHT, WIDTH = 44, 72, 96
PARALLEL = 20


def graph(folder: Path, strength: float, resume: bool = True) -> Path:
    save = {"filename_prefix": "v", "format": "mkv", "codec": "ffv1", "quality": 20, "resume": resume}
    stable = {"strength": strength, "method": "dis-ultrafast"}
    nodes = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "content.mkv"}},
        "2": {"class_type": "LoadVideo", "inputs": {"file": "stylized.mkv"}},
        "3": {
            "class_type": "ReelBrushStabilizeVideo",
            "inputs": {"stylized": ["2", 0], "content": ["1", 0], **stable},
        },
        "4": {"class_type": "ReelBrushKeyFrames", "inputs": {"video": ["3", 0], "count": 3}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "6": {"class_type": "ReelBrushSaveVideo", "inputs": {"video": ["3", 0], **save}},
    }
    path = folder / f"g{strength}{resume}.json"
    path.write_text(json.dumps(nodes))
    return path


def fork(call) -> int:
    """The process of a fork that makes a call and exits with its value."""
    process = os.fork()
    if not process:
        code = 70
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            code = call()
        finally:
            os._exit(code)
    return process


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def render(path: Path) -> int:
    """A fork that renders a graph file."""
    return fork(lambda: command.main(["render", str(path)]))


def write_clips(folder: Path) -> int:
    """A texture that moves, and the same with flicker."""
    torch.manual_seed(0)
    wide = torch.nn.functional.avg_pool2d(torch.rand(3, HEIGHT + FRAMES, WIDTH + FRAMES), 5, 1, 2)
    frames = torch.stack([wide[:, t : t + HEIGHT, t : t + WIDTH] for t in range(FRAMES)]).permute(0, 2, 3, 1)
    flicker = (frames + 0.1 * torch.rand(FRAMES, 1, 1, 3)).clamp(0, 1)
    for name, clip in (("content", frames), ("stylized", flicker)):
        info = codec.VideoInfo(WIDTH, HEIGHT, Fraction(25), FRAMES)
        with codec.Writer(folder / "input" / f"{name}.mkv", info, container="mkv", codec="ffv1") as writer:
            for frame in codec.from_float(clip):
                writer.write(frame)
    return 0


def read(path: Path) -> torch.Tensor:
    with codec.Reader(path) as reader:
        return torch.stack([frame for frame, _ in reader])


def same(*paths: Path) -> bool:
    """Whether files have the same frames; compared in a fork."""
    first, *others = paths
    return not finish(fork(lambda: 0 if all(torch.equal(read(first), read(o)) for o in others) else 1))


def prepare(folder: Path, argument: str) -> SimpleNamespace:
    command.load_command("render")  # so that the forks need not import it
    if finish(fork(lambda: write_clips(folder))):
        raise RuntimeError("the clips cannot be written")
    kinds = {"parallel": parallel, "kill": killed, "term": killed}
    state = SimpleNamespace(folder=folder, argument=argument, case=kinds[argument])
    state.wanted = {strength: wanted(folder, strength) for strength in (0.5, 0.8)}
    begin = time.monotonic()
    if finish(render(graph(folder, 0.8))):
        raise RuntimeError("the graph does not run")
    state.seconds = time.monotonic() - begin
    clear(folder)
    return state


def wanted(folder: Path, strength: float) -> Path:
    """The clip as a render without a cache gives it."""
    if finish(render(graph(folder, strength, resume=False))):
        raise RuntimeError("the graph does not run")
    kept = folder / f"wanted{strength}.mkv"
    (folder / "output" / "v_00001_.mkv").rename(kept)
    clear(folder)
    return kept


def clear(folder: Path) -> None:
    for path in sorted((folder / "output").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def count(state: SimpleNamespace) -> int:
    return {"parallel": 1, "kill": 50, "term": 20}[state.argument]


def case(state: SimpleNamespace, number: int) -> str:
    try:
        return state.case(state, number)
    finally:
        clear(state.folder)


def leftovers(folder: Path) -> list[str]:
    return [
        p.name for p in (folder / "output").rglob("*") if p.name.startswith(".") and p.name != ".reelbrush"
    ]


def killed(state: SimpleNamespace, number: int) -> str:
    """One or two renders are stopped; the next one continues, and must give the same frames."""
    rng, folder = random.Random(f"{state.argument} {number}"), state.folder
    sent = signal.SIGKILL if state.argument == "kill" else signal.SIGTERM
    for _ in range(rng.randint(1, 2)):
        process = render(graph(folder, 0.8))
        time.sleep(rng.uniform(0, state.seconds))
        os.kill(process, sent)
        code = finish(process)
        if code not in (0, -sent, 130):
            return f"failure: exit code {code}"
    code = finish(render(graph(folder, 0.8)))
    results = sorted((folder / "output").glob("v_*.mkv"))
    if code or leftovers(folder):
        return f"failure: exit code {code}, left {leftovers(folder)}"
    if [p.name for p in results] != [f"v_{i:05}_.mkv" for i in range(1, len(results) + 1)]:
        return f"failure: results {[p.name for p in results]}"
    return "result" if same(state.wanted[0.8], *results) else "failure: other frames"


def parallel(state: SimpleNamespace, number: int) -> str:
    """Renders of two graphs at once: one result each, all of them right."""
    folder = state.folder
    paths = [graph(folder, strength) for strength in (0.5, 0.8)]
    processes = [render(paths[i % 2]) for i in range(PARALLEL)]
    codes = [finish(process) for process in processes]
    results = sorted((folder / "output").glob("v_*.mkv"))
    if any(codes) or len(results) != PARALLEL or leftovers(folder):
        return f"failure: exit codes {codes}, {len(results)} results, left {leftovers(folder)}"
    right = [sum(same(state.wanted[s], result) for result in results) for s in (0.5, 0.8)]
    return "result" if right == [PARALLEL / 2] * 2 else f"failure: {right} results are right"
