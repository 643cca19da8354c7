"""Reweighted attention against the official formulation: time and memory by token count, on the CPU.

    python benchmarks/reweight_speed.py [--tokens 1024 4096 16384] [--heads 8] [--width 40] [--repeat 3]

The official code computes both logit matrices, scales one, puts them side by side, takes the softmax and
multiplies with the values put side by side: N x 2N numbers per head, several times over. Written here from
its description. At 16384 tokens that is 17 GB for one matrix of 8 heads. Above 8192 tokens both ways are
therefore measured on one head and multiplied by the heads, and the official one gets its queries in blocks of
4096, which changes nothing in its result and spares it most of its memory: its column is a lower bound there.

Every measurement has a process of its own: memory is the growth of the peak resident size over the inputs.
The ways take turns, and the fastest of `--repeat` counts, so that a busy machine slows both alike.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise

import torch
from torch import Tensor

from reelbrush.kernels.reweight import reweighted_attention

WAYS = ("ours", "official")
LARGE = 8192


def official(q: Tensor, content: tuple[Tensor, Tensor], style: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """The official formulation: einsum, scale, concatenate, softmax, einsum."""
    (k_c, v_c), (k_s, v_s) = content, style
    to_style = torch.einsum("bhid,bhjd->bhij", q, k_s) * q.shape[-1] ** -0.5
    to_content = torch.einsum("bhid,bhjd->bhij", q, k_c) * q.shape[-1] ** -0.5
    to_style *= scale
    weights = torch.cat([to_style, to_content], dim=3).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, torch.cat([v_s, v_c], dim=2))


def measure(way: str, tokens: int, heads: int, width: int) -> dict:
    """Seconds and megabytes above the inputs, for all heads."""
    g = torch.Generator().manual_seed(0)
    together = 1 if tokens > LARGE else heads
    q, k_c, v_c, k_s, v_s = (torch.randn(1, together, tokens, width, generator=g) for _ in range(5))
    run = reweighted_attention if way == "ours" else official
    small = tuple(t[:, :1, :64] for t in (q, k_c, v_c, k_s, v_s))
    run(small[0], small[1:3], small[3:], scale=1.2)  # load libraries, start threads
    block = LARGE // 2 if way == "official" and tokens > LARGE else tokens
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for part in q.split(block, dim=2):
        run(part, (k_c, v_c), (k_s, v_s), scale=1.2)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = heads // together
    return {"seconds": seconds * times, "megabytes": (peak - before) / 1024 * times}


def apart(way: str, tokens: int, given: argparse.Namespace) -> dict:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", way, "--tokens", str(tokens)]
    command += ["--heads", str(given.heads), "--width", str(given.width)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        tokens = given.tokens[0]
        sys.stdout.write(json.dumps(measure(given.one, tokens, given.heads, given.width)))
        return
    out = [f"{'tokens':>7} {'ours s':>9} {'official s':>11} {'faster':>7} {'ours MB':>9} {'official MB':>12}"]
    memory = []
    for tokens in given.tokens:
        found: dict[str, list[dict]] = {way: [] for way in WAYS}
        for _ in range(given.repeat if tokens <= LARGE else 1):
            for way in WAYS:
                found[way].append(apart(way, tokens, given))
        fast = {way: min(f["seconds"] for f in found[way]) for way in WAYS}
        most = {way: max(f["megabytes"] for f in found[way]) for way in WAYS}
        memory.append(most["ours"])
        out.append(
            f"{tokens:>7} {fast['ours']:>9.3f} {fast['official']:>11.3f} "
            f"{fast['official'] / fast['ours']:>6.1f}x {most['ours']:>9.1f} {most['official']:>12.1f}"
        )
    steps = [b / a for a, b in pairwise(memory)]
    out.append("our memory from one row to the next: " + ", ".join(f"{s:.2f}x" for s in steps))
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
