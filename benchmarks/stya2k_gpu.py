"""StyA2K frames per second on a GPU: the paper's network and the small one that ships, as the nodes run them.

    python benchmarks/stya2k_gpu.py [--official PATH/TO/StyA2K] [--seconds 45] [--sizes 512x512 1920x1080]
    python benchmarks/stya2k_gpu.py --device cpu --sizes 64x64 96x80 --style 64 --official-size 128

Every row is `Stylizer` at work: the style is encoded once, frames go in chunks of its own choice, weights
and maps are channels-last, `precision` is the loader's. `fps` is with frames on the device, `fps_host` with
float frames in the host's memory and the result brought back there, as a clip's are. Times are medians,
the device waited for. GFLOP per frame are what torch counts of one frame (convolutions, matrix products,
attention), the style's own not among them. `of_bf16` and `of_tf32` are shares of the matrix products
measured first. float32 runs as torch is set: `settings` says whether convolutions and products use tf32.

The paper's network has random weights in the official layout (seed 0, the recipe of stya2k_official.py), and
with `--official` the official network has the same ones: it encodes its style again for every frame.
torch.compile comes last, as far as the seconds reach. A part that fails is printed, and the rest goes on;
when the seconds are over, what was found by then is printed and the process ends. No video codec is needed.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

START = time.monotonic()  # loading torch takes its part of the seconds

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402


class NoCodec(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A stand-in for PyAV, which the pack's clips need and this script does not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "av":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.anything
        return module

    @staticmethod
    def anything(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.insert(0, NoCodec())

from stya2k_official import Official, official_modules, operations, ours_of, picture, seeded  # noqa: E402

from reelbrush.nodes import host  # noqa: E402
from reelbrush.nodes.stya2k import checkpoint, library  # noqa: E402
from reelbrush.nodes.stya2k.network import StyA2K  # noqa: E402
from reelbrush.nodes.stya2k.style import Model, load_model, make_style  # noqa: E402
from reelbrush.nodes.stya2k.stylize import Look, Stylizer  # noqa: E402

REPEATS, AT_LEAST, SPENT = 9, 3, 0.6  # per measurement: at most, at least, seconds after which it may end
FOUND: dict[str, Any] = {"rows": [], "failed": [], "log": []}
FOLDER = Path(tempfile.mkdtemp())
PRINTED = threading.Lock()


def say(*words: object) -> None:
    sys.stdout.write(f"[{time.monotonic() - START:5.1f} s] " + " ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def short(value: Any) -> Any:
    """Numbers in five digits."""
    if isinstance(value, dict):
        return {key: short(v) for key, v in value.items()}
    if isinstance(value, list):
        return [short(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


class Kept(logging.Handler):
    """What the pack has to say (a compiler that failed, memory that ended)."""

    def emit(self, record: logging.LogRecord) -> None:
        FOUND["log"].append(record.getMessage()[:300])


def finish(late: bool = False) -> None:
    """The one line of JSON; once."""
    if not PRINTED.acquire(blocking=False):
        return
    FOUND["seconds"], FOUND["ran_out_of_time"] = time.monotonic() - START, late
    shutil.rmtree(FOLDER, ignore_errors=True)
    sys.stdout.write(json.dumps(short(FOUND)) + "\n")
    sys.stdout.flush()
    if late:
        os._exit(0)


def part(name: str, call: Callable[[], None], limit: float, needs: float) -> None:
    """A part of the run; what goes wrong in it is said, and the next one begins."""
    left = limit - (time.monotonic() - START)
    if left < needs:
        FOUND["failed"].append({"part": name, "error": f"left out: {left:.0f} s were left"})
        say(name, "left out")
        return
    try:
        call()
    except Exception as error:
        FOUND["failed"].append({"part": name, "error": f"{type(error).__name__}: {error}"[:400]})
        say(name, "failed")
        sys.stdout.write("".join(traceback.format_exception(error)[-3:]))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any]) -> float:
    """The median time of a call, after one that warms up."""
    call()
    wait()
    spent: list[float] = []
    while len(spent) < AT_LEAST or (len(spent) < REPEATS and sum(spent) < SPENT):
        begin = time.perf_counter()
        call()
        wait()
        spent.append(time.perf_counter() - begin)
    return median(spent)


def peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def counted(call: Callable[[], Any]) -> float:
    """GFLOP of a call; attention as plain products, which torch counts on every device."""
    with sdpa_kernel(SDPBackend.MATH):
        return operations(call)


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matmul(dtype: torch.dtype, tf32: bool, side: int) -> float:
    """TFLOP/s of a square matrix product."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        a, b = (torch.randn(side, side, device=host.device()).to(dtype) for _ in range(2))
        return 2 * side**3 / seconds_of(lambda: a @ b) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def rates(side: int) -> None:
    FOUND["matmul_tflops"] = {
        "bf16": matmul(torch.bfloat16, False, side),
        "fp16": matmul(torch.float16, False, side),
        "tf32": matmul(torch.float32, True, side // 2),
        "side": side,
    }
    say("matrix products, TFLOP/s:", {k: round(v, 1) for k, v in FOUND["matmul_tflops"].items()})


def paper_network(official: Official | None) -> nn.Module:
    """The paper's network with the written recipe for weights."""
    if official is not None:
        return ours_of(official)
    network, g = StyA2K(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                fan = m.in_channels * m.kernel_size[0] * m.kernel_size[1]
                m.weight.copy_(torch.randn(m.weight.shape, generator=g) * 0.7 * (2 / fan) ** 0.5)
                m.bias.zero_()
        x = torch.rand(2, 3, 128, 128, generator=g)
        network.decoder[-1].weight.mul_(0.2 / network(x[:1], network.encode_style(x[1:])).std())
    return network.requires_grad_(False)


def measure(
    name: str, model: Model, size: tuple[int, int], style: Tensor, *, host_too: bool = True, about: str = ""
) -> dict:
    """One row: a model at one size."""
    height, width = size
    with torch.inference_mode():
        made = make_style(model, style, size=style.shape[1])
        run = Stylizer(made, Look(), size)
        forget_peak()
        chunk = run.chunk()
        base = picture(max(size), 2)[..., :height, :width].permute(0, 2, 3, 1)
        frames = torch.cat([base.roll(8 * n, 2) for n in range(chunk)])
        there = frames.to(host.device())
        begin = time.perf_counter()
        out = run(there)
        wait()
        first = time.perf_counter() - begin
        seconds = seconds_of(lambda: run(there))
        row = {
            "network": name,
            "size": f"{width}x{height}",
            "precision": str(model.dtype).removeprefix("torch."),
            "compiled": about,
            "chunk": chunk,
            "fps": chunk / seconds,
            "ms_per_chunk": seconds * 1000,
            "first_call_s": first,
            "peak_gb": peak_gb(),
            "finite": bool(out.isfinite().all()),
            "output_std": float(out.float().std()),
            "tiled": run.tile,
        }
        if not about:
            row["gflop"] = counted(lambda: run(there[:1]))
            row["tflops"] = row["gflop"] * row["fps"] / 1000
            for kind in ("bf16", "tf32"):
                rate = FOUND.get("matmul_tflops", {}).get(kind)
                row[f"of_{kind}"] = row["tflops"] / rate if rate else None
        if host_too:
            row["fps_host"] = chunk / seconds_of(lambda: run(frames))
    FOUND["rows"].append(row)
    shown = ("fps", "fps_host", "peak_gb", "gflop", "tflops", "of_bf16", "of_tf32", "first_call_s")
    say(
        f"{name} {row['size']} {row['precision']} {about} chunk {chunk}:",
        ", ".join(f"{key} {row[key]:.3g}" for key in shown if row.get(key) is not None),
    )
    return row


def per_frame(official: Official, size: int) -> None:
    """The official network, called frame by frame with its style, in float32 as torch is set."""
    network = official.to(host.device())
    frames, style = picture(size, 2).to(host.device()), picture(size, 3).to(host.device())
    with torch.inference_mode():
        forget_peak()
        seconds = seconds_of(lambda: network(frames, style))
        row = {
            "network": "official",
            "size": f"{size}x{size}",
            "precision": "float32",
            "chunk": 1,
            "fps": 1 / seconds,
            "peak_gb": peak_gb(),
            "gflop": counted(lambda: network(frames, style)),
        }
    FOUND["official"] = row
    same = [r for r in FOUND["rows"] if r["size"] == row["size"]]
    row["ours_times_official"] = {
        f"{r['network']} {r['precision']} {r['compiled']}".strip(): r["fps"] / row["fps"] for r in same
    }
    say("official per frame:", json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--official", type=Path)
    parser.add_argument("--official-size", type=int, default=512)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "1920x1080"], metavar="WxH")
    parser.add_argument("--style", type=int, default=512, help="side of the style picture")
    parser.add_argument("--seconds", type=float, default=45, help="wall time in all")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the matrix product")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        args.matmul = min(args.matmul, 1024)
    elif not torch.cuda.is_available():
        parser.error("no CUDA device here: give --device cpu to rehearse")
    limit = args.seconds - 2
    watch = threading.Timer(max(0.1, limit - (time.monotonic() - START)), finish, [True])
    watch.daemon = True
    logging.getLogger("reelbrush").addHandler(Kept())
    logging.getLogger("reelbrush").setLevel(logging.INFO)
    watch.start()
    device = host.device()
    FOUND["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    FOUND["torch"], FOUND["threads"] = torch.__version__, torch.get_num_threads()
    FOUND["settings"] = {
        "convolutions_tf32": torch.backends.cudnn.allow_tf32,
        "products_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }
    say(FOUND["device"], "torch", FOUND["torch"], FOUND["settings"])
    sizes = [tuple(map(int, s.split("x")))[::-1] for s in args.sizes]
    style = picture(args.style, 1).permute(0, 2, 3, 1)
    files: dict[str, Path] = {"small": library.path(library.embedded()[0])}
    official: list[Official] = []
    half = ("float16", "bfloat16") if device.type == "cuda" else ("bfloat16",)

    def weights() -> None:
        network = paper_network(official[0] if official else None)
        checkpoint.save(network, FOLDER / "paper.safetensors", half=False)
        files["paper"] = FOLDER / "paper.safetensors"
        say("the paper's network is made")

    if args.official:
        modules = args.official
        part("official", lambda: official.append(seeded(Official(official_modules(modules)))), limit, 1)
    part("weights", weights, limit, 1)
    part("matrix products", lambda: rates(args.matmul), limit, 1)
    for size in sizes:
        for name in ("paper", "small"):
            for precision in (*half, "float32"):
                part(
                    f"{name} {precision} {size}",
                    lambda n=name, p=precision, s=size: measure(n, load_model(files[n], p), s, style),
                    limit,
                    2,
                )
    if official:
        part("official per frame", lambda: per_frame(official[0], args.official_size), limit, 2)
    torch.backends.cudnn.benchmark = True  # not what the nodes do: what they would gain
    for size in sizes:
        part(
            f"paper searching {size}",
            lambda s=size: measure(
                "paper",
                load_model(files["paper"], half[0]),
                s,
                style,
                host_too=False,
                about="cudnn.benchmark",
            ),
            limit,
            4,
        )
    torch.backends.cudnn.benchmark = False
    for size, name in [(s, n) for s in sizes for n in ("small", "paper")] * (not args.no_compile):
        part(
            f"{name} compiled {size}",
            lambda n=name, s=size: measure(
                n, load_model(files[n], half[0], True), s, style, host_too=False, about="torch.compile"
            ),
            limit,
            6,
        )
    watch.cancel()
    finish()


if __name__ == "__main__":
    main()
