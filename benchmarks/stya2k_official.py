"""Our StyA2K against the official code, same seeded weights: parity and speed in one run.

    python benchmarks/stya2k_official.py --official PATH/TO/StyA2K [--sizes 256 512] [--frames 16] [--speed]

PATH is a checkout of LearningHx/StyA2K; its networks.py is imported, nothing of it is in this project.
Weights: seed 0, convolutions normal with deviation 0.7 * sqrt(2 / fan-in), biases 0; the decoder's last
layer is then scaled so that the output's deviation is 0.2. A parity line gives the largest difference,
the output's deviation, and how far the output moves without attention (it must be far more).
"""

import argparse
import importlib.util
import json
import resource
import sys
import time
import types
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from reelbrush.nodes.stya2k import checkpoint
from reelbrush.nodes.stya2k.network import LAYERS
from reelbrush.nodes.stya2k.perceptual import VGG, VGG_NORMALISED
from reelbrush.nodes.stya2k.small import SmallStyA2K

ROUNDS = 4


def official_modules(path: Path) -> types.ModuleType:
    """The official networks.py, without the package around it."""
    for name in ("models", "models.base_model"):
        sys.modules.setdefault(name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location("models.networks", path / "models" / "networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Official(nn.Module):
    """The official parts called as the official model calls them: one square size, one frame."""

    def __init__(self, networks: types.ModuleType):
        super().__init__()
        layers, cin = [nn.Conv2d(3, 3, 1)], 3
        for width in VGG:
            if width == "M":
                layers.append(nn.MaxPool2d(2, 2, 0, ceil_mode=True))
            else:
                layers += [nn.ReflectionPad2d(1), nn.Conv2d(cin, width, 3), nn.ReLU()]
                cin = width
        self.encoder = nn.Sequential(*layers)
        self.A2K, self.transform = networks.A2K(256), networks.Transform(512)
        self.decoder = networks.Decoder(True)

    def encode(self, x: Tensor) -> list[Tensor]:
        found, names, group, place = {}, iter(self.encoder), 1, 1
        x = next(names)(x)
        for layer in names:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                group, place = group + 1, 1
            elif isinstance(layer, nn.ReLU):
                found[f"relu{group}_{place}"] = x
                place += 1
        return [found[name] for name in LAYERS]

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        c, s = self.encode(content), self.encode(style)
        return self.decoder(self.transform(c[1], s[1], c[2], s[2]), self.A2K(c[0], s[0], "3"))


def seeded(model: Official) -> Official:
    """The written recipe for weights."""
    g = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            fan = m.in_channels * m.kernel_size[0] * m.kernel_size[1]
            with torch.no_grad():
                m.weight.copy_(torch.randn(m.weight.shape, generator=g) * 0.7 * (2 / fan) ** 0.5)
                m.bias.zero_()
    with torch.no_grad():
        x = torch.rand(2, 3, 128, 128, generator=g)
        last = model.decoder.decoder_layer_2[24]
        last.weight.mul_(0.2 / model(x[:1], x[1:]).std())
    return model.requires_grad_(False).train(False)


def ours_of(model: Official) -> nn.Module:
    """Our network with the same weights, through the checkpoint conversion."""
    encoder = {}
    for index, conv in zip(
        VGG_NORMALISED, (m for m in model.encoder if isinstance(m, nn.Conv2d)), strict=True
    ):
        encoder |= {f"{index}.weight": conv.weight, f"{index}.bias": conv.bias}
    parts = {name: getattr(model, name).state_dict() for name in ("A2K", "transform", "decoder")}
    return checkpoint.build(checkpoint.from_official(parts, encoder)).to(memory_format=torch.channels_last)


def picture(size: int, seed: int) -> Tensor:
    """A smooth random picture with grain."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(4, size // 16), max(4, size // 16), generator=g)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth + 0.1 * torch.randn(1, 3, size, size, generator=g)).clamp(0, 1)


def best(call, times: int = 3) -> float:
    """The fastest of some runs, in seconds."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def matmul_rate() -> float:
    """GFLOP/s of a float32 matrix product."""
    a = torch.rand(1536, 1536)
    a @ a
    return 2 * 1536**3 / best(lambda: a @ a, 5) / 1e9


def operations(call) -> float:
    """GFLOP of a call, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed(official: Official, ours: nn.Module, small: nn.Module, frames: int, size: int = 512) -> dict:
    """Frames per second at one size, medians. Ours encode the style once and take two frames a call, as the
    nodes do on a CPU; the official network takes one, and encodes the style each time."""
    clip, style = [picture(size, 10 + i) for i in range(frames)], picture(size, 1)
    pairs = [
        torch.cat(clip[i : i + 2]).contiguous(memory_format=torch.channels_last)
        for i in range(0, frames - 1, 2)
    ]
    report: dict = {
        "size": size,
        "frames": frames,
        "threads": torch.get_num_threads(),
        "matmul": matmul_rate(),
    }
    runs = {}
    for name, network in (("small", small), ("ours", ours)):
        code = network.encode_style(style)
        runs[name] = (lambda f, n=network, c=code: n(f, c), pairs)
    runs["official"] = (lambda f: official(f, style), clip)
    peaks = {}
    for name, (call, calls) in runs.items():
        call(calls[0])
        peaks[name] = peak()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(ROUNDS):  # in turns: what else the machine does falls on all of them
        for name, (call, calls) in runs.items():
            call(calls[0])  # a clip's frames follow each other: memory and caches are its own
            for frame in calls[i * len(calls) // ROUNDS : (i + 1) * len(calls) // ROUNDS]:
                start = time.perf_counter()
                call(frame)
                seconds[name].append((time.perf_counter() - start) / len(frame))
    for name, (call, calls) in runs.items():
        each = median(seconds[name])
        gflop = operations(lambda c=call, f=calls[0]: c(f)) / len(calls[0])
        report[name] = {
            "fps": 1 / each,
            "gflop": gflop,
            "gflop_per_s": gflop / each,
            "share_of_matmul": gflop / each / report["matmul"],
            "peak_gb_so_far": peaks[name],
        }
    for name in ("ours", "small"):
        report[name]["times_official"] = report[name]["fps"] / report["official"]["fps"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    official = seeded(Official(official_modules(args.official)))
    ours = ours_of(official)
    with torch.inference_mode():
        for size in args.sizes:
            content, style = picture(size, 2), picture(size, 3)
            want = official(content, style)
            got = ours(content, ours.encode_style(style))
            encoded = ours.encode(content)
            off = ours.decode(ours.plain(encoded), encoded.size)
            line = {
                "parity": size,
                "largest_difference": float((got - want).abs().max()),
                "output_std": float(want.std()),
                "without_attention": float((off - want).abs().mean()),
            }
            sys.stdout.write(json.dumps(line) + "\n")
        if args.speed:
            torch.manual_seed(0)
            small = SmallStyA2K().train(False).to(memory_format=torch.channels_last)
            report = speed(official, ours, small, args.frames)
            sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
