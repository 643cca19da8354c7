"""A TRAJECTORY: the latents that an inversion passed through, from clean to noise, and what made them.

Latents are kept in variance-preserving scale, z = x / sqrt(1 + sigma^2), in model space (after
`process_latent_in`), so that a trajectory can be read at any noise level: between two of its levels the
latents are interpolated linearly in timestep, below and above them the ends serve.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...kernels.ddim import interpolate
from .. import host

log = logging.getLogger("reelbrush")

KIND = "trajectories"
_FORMAT = "reelbrush trajectory 1"


@dataclass(eq=False)
class Trajectory:
    """N frames at S noise levels, ascending."""

    latents: Tensor  # [S, N, C, h, w]
    sigmas: Tensor  # [S]
    conditioning: list  # ComfyUI's CONDITIONING that the model was given
    family: str  # "sd1", "sd2", "sdxl": layers.family
    convention: str  # how it was made: "next timestep", "current timestep", "noised"
    cache: dict = field(default_factory=dict, repr=False)  # features that others keep with it, in CPU memory

    def __post_init__(self):
        if self.latents.ndim != 5 or self.sigmas.shape != self.latents.shape[:1]:
            raise ValueError(
                f"a trajectory has latents [levels, frames, channels, h, w] and one sigma per level, not "
                f"{list(self.latents.shape)} and {list(self.sigmas.shape)}"
            )
        if not (self.sigmas.diff() > 0).all():
            raise ValueError("the sigmas of a trajectory ascend, each level once")

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    def at(self, sigma: float | Tensor) -> Tensor:
        """Variance-preserving latents [N, C, h, w] at any noise level."""
        places = torch.tensor([timestep(s) for s in self.sigmas.tolist()], dtype=torch.float64)
        return interpolate(self.latents, places, timestep(float(sigma)))

    def require(self, family: str) -> None:
        """A sentence where a model of another family is to read this trajectory."""
        if self.family != family:
            raise ValueError(
                f"the trajectory was made with a {self.family} model, this model is {family}: "
                "invert with the model that samples"
            )


# -- places between levels -------------------------------------------------------------------------


@cache
def _schedule() -> Tensor:
    """log sigma of Stable Diffusion's 1000 timesteps (betas scaled-linear from 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    return ((1 - abar) / abar).log() / 2


def timestep(sigma: float) -> float:
    """The timestep of a noise level, continuous: only the place where interpolation weighs two levels.

    Clean is -1, one before the first timestep; above the last one the scale goes on as it ends.
    """
    table = _schedule()
    if sigma <= math.exp(table[0]):
        return sigma / math.exp(table[0]) - 1
    wanted = math.log(sigma)
    above = min(max(int(torch.searchsorted(table, wanted)), 1), len(table) - 1)
    low, high = float(table[above - 1]), float(table[above])
    return above - 1 + (wanted - low) / (high - low)


# -- files -----------------------------------------------------------------------------------------


def target(name: str) -> Path:
    """Where a trajectory of this name is written."""
    if not name.strip():
        raise ValueError("the trajectory's name is empty: give it one")
    file = f"{name.removesuffix('.safetensors')}.safetensors"
    path = host.inside(host.folder("output") / KIND, file, "trajectory")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(trajectory: Trajectory, path: Path, *, half: bool = False) -> None:
    """One safetensors file; it appears under its name only when it is whole."""
    tensors = {"latents": trajectory.latents.half() if half else trajectory.latents.float()}
    tensors["sigmas"] = trajectory.sigmas.float()
    texts = []
    for number, (text, values) in enumerate(trajectory.conditioning):
        tensors[f"text.{number}"] = text.float()
        plain, left_out = {}, []
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"text.{number}.{name}"] = value.float()
            elif _plain(value):
                plain[name] = value
            elif value is not None:
                left_out.append(name)
        if left_out:
            log.warning("the saved trajectory's conditioning leaves out %s", ", ".join(left_out))
        texts.append(plain)
    metadata = {
        "format": _FORMAT,
        "family": trajectory.family,
        "convention": trajectory.convention,
        "conditioning": json.dumps(texts),
    }
    partial = path.with_name(f".{path.name}.part")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Trajectory:
    """What `save` wrote; anything else is refused in words."""
    wrong = f"{path.name} is not a trajectory: choose a file that Save Trajectory wrote"
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError(wrong)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        texts = json.loads(about["conditioning"])
        conditioning = [
            [tensors[f"text.{number}"], {**plain, **_named(tensors, f"text.{number}.")}]
            for number, plain in enumerate(texts)
        ]
        latents, sigmas = tensors["latents"].float(), tensors["sigmas"]
        return Trajectory(latents, sigmas, conditioning, about["family"], about["convention"])
    except (KeyError, OSError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(wrong) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # its class has moved between releases
            raise ValueError(wrong) from error
        raise


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str))
