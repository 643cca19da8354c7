"""One harness for time and memory: the variants of a case take turns, each in a process of its own.

    python benchmarks/speed.py                                        lists the cases
    python benchmarks/speed.py attention.reweight tokens=1024,4096 --rounds 5 --json out.json

A case is a function in benchmarks/cases. It maps the name of each variant to a function that prepares it, and
that returns the function to measure, which may return more numbers ("frames" gives frames per second).
Settings are the case's keyword arguments; several values give one measurement each.

Rounds alternate (A B A B ...), so that other work on the machine slows all variants. `ratio` is the median
over the rounds of the first variant's time divided by this variant's time: above 1 this one is faster. Peak
memory is the kernel's for the process, and the part of it above what the process used before the first run;
on a GPU the peak of torch's allocator. Without a warm-up (`--warm-up 0`) the first round counts.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from reelbrush.benchmarks.settings import combinations, defaults, function, listing, words

# -- one variant, in a process of its own ----------------------------------------------------------


def memory(kind: str) -> float:
    """This process's peak (VmHWM) or present (VmRSS) memory in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at the peak of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith(kind))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1)


def serve(case: str, variant: str, settings: dict[str, Any]) -> None:
    """Measure one run for every line of standard input. Answers are lines of JSON."""
    import torch

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # a library that prints does not disturb the answers
        run = function("cases", case)(**settings)[variant]()
        before, cuda = memory("VmRSS"), torch.cuda.is_available()
        for _ in sys.stdin:
            start, cpu = time.perf_counter(), time.process_time()
            values = run() or {}
            if cuda:
                torch.cuda.synchronize()
            row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "values": values}
            row |= {"peak_mb": memory("VmHWM"), "before_mb": before}
            if cuda:
                row["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
            answers.write(json.dumps(row) + "\n")
            answers.flush()


class VariantProcess:
    """A variant that runs when it is called."""

    def __init__(self, case: str, variant: str, settings: dict[str, Any]):
        command = [sys.executable, __file__, case, "--serve", json.dumps([variant, settings])]
        self.variant = variant
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "VariantProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __call__(self) -> dict[str, Any]:
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise SystemExit(f"{self.variant!r} failed: its error message is above") from None


# -- a case ----------------------------------------------------------------------------------------


def measure(case: str, settings: dict[str, Any], rounds: int, warm_up: int) -> dict[str, Any]:
    """All variants of a case in alternating rounds."""
    names = list(function("cases", case)(**settings))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        processes = [stack.enter_context(VariantProcess(case, name, settings)) for name in names]
        for number in range(warm_up + rounds):
            for process in processes:
                row = process()
                if number >= warm_up:
                    rows[process.variant].append(row)
    first = [row["seconds"] for row in rows[names[0]]]
    return {
        "case": case,
        "settings": settings,
        "variants": {name: summary(rows[name], first) for name in names},
    }


def summary(rows: list[dict[str, Any]], first: list[float]) -> dict[str, Any]:
    """Medians, peaks and the pairwise ratio to the first variant."""
    seconds, last = [row["seconds"] for row in rows], rows[-1]
    result = {
        "seconds": seconds,
        "median": median(seconds),
        "worst": max(seconds),
        "cpu": median(row["cpu"] for row in rows),
        "ratio": median(a / b for a, b in zip(first, seconds, strict=True)),
        **{key: max(row[key] for row in rows) for key in last if key.endswith("_mb")},
        "values": dict(last["values"]),
    }
    if "frames" in result["values"]:
        result["values"]["frames/s"] = result["values"]["frames"] / result["median"]
    return result


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['case']} {words(result['settings'])}"]
    lines.append(f"{'':<26}{'median s':>10}{'worst s':>10}{'CPU s':>9}{'ratio':>7}{'peak MB':>9}{'above':>8}")
    for name, row in result["variants"].items():
        above = row["peak_mb"] - row["before_mb"]
        values = {key: round(v, 5) if isinstance(v, float) else v for key, v in row["values"].items()}
        if "gpu_peak_mb" in row:
            values["GPU MB"] = round(row["gpu_peak_mb"])
        lines.append(
            f"{name:<26}{row['median']:>10.4f}{row['worst']:>10.4f}{row['cpu']:>9.3f}{row['ratio']:>7.2f}"
            f"{row['peak_mb']:>9.0f}{above:>8.0f}  {words(values)}"
        )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """The computer on which the numbers were measured."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    about = {"system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    return {**about, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "gpu": gpu}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="?", help="without a case, all are listed")
    parser.add_argument("settings", nargs="*", metavar="name=value[,value...]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.case is None:
        sys.stdout.write(listing("cases"))
        return
    if args.serve:
        serve(args.case, *args.serve)
        return
    case, results = function("cases", args.case), []
    for chosen in combinations(case, args.settings):
        results.append(measure(args.case, defaults(case) | chosen, max(1, args.rounds), args.warm_up))
        sys.stdout.write(table(results[-1]))
        sys.stdout.flush()
        if args.json:
            args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
