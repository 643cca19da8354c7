"""Attacks the pack with damaged files, graphs, caches and servers, with bad pictures, and by killing it.

    python tests/attack/run.py [--short] [--only NAME] [--write]

Every case must end in a result or in an error message of one sentence, within its time. The seeds are
fixed. Cases run in worker processes, so that a crash or a hang is one failed case. `--write` writes the
table to RESULTS.md.
"""

import argparse
import importlib
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

HERE = Path(__file__).parent
MEMORY = 2000  # MiB that a worker may take


@dataclass
class Job:
    """One kind of attack: the cases of a module, or `short` of them, each with so many seconds."""

    name: str
    module: str
    argument: str
    short: int
    seconds: float = 30
    done: int = 0
    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wall: float = 0.0
    memory: float = 0.0  # MiB


JOBS = [
    *(Job(f"damaged {c} files", "media", c, 10) for c in ("mp4", "mkv", "webm", "gif", "mov")),
    Job("unusual clips and sounds", "clips", "", 12),
    Job("broken graphs", "graphs", "", 60),
    Job("damaged frame caches", "cache", "", 6),
    Job("damaged weights", "weights", "", 10),
    Job("hostile servers", "servers", "", 8, seconds=40),
    Job("bad pictures, masks, latents; every node that needs no ComfyUI", "tensors", "", 40, seconds=60),
    Job(
        "odd values of widgets and connections; every node that needs no ComfyUI",
        "widgets",
        "",
        20,
        seconds=60,
    ),
    Job("odd surroundings", "surroundings", "", 2, seconds=60),
    Job("renders in parallel on one home", "processes", "parallel", 0, seconds=600),
    Job("kill -9 at a random moment", "processes", "kill", 2, seconds=300),
    Job("SIGTERM at a random moment", "processes", "term", 1, seconds=300),
]


def worker(module: str, argument: str, first: int, cases: int) -> None:
    """Run the cases from number `first` on, in this process; `cases` of them spread over all, 0: all.

    A line for each has the number, the memory of this process and the outcome.
    """
    sys.path.insert(0, str(HERE))
    attack = importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        os.environ["REELBRUSH_HOME"] = folder
        for kind in ("input", "output", "temp", "models"):
            Path(folder, kind).mkdir()
        state = attack.prepare(Path(folder), argument)
        sys.stdout.write("ready\n")
        total = attack.count(state)
        for number in range(first, cases or total):
            outcome = attack.case(state, number * total // (cases or total))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            outcome = outcome if memory < MEMORY else f"failure: {memory} MiB of memory"
            sys.stdout.write(f"{number}\t{memory}\t{outcome}\n".encode("ascii", "replace").decode())
            sys.stdout.flush()
    sys.stdout.write("end\n")


def attack(job: Job, cases: int) -> Job:
    """Run all cases of a job; a new worker continues after a case that crashed or hung."""
    begin, number = time.monotonic(), 0
    while number is not None and len(job.failures) < 20:
        number = _attack_from(job, number, cases)
    job.wall = time.monotonic() - begin
    return job


def _attack_from(job: Job, number: int, cases: int) -> int | None:
    code = [sys.executable, __file__, "--worker", job.module, job.argument, str(number), str(cases)]
    process = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = 600.0  # seconds for imports and preparations
    lines: Queue[str] = Queue()
    errors: list[str] = []

    def read() -> None:
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put("")

    threads = [threading.Thread(target=read), threading.Thread(target=lambda: errors.extend(process.stderr))]
    for thread in threads:
        thread.start()
    try:
        while True:
            line = lines.get(timeout=limit)
            if line == "ready":
                limit = job.seconds
                continue
            if line == "end":
                return None
            if not line:
                process.wait()
                threads[1].join()
                last = (errors or ["no message"])[-1].strip()
                job.failures.append(f"case {number}: the process ended with {process.returncode}: {last}")
                break
            where, memory, outcome = line.split("\t", 2)
            number = int(where) + 1
            job.done = number
            job.memory = max(job.memory, float(memory))
            kind, _, details = outcome.partition(": ")
            job.outcomes[kind] += 1
            if (
                kind == "silent" and "gif" not in job.name
            ):  # a cut between two pictures of a GIF cannot be seen
                job.failures.append(f"case {where}: shorter, no warning")
            if kind == "failure":
                job.failures.append(f"case {where}: {details}")
    except Empty:
        job.failures.append(f"case {number}: not finished after {limit:g} s")
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join()
    job.outcomes["failure"] += 1
    job.done = number + 1
    return number + 1 if limit == job.seconds and number + 1 < (cases or 10**6) else None


def table(jobs: list[Job]) -> str:
    rows = [
        "| attack | cases | result | with a warning | shorter, no warning | message | failures | s | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        kinds = [job.outcomes[kind] for kind in ("result", "warning", "silent", "message", "failure")]
        cells = [job.name, job.done, *kinds, f"{job.wall:.0f}", f"{job.memory:.0f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a few cases of each, in under a minute")
    parser.add_argument("--only", default="", metavar="NAME", help="the attacks whose names contain this")
    parser.add_argument("--write", action="store_true", help="write the table to RESULTS.md")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker[:2], *map(int, args.worker[2:]))
        return 0
    if args.write and (args.only or args.short):
        parser.error("--write writes the whole table: leave out --only and --short")
    jobs = [j for j in JOBS if args.only in j.name and (j.short or not args.short)]
    if not jobs:
        parser.error(f"no attack's name contains {args.only!r}")
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: attack(job, job.short if args.short else 0), jobs))
    text = table(jobs)
    sys.stdout.write(text)
    for job in jobs:
        for failure in job.failures:
            sys.stdout.write(f"{job.name}, {failure[:400]}\n")
    sys.stdout.write(f"{time.monotonic() - begin:.0f} s\n")
    if args.write:
        head = "# Attacks\n\nWritten by `python tests/attack/run.py --write`"
        machine = f"Python {platform.python_version()}, {os.cpu_count()} CPU cores"
        (HERE / "RESULTS.md").write_text(f"{head} ({machine}, {time.monotonic() - begin:.0f} s).\n\n{text}")
    return 1 if any(job.failures for job in jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
