"""Diffusion methods on a UNet with random weights: UNet rows, time and memory.

With COMFYUI_PATH set, the network is ComfyUI's own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.nodes_inject import Inject
from reelbrush.nodes.diffusion.patching.layers import network
from reelbrush.tests.diffusion import attention_tools as tools
from reelbrush.tests.diffusion import lora_tools, tiny

KIND = "comfy" if tools.INSIDE else "tiny"
SPLITS = {  # frames per call (0: all), and where the style's features are kept
    "all frames, gpu": (0, "gpu"),
    "4 frames, gpu": (4, "gpu"),
    "1 frame, gpu": (1, "gpu"),
    "4 frames, cpu": (4, "cpu"),
    "4 frames, recompute": (4, "recompute"),
}


def rows(frames: int = 16, steps: int = 30) -> dict[str, Callable]:
    """UNet rows per frame and step of a Z* clip. The official code has 2: a frame and its style.

    Reading passes are included, the inversion is not. Rows do not depend on widths or weights.
    """

    return {name: partial(_zstar_clip, frames, steps, *split) for name, split in SPLITS.items()}


def _zstar_clip(frames: int, steps: int, per_call: int, cache: str) -> Callable[[], dict]:
    model = tools.make(KIND)
    sigmas = tools.levels(model, steps)
    style = tools.trajectory(model, sigmas=sigmas)
    patched = tools.zstar(model, style, start_percent=0.0, cache=cache)
    if per_call:
        patched = FramesPerCall().patch(patched, per_call)[0]

    def run() -> dict:
        with tools.counted(model) as seen, torch.inference_mode():
            tools.sample(patched, frames=frames, sigmas=sigmas)
        count = sum(seen) / (frames * steps)
        return {"rows per frame and step": count, "target": (frames + 1) / frames}

    return run


class Regions:
    """A model, a LoRA and a mask for each region, and the ways to sample with them (eq. 7)."""

    def __init__(self, channels: int, side: int, steps: int, regions: int = 3, cfg: float = 5.0):
        layout = {**tiny.LAYOUTS["sd15"], "model_channels": channels, "channel_mult": (1, 1, 1, 1)}
        make = tiny.comfy_model if tools.INSIDE else tiny.tiny_model
        self.build, self.model, self.steps, self.cfg = lambda *w: make(layout, *w), make(layout), steps, cfg
        self.loras = [
            lora_tools.random_lora(self.model, seed, 16, 0.05, ("to_q", "to_k", "to_v"))
            for seed in range(regions)
        ]
        self.masks = torch.zeros(regions, 1, side * 8, side * 8)
        for i in range(regions):  # columns; the lowest quarter is outside, where eq. 7 has the base model
            self.masks[i, :, : side * 6, side * 8 * i // regions : side * 8 * (i + 1) // regions] = 1
        self.sigmas = tools.levels(self.model, steps)
        self.start = tools.latents(1, 0, (side, side)) * float(self.sigmas[0])
        self.content = tools.trajectory(self.model, seed=20, size=(side, side), sigmas=self.sigmas)
        self.models: list[Any] = [self.model]

    def inject(self, model: Any) -> Any:
        whole = {"feature_end": 1.0, "attention_end": 1.0, "blend": "replace"}
        return Inject().patch(model, self.content, "4-11", "all", True, True, **whole)[0]

    def ours(self, injected: bool) -> Tensor:
        """Apply Style LoRA for each region: all rows in one call."""
        model = self.model
        for lora, mask in zip(self.loras, self.masks, strict=True):
            model = lora_tools.apply(model, lora, mask=mask)
        return self.sample(self.inject(model) if injected else model)

    def sample(self, model: Any, **more: Any) -> Tensor:
        more = {"latent": self.start, "sigmas": self.sigmas, **more}
        return tools.sample(model, cfg=self.cfg, **more)

    def separate(self, injected: bool) -> Tensor:
        """A model with merged weights per region, each called on its own. With injection this is the plan of
        the official code: every model reads the source."""
        if len(self.models) == 1:
            for lora in self.loras:
                weights = {k: v.clone() for k, v in network(self.model).state_dict().items()}
                for path, change in lora.weights.items():
                    weights[f"{path}.weight"] += change.scale * change.up @ change.down
                self.models.append(self.build(weights))
        models = [self.inject(m) for m in self.models] if injected else self.models
        shares = list(interpolate(self.masks, self.start.shape[-2:], mode="area"))
        shares.insert(0, 1 - sum(shares))
        x = self.start
        for sigma, following in pairwise(self.sigmas.tolist()):
            to_zero = torch.tensor([sigma, 0.0])
            x0 = sum(
                share * self.sample(model, latent=x, sigmas=to_zero)
                for share, model in zip(shares, models, strict=True)
            )
            x = x + (following - sigma) * (x - x0) / sigma
        return x

    def hooks(self, injected: bool) -> Tensor:
        """ComfyUI's LoRA hooks on masked conditionings."""
        import comfy.hooks as core

        pair, texts = [[], []], [tiny.conditioning(self.model, seed=seed) for seed in (1, 2)]
        for lora, mask in zip(self.loras, self.masks, strict=True):
            weights = {}
            for path, change in lora.weights.items():
                key = "lora_unet_" + path.replace(".", "_")
                weights |= {f"{key}.lora_up.weight": change.up, f"{key}.lora_down.weight": change.down}
                weights[f"{key}.alpha"] = torch.tensor(change.scale * len(change.down))
            hook = core.create_hook_lora(weights, 1.0, 0.0)
            pair = core.set_conds_props_and_combine(pair, texts, mask=mask, hooks=hook)
        pair = core.set_default_conds_and_combine(pair, texts)
        base = self.model.model
        model = self.inject(self.model) if injected else self.model
        latent = base.process_latent_out(self.start)
        out = host.sample(model, tiny.euler, latent, self.sigmas, *pair, cfg=self.cfg)
        return base.process_latent_in(out)

    def measured(self, way: Callable[[bool], Tensor], injected: bool) -> dict:
        """UNet rows per step and per call, and the relative difference to our result."""
        with torch.inference_mode(), ExitStack() as stack:
            way(injected)  # makes the separate models, so that they are counted
            seen = [stack.enter_context(tools.counted(model)) for model in self.models]
            result, counts = way(injected), [n for rows in seen for n in rows]
            values = {"rows per step": sum(counts) / self.steps, "most rows per call": max(counts)}
            return values | {"difference": tools.relative(result, self.ours(injected))}


def regions(
    regions: int = 3, channels: int = 320, side: int = 16, steps: int = 2, injected: bool = False
) -> dict[str, Callable]:
    """Style regions (eq. 7) against separate models, and ComfyUI's LoRA hooks where it is loaded.

    injected=true adds feature and attention injection over the whole time. The others then differ from ours:
    they inject the base model's features, or read the source under each LoRA. "ours, little memory" has free
    memory for the rows of one region.
    """

    ways = ("ours", "separate", *(["hooks"] if tools.INSIDE else []))
    make = partial(Regions, channels, side, steps, regions)
    variants = {name: partial(_sampling, make, name, injected) for name in ways}
    return variants | {"ours, little memory": partial(_sampling, make, "ours", injected, True)}


def _sampling(make: Callable, name: str, injected: bool, tight: bool = False) -> Callable[[], dict]:
    bench = make()
    way = getattr(bench, name)
    if tight:
        one = bench.model.model.memory_required([4, 4, *bench.start.shape[-2:]])
        host.free_memory = lambda *_: one
    values = bench.measured(way, injected)

    def run() -> dict:
        with torch.inference_mode():
            way(injected)
        return values

    return run
