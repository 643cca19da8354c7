"""Three style regions with guidance: UNet rows and time per step, ours against core's LoRA hooks and separate
models.

    COMFYUI_PATH=../ComfyUI python benchmarks/diffstyler_regions.py [--channels 320] [--side 16] [--rounds 5]
    COMFYUI_PATH=... python benchmarks/diffstyler_regions.py --memory 1        (2, 4: a process each)

Inside a real ComfyUI, one run, the same random weights, LoRAs (rank 16, q, k and v), masks, noise and Euler
steps for all; SD1.5's block layout at one width. The masks leave an outside, so that eq. 7's base term is
needed. Every round times each way once, in turn; best and median are shown, and the least CPU time, which
means something on a busy machine too. Beside them stands the ratio to ours, and how far the result is from
ours (the injected others differ on purpose: core's hooks and the official plan read the source under each
LoRA and inject the base).

    eq. 7 alone
      ours        Apply Style LoRA x 3: all rows in one call
      core hooks  core's LoRA hooks on masked conditionings, the base as the default conditioning
      separate    four models with merged weights, each called on its own
    eq. 7 with injection (features 4-11, attention in all blocks, the whole time)
      ours        the same with Inject Features: one source row
      core hooks  the same with Inject Features: the source is read again under every hook's weights
      separate    one source for the four models
      official    the official code's plan: a source row in each of the four models

`--memory N`: bytes of weights, and the peak of the process above the loaded model, with N regions.
"""

import argparse
import importlib
import os
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENDS = (1.0, 1.0)
CFG = 5.0


def inside() -> SimpleNamespace:
    """ComfyUI's and the pack's modules; ComfyUI parses the command line at import."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.hooks
    import folder_paths  # noqa: F401 - what the pack looks for

    sys.argv = arguments
    for name, folder in (("tests", ROOT / "tests"), ("tests.diffusion", ROOT / "tests" / "diffusion")):
        sys.modules.setdefault(name, ModuleType(name)).__path__ = [str(folder)]
    names = ("host", "diffusion.inject", "diffusion.inject_nodes", "diffusion.unet")
    found = [importlib.import_module(f"reelbrush.nodes.{name}") for name in names]
    names += ("attention_tools", "lora_tools", "tiny", "tiny_sampling")
    found += [importlib.import_module(f"tests.diffusion.{name}") for name in names[4:]]
    modules = {name.split(".")[-1]: module for name, module in zip(names, found, strict=True)}
    return SimpleNamespace(core=comfy.hooks, **modules)


class Bench:
    """One model, three LoRAs and masks, and the ways to sample with them."""

    def __init__(self, channels: int, side: int, steps: int, regions: int = 3):
        import torch

        self.t, self.torch = inside(), torch
        layout = {**self.t.tiny.LAYOUTS["sd15"], "model_channels": channels, "channel_mult": (1, 1, 1, 1)}
        self.layout, self.regions, self.size = layout, regions, (side, side)
        self.model = self.t.tiny.comfy_model(layout)
        self.weights = self.t.unet.network(self.model).state_dict()
        make = self.t.lora_tools.random_lora
        self.loras = [
            make(self.model, seed, rank=16, size=0.05, projections=("to_q", "to_k", "to_v"))
            for seed in range(regions)
        ]
        self.masks = []
        for i in range(regions):  # stripes over the upper three quarters
            mask = torch.zeros(1, side * 8, side * 8)
            mask[:, : side * 6, side * 8 * i // regions : side * 8 * (i + 1) // regions] = 1
            self.masks.append(mask)
        table = self.model.model.model_sampling.sigmas
        self.sigmas = torch.cat([table[torch.linspace(900, 100, steps).long()], torch.zeros(1)])
        g = torch.Generator().manual_seed(0)
        self.start = torch.randn(1, 4, side, side, generator=g) * float(self.sigmas[0])
        self.positive, self.negative = (self.t.tiny.conditioning(self.model, seed=s) for s in (1, 2))
        self.content = self.t.attention_tools.trajectory(
            self.model, size=self.size, seed=20, sigmas=self.sigmas
        )
        self.apart: list[Any] = []

    def separate(self) -> list[Any]:
        """The base model, and one with each LoRA in its weights."""
        if not self.apart:
            self.apart = [self.model]
            for lora in self.loras:
                merged = {k: v.clone() for k, v in self.weights.items()}
                for path, part in lora.parts.items():
                    merged[f"{path}.weight"] += part.delta()
                self.apart.append(self.t.tiny.comfy_model(self.layout, merged))
        return self.apart

    def inject(self, model: Any) -> Any:
        settings = ("4-11", "all", *ENDS, True, True, "replace")
        return self.t.inject_nodes.Inject().patch(model, self.content, *settings)[0]

    def run(self, model: Any, function: Callable, positive: list, negative: list) -> Any:
        with self.torch.inference_mode():
            latent = model.model.process_latent_out(self.start)
            out = self.t.host.sample(model, function, latent, self.sigmas, positive, negative, cfg=CFG)
            return model.model.process_latent_in(out)

    # the ways

    def ours(self, injected: bool) -> Any:
        chain = self.model
        for lora, mask in zip(self.loras, self.masks, strict=True):
            chain = self.t.lora_tools.apply(chain, lora, mask=mask)
        chain = self.inject(chain) if injected else chain
        return self.run(chain, self.t.tiny_sampling.euler, self.positive, self.negative)

    def hooks(self, injected: bool) -> Any:
        core = self.t.core
        pair = [[], []]
        plain = [self.positive, self.negative]
        for lora, mask in zip(self.loras, self.masks, strict=True):
            named = {}
            for path, part in lora.parts.items():
                key = "lora_unet_" + path.replace(".", "_")
                rank = len(part.down)
                named |= {f"{key}.lora_up.weight": part.up, f"{key}.lora_down.weight": part.down}
                named[f"{key}.alpha"] = self.torch.tensor(part.scale * rank)
            hook = core.create_hook_lora(named, 1.0, 0.0)
            pair = core.set_conds_props_and_combine(pair, plain, mask=mask, hooks=hook)
        pair = core.set_default_conds_and_combine(pair, plain)
        model = self.inject(self.model) if injected else self.model
        return self.run(model, self.t.tiny_sampling.euler, *pair)

    def models(self, injected: bool, shared: bool = True) -> Any:
        """Eq. 7 over separate models, each called by itself; no guider, which is in their favour."""
        torch, unet = self.torch, self.t.unet
        models, injections = list(self.separate()), []
        if injected:
            ends = [(0.0, 0.0) if i == 0 and shared else ENDS for i in range(len(models))]
            made = [self._injected(m, e) for m, e in zip(models, ends, strict=True)]
            injections, models = ([pair[i] for pair in made] for i in (0, 1))
        size = self.size
        shares = [torch.nn.functional.interpolate(m[:, None], size, mode="area") for m in self.masks]
        shares.insert(0, 1 - sum(shares))
        with ExitStack() as stack, torch.inference_mode():
            bases = [stack.enter_context(unet.loaded(m)) for m in models]
            texts = [unet.conditions(bases[0], c, self.start) for c in (self.positive, self.negative)]
            both = {"c_crossattn": torch.cat([t["c_crossattn"] for t in texts])}
            x = self.start
            for s, following in pairwise(self.sigmas.tolist()):
                if injected and shared:
                    found = self._source(injections[0], models[0], s)
                    for injection in injections[1:]:
                        injection.source = SimpleNamespace(read=lambda *_, f=found: f, key="")
                x0 = 0
                for share, model, base in zip(shares, models, bases, strict=True):
                    options = unet.standalone_options(model, torch.tensor([s]))
                    options |= {"cond_or_uncond": [0, 1], "uuids": [uuid.UUID(int=1), uuid.UUID(int=2)]}
                    z = torch.cat([x, x]) / (1 + s**2) ** 0.5
                    cond, uncond = unet.evaluate(base, z, s, both, options).chunk(2)
                    x0 = x0 + share * (uncond + CFG * (cond - uncond))
                x = x + (following - s) * (x - x0) / s
        return x

    def _injected(self, model: Any, ends: tuple[float, float]) -> tuple[Any, Any]:
        """An injection on a clone, within reach; with ends of 0 it only reads."""
        clone, every = model.clone(), self.t.unet.blocks(model)
        when = [self.t.unet.sigma_range(model, 0.0, end) for end in (*ends, 0.0)]
        made = self.t.inject.Inject(self.content, every[4:], self.t.unet.layers(model)[-9:], *when)
        made.attach(clone)
        return made, clone

    def _source(self, injection: Any, model: Any, sigma: float) -> dict:
        """The source read through a model, outside any sampling of it."""
        unet = self.t.unet
        call = SimpleNamespace(
            sigma=sigma,
            x=self.start,
            options=unet.standalone_options(model, self.torch.tensor([sigma])),
            elsewhere=lambda z, given: lambda options: unet.evaluate(model.model, z, sigma, given, options),
        )
        items = [("features", b.number) for b in injection.blocks]
        items += [(kind, layer.number) for kind in injection.kinds for layer in injection.layers]
        injection.source._items = frozenset(items)
        return injection.source._compute(call, (0,))

    # counting

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """Rows of every evaluation of any of the models."""
        seen: list[int] = []
        with ExitStack() as stack:
            for model in self.apart or [self.model]:
                found = stack.enter_context(self.t.attention_tools.counted(model))
                stack.callback(lambda f=found: seen.extend(f))
            yield seen


def table(given: argparse.Namespace) -> None:
    """Rows, seconds and agreement of every way."""
    bench = Bench(given.channels, given.side, given.steps)
    bench.separate()
    ways = {
        "eq. 7: ours": lambda: bench.ours(False),
        "eq. 7: core hooks": lambda: bench.hooks(False),
        "eq. 7: separate models": lambda: bench.models(False),
        "injected: ours": lambda: bench.ours(True),
        "injected: core hooks": lambda: bench.hooks(True),
        "injected: separate, one source": lambda: bench.models(True),
        "injected: official plan": lambda: bench.models(True, shared=False),
    }
    rows, first, seconds, busy = {}, {}, {name: [] for name in ways}, {name: [] for name in ways}
    for name, run in ways.items():  # once untimed: weights are cached and copied here
        with bench.counted() as seen:
            first[name] = run()
        rows[name] = sum(seen) / given.steps
    for _ in range(given.rounds):
        for name, run in ways.items():
            begin, worked = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - begin) / given.steps)
            busy[name].append((time.process_time() - worked) / given.steps)
    say = sys.stdout.write
    say(f"{given.channels} channels, latents of {given.side}, {given.steps} steps, {given.rounds} times\n")
    head = f"{'':>32} {'rows/step':>9} {'best s/step':>12} {'median':>8} {'to ours':>8} "
    say(f"{head}{'CPU s':>7} {'to ours':>8}  off ours\n")
    for name in ways:
        ours = f"{name.split(':')[0]}: ours"
        apart = float((first[name] - first[ours]).norm() / first[ours].norm())
        best, middle = min(seconds[name]), statistics.median(seconds[name])
        ratio, worked = middle / statistics.median(seconds[ours]), min(busy[name])
        say(f"{name:>32} {rows[name]:>9.1f} {best:>12.3f} {middle:>8.3f} {ratio:>8.2f} ")
        say(f"{worked:>7.3f} {worked / min(busy[ours]):>8.2f}  {apart:.1e}\n")


def memory(given: argparse.Namespace) -> None:
    """Weights, branches and the peak of the process, for so many regions."""
    bench = Bench(given.channels, given.side, given.steps, given.memory)
    base = sum(w.nbytes for w in bench.weights.values())
    branches = sum(p.down.nbytes + p.up.nbytes for lora in bench.loras for p in lora.parts.values())
    bench.run(bench.model, bench.t.tiny_sampling.euler, bench.positive, bench.negative)
    if given.tight:
        one = bench.model.model.memory_required([4, 4, *bench.size])
        bench.t.host.free_memory = lambda *_: one
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bench.counted() as seen:
        bench.ours(True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{given.memory} regions: weights {base / 2**20:.1f} MiB, LoRAs {branches / 2**20:.1f} MiB; peak of "
        f"the process {before / 2**10:.0f} MiB before, {peak / 2**10:.0f} MiB with regions; at most "
        f"{max(seen)} rows in a call\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, help="regions")
    parser.add_argument("--tight", action="store_true", help="with memory for one region's rows only")
    given = parser.parse_args()
    (memory if given.memory else table)(given)


if __name__ == "__main__":
    main()
