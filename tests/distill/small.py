"""What the distillation tests share: a small SD1.5-shaped model, smooth latents, references."""

import json
from contextlib import contextmanager

import torch
from torch.profiler import profile

from reelbrush.nodes.distill import features
from reelbrush.nodes.distill.optimize import References

from ..diffusion.tiny import LAYOUTS, conditioning, tiny_model

# Two levels: with more, group normalisation over a handful of values makes gradients a matter of luck.
SMALL = {
    **LAYOUTS["sd15"],
    "channel_mult": (1, 1),
    "num_res_blocks": (1, 2),
    "transformer_depth": (1, 1, 1),
    "transformer_depth_output": (1, 1, 1, 1, 1),
    "context_dim": 16,
}


def model(seed=0, dtype=torch.float32):
    made = tiny_model(SMALL, seed=seed)
    made.model.diffusion_model.to(dtype)
    return made


def null(of):
    return conditioning(of, seed=3, tokens=4)


def latents(frames, seed=0, size=(8, 12), scale=1.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(frames, 4, *size, generator=g)).to(dtype)


def contents(frames=1, **more):
    return latents(frames, 1, scale=0.3, **more)


def styles(pictures=1, **more):
    return 2 * latents(pictures, 2, **more) + 1.5


@contextmanager
def references(of, style=None, content=None, *masks, recompute=False, layers="last 6"):
    """References on an opened model, gradients on."""
    with features.opened(of, null(of), layers) as (_, reader):
        reader.recomputation.on = recompute
        style = styles(dtype=of.model.get_dtype()) if style is None else style
        yield References(reader, style, content, *masks)


def peak(run, path):
    """Peak memory of `run()` in bytes, by the allocator's own count."""
    with profile(profile_memory=True) as seen:
        run()
    seen.export_chrome_trace(str(path))
    events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    return max(e["Total Allocated"] for e in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


def replayed(noises):
    """Noises from a list, one after the other: another program's, for a comparison."""
    queue = iter(noises)
    return lambda like: next(queue).to(like)


def rows_seen(monkeypatch):
    """How many rows went through the UNet: a list of (rows, with gradients). Measuring is not counted."""
    seen, look = [], features.FeatureReader.__call__

    def counted(self, z, timestep, names, *, grad=False):
        if z.any():  # blank latents measure the graph
            seen.append((len(z), grad))
        return look(self, z, timestep, names, grad=grad)

    monkeypatch.setattr(features.FeatureReader, "__call__", counted)
    return seen
