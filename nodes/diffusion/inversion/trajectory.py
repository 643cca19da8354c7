"""A *trajectory*: the latents of N frames at every noise level of an inversion, and what made them.

The latents are variance preserving, z = x / sqrt(1 + sigma^2), in model space (after `process_latent_in`), so
that a trajectory can be read at any noise level. Between two levels they are interpolated linearly in
timestep; below the first and above the last level the end values are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ....kernels.ddim import interpolate
from ... import host
from ...common.files import replacing
from ...common.weights import check_finite
from ..patching.rows import select

KIND = "trajectories"
_FORMAT = "reelbrush trajectory 1"


@dataclass(eq=False)
class Trajectory:
    """N frames at S noise levels, ascending (REELBRUSH_TRAJECTORY)."""

    latents: Tensor  # [S, N, C, h, w]
    sigmas: Tensor  # [S]
    conditioning: list  # the CONDITIONING that the model was given
    family: str  # "sd1", "sd2", "sdxl": layers.family
    convention: str  # how it was made: "next timestep", "current timestep", "noised"

    def __post_init__(self):
        if self.latents.ndim != 5 or self.sigmas.shape != self.latents.shape[:1]:
            raise ValueError(
                f"a trajectory has latents [levels, frames, channels, h, w] and one sigma per level, not "
                f"{list(self.latents.shape)} and {list(self.sigmas.shape)}"
            )
        if not (self.sigmas.diff() > 0).all():
            raise ValueError("the sigmas of a trajectory must ascend, each level once")

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    def at(self, sigma: float | Tensor) -> Tensor:
        """Variance-preserving latents [N, C, h, w] at any noise level."""
        places = torch.tensor([timestep(s) for s in self.sigmas.tolist()], dtype=torch.float64)
        return interpolate(self.latents, places, timestep(float(sigma)))

    def of_frames(self, sigma: float, frames: Sequence[int], like: Tensor) -> Tensor:
        """The latents of a content's frames, for sampled latents `like` of the same size, on their device."""
        latents = select(self.at(sigma), frames, "content trajectory").to(like.device)
        if latents.shape[2:] != like.shape[2:]:
            sizes = (f"{t.shape[3] * 8}x{t.shape[2] * 8}" for t in (latents, like))
            raise ValueError(
                "the content trajectory is for {} pixels, the sampled latents for {}: "
                "connect an inversion of these latents".format(*sizes)
            )
        return latents

    def reached(self, sigma: float) -> float:
        """The noise level of this trajectory's range that is nearest to `sigma`."""
        return min(max(sigma, float(self.sigmas[0])), float(self.sigmas[-1]))

    def require(self, family: str) -> None:
        """Raise an error where a model of another family would use this trajectory."""
        if self.family != family:
            raise ValueError(
                f"the trajectory was made with a {self.family} model, this model is {family}: "
                "invert with the model that samples"
            )


class WindowTrajectory(Trajectory):
    """The inversion of the frames that Sample Video samples now; `of` finds those of a model's patches."""

    KEY = "reelbrush window trajectories"  # in a MODEL's attachments

    def __init__(self, model: Any, family: str):
        """On a CLONE, whose Sample Video will fill it."""
        self.family, self._numbers = family, ()
        model.attachments[self.KEY] = [*self.of(model), self]

    @classmethod
    def of(cls, model: Any) -> list[WindowTrajectory]:
        return getattr(model, "attachments", {}).get(cls.KEY, [])

    def fill(self, made: Trajectory | None, numbers: Sequence[int] = ()) -> None:
        """`numbers` are the places of the frames in the clip; None: the window has ended."""
        self._numbers = tuple(numbers)
        if made is None:
            self.__dict__.pop("latents", None)
        else:
            self.latents, self.sigmas, self.conditioning = made.latents, made.sigmas, made.conditioning

    def __getattr__(self, name: str) -> Any:
        if name != "latents":
            raise AttributeError(name)
        raise ValueError(
            "Inject Features has no content here: connect the clip's DDIM Inversion to `content`, or sample "
            "with Sample Video and connect the model before Inject Features to its `invert_model`"
        )

    def of_frames(self, sigma: float, frames: Sequence[int], like: Tensor) -> Tensor:
        return super().of_frames(sigma, [self._numbers.index(frame) for frame in frames], like)


# -- positions between levels ----------------------------------------------------------------------


@cache
def _schedule() -> Tensor:
    """log sigma of Stable Diffusion's 1000 timesteps (betas scaled-linear from 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    return ((1 - abar) / abar).log() / 2


def timestep(sigma: float) -> float:
    """The continuous timestep of a noise level, for interpolation only.

    Level 0 is at -1, one before the first timestep; above the last one the scale is extrapolated.
    """
    table = _schedule()
    if sigma <= math.exp(table[0]):
        return sigma / math.exp(table[0]) - 1
    log_sigma = math.log(sigma)
    above = min(max(int(torch.searchsorted(table, log_sigma)), 1), len(table) - 1)
    low, high = float(table[above - 1]), float(table[above])
    return above - 1 + (log_sigma - low) / (high - low)


# -- files -----------------------------------------------------------------------------------------


def target(name: str) -> Path:
    """The path of a trajectory with this name."""
    if not name.strip():
        raise ValueError("the trajectory's name is empty: give it a name")
    file = f"{name.removesuffix('.safetensors')}.safetensors"
    return host.inside(host.folder("output") / KIND, file, "trajectory")


def save(trajectory: Trajectory, path: Path, *, half: bool = False) -> None:
    """Write one safetensors file."""
    tensors = {"latents": trajectory.latents.half() if half else trajectory.latents.float()}
    tensors["sigmas"] = trajectory.sigmas.float()
    entries = []
    for number, (text, options) in enumerate(trajectory.conditioning):
        tensors[f"text.{number}"] = text.float()
        plain, left_out = {}, []
        for name, value in options.items():
            if torch.is_tensor(value):
                tensors[f"text.{number}.{name}"] = value.float()
            elif _is_plain(value):
                plain[name] = value
            elif value is not None:
                left_out.append(name)
        if left_out:
            host.log.warning("the saved trajectory's conditioning does not contain %s", ", ".join(left_out))
        entries.append(plain)
    metadata = {
        "format": _FORMAT,
        "family": trajectory.family,
        "convention": trajectory.convention,
        "conditioning": json.dumps(entries),
    }
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)


def load(path: Path) -> Trajectory:
    """Read what `save` wrote; any other file raises an error."""
    wrong = f"{path.name} is not a trajectory: choose a file that Save Trajectory wrote"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(wrong)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        conditioning = [
            [tensors[f"text.{number}"], {**plain, **_with_prefix(tensors, f"text.{number}.")}]
            for number, plain in enumerate(json.loads(metadata["conditioning"]))
        ]
        check_finite(path, tensors)
        latents, sigmas = tensors["latents"].float(), tensors["sigmas"]
        return Trajectory(latents, sigmas, conditioning, metadata["family"], metadata["convention"])
    except (LookupError, OSError, TypeError, AttributeError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(wrong) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # its class has moved between releases
            raise ValueError(wrong) from error
        raise


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str))
