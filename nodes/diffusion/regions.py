"""A style LoRA per region (DiffStyler, eqs. 6 and 7): all regions in one evaluation, one copy of the weights.

    eps = sum_i M_i eps_{theta + dtheta_i}(z, t, c_i) + (1 - sum_i M_i) eps_theta(z, t, c)         (7)

Every row of a UNet call (a frame under a side of the guidance) becomes one row per region and one for the
base model, all in ONE call. A LoRA is a low-rank branch beside each projection that it changes, and runs on
its region's rows only. Weights are never patched or copied, and a region costs its rows only. The outputs
are mixed by the masks; where masks overlap, they are divided by their sum. Rows that no mask needs are not
computed: no base row where the masks cover everything, no region whose mask is black in all frames of the
call. A LoRA without a mask is part of every row, also of the base model's, like a LoRA on the model itself.

With a content trajectory the outside is not the base model but the inverted content (eq. 6):

    z = M z* + (1 - M) z_content

at every step, so that there are no base rows at all (see patching/prediction.py).

Nodes chain: each adds a region to one patch (`apply`). Reading passes (the source of an injection, a Z*
style) do not use these LoRAs.

Departures of the official code: one copy of the UNet per LoRA, three rows in each, the source row in all of
them and under the LoRA; hard masks that overwrite one another in order; no eq. 6.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear

from .. import host
from .inversion.trajectory import Trajectory
from .lora.file import StyleLoRA
from .moving_mask import MovingMask
from .patching import unet
from .patching.hooks import RunningOptions, hook_output
from .patching.layers import family
from .patching.prediction import Prediction, change_predictions
from .patching.rows import Rows, fitting, rows, select
from .patching.unet import UNetCall

ROUTES = "reelbrush_regions"  # in transformer_options: which rows belong to which region
BASE = -1  # the base model's number beside the regions' numbers
_NAME, _RANK, _CONTENT = "regions", 3, "reelbrush regions content"
_TINY = 1e-6  # a weight below it is rounding

LoRAWeights = dict[str, tuple[Tensor, Tensor, float]]  # by module path: down, up, factor


@dataclass(frozen=True, eq=False)
class Region:
    """A style LoRA and its mask; without a mask it is everywhere."""

    lora: StyleLoRA
    strength: float = 1.0
    mask: Tensor | MovingMask | None = None  # [1 or frames, H, W]
    positive: list | None = None  # the region's own text, for the positive side

    @property
    def black(self) -> bool:
        return isinstance(self.mask, Tensor) and not bool((self.mask > 0).any())


@dataclass(frozen=True, eq=False)
class RegionWeights:
    """How the outputs of the regions are mixed in some frames."""

    groups: list[int]  # whose rows are needed: BASE first, then masked regions by number
    weights: Tensor  # [groups, 1 or frames, h, w], sum 1
    covered: Tensor  # the sum of the masks, at most 1, [1 or frames, h, w]


@dataclass(eq=False)
class Routes:
    """Which rows of one evaluation belong to which region."""

    count: int
    branches: list[tuple[slice, LoRAWeights]]
    outside: slice | None = None  # the base model's rows, where there are also regions

    def add(self, path: str, x: Tensor, out: Tensor) -> Tensor:
        """Add the LoRAs' branches to the output of one projection, each on its rows."""
        for of_region, branches in self.branches:
            if (branch := branches.get(path)) is None:
                continue
            if len(x) != self.count:
                raise RuntimeError(
                    f"a projection has {len(x)} rows where the call has {self.count}: remove HyperTile and "
                    "other nodes that tile attention from this model, or the regional LoRAs"
                )
            down, up, factor = branch
            if x.ndim == 4:  # SD1.x has 1x1 convolutions before and after its transformers
                low = linear(x[of_region].movedim(1, -1), down.to(x))
                out[of_region].add_(linear(low, up.to(out)).movedim(-1, 1), alpha=factor)
            else:
                low = linear(x[of_region], down.to(x))
                out[of_region].view(-1, out.shape[-1]).addmm_(low.flatten(0, -2), up.to(out).T, alpha=factor)
        return out


def apply(model: Any, region: Region, content: Trajectory | None = None) -> Any:
    """A clone of `model` with one more region; `content` is what stays outside all masks."""
    region.lora.check(model)
    if content is not None:
        content.require(family(model))
    before: RegionsPatch | None = model.attachments.get(f"reelbrush {_NAME}")
    clone = model.clone()
    chain = RegionsPatch(model.model) if before is None else before
    if content is not None and chain.content not in (None, content):
        raise ValueError(
            "two regions have different contents: connect `content` to one Apply Style LoRA of the chain, or "
            "the same trajectory to all"
        )
    content = chain.content if content is None else content
    replace(chain, regions=(*chain.regions, region), content=content).attach(clone, first=before is None)
    return clone


@dataclass(eq=False)
class RegionsPatch:
    """All regions of a chain of nodes."""

    base: Any
    regions: tuple[Region, ...] = ()
    content: Trajectory | None = None
    running: RunningOptions = field(default_factory=RunningOptions)
    hooked: frozenset[str] = frozenset()

    def __post_init__(self):
        self._on_device: dict[Any, list[LoRAWeights]] = {}
        self._weights: dict[Any, RegionWeights] = {}

    def __deepcopy__(self, memo: dict) -> RegionsPatch:
        return self

    def attach(self, model: Any, *, first: bool) -> None:
        """Put the patch on a CLONE, in place of the one with one region less."""
        if first:
            self.running.attach(model, _NAME)
        unet.detach(model, _NAME, rank=_RANK)
        unet.attach(model, _NAME, self.patch, rank=_RANK)
        host.remove_wrappers(model, "predict_noise", _CONTENT)
        if self.content is not None and self.masked:
            change_predictions(model, _CONTENT, self._with_content)
        host.on_cleanup(model, f"reelbrush {_NAME}", self.drop)
        paths = {path for region in self.regions for path in region.lora.weights}
        for path in sorted(paths - self.hooked):
            hook_output(model, path, self._hook(path))
        self.hooked |= paths
        model.attachments[f"reelbrush {_NAME}"] = self

    def _hook(self, path: str) -> Callable[[Tensor, Tensor], Tensor]:
        running = self.running

        def hook(x: Tensor, out: Tensor) -> Tensor:
            routes = running.get(ROUTES)
            return out if routes is None else routes.add(path, x, out)

        return hook

    def drop(self) -> None:
        """Release the device's memory: at the end of a run, after a cancel too."""
        self._on_device.clear()
        self._weights.clear()

    @property
    def masked(self) -> list[int]:
        return [i for i, region in enumerate(self.regions) if region.mask is not None]

    # one evaluation

    def patch(self, call: UNetCall) -> Tensor:
        """Around one evaluation of the UNet."""
        of_call = rows(call.options, len(call.x))
        mix = self.weights(of_call.frames, tuple(call.x.shape[2:]), call.x.device)
        size = fitting(self.base, len(mix.groups), len(call.x), call.x)
        runs = [mix.groups[i : i + size] for i in range(0, len(mix.groups), size)]
        outputs = [self._run(call, of_call, groups) for groups in runs]
        if len(mix.groups) == 1:
            return outputs[0]
        apart = torch.cat(outputs).unflatten(0, (len(mix.groups), len(of_call.sides), of_call.count))
        weights = mix.weights[:, None, :, None]
        weighted = (apart.float() * weights).masked_fill_(
            weights == 0, 0
        )  # 0 x inf would be NaN in the other regions
        return weighted.sum(0).flatten(0, 1).to(outputs[0])

    def weights(self, frames: Sequence[int], size: tuple[int, int], device: Any = None) -> RegionWeights:
        """How the regions are mixed in these frames."""
        key = (tuple(frames), size, device)
        if key not in self._weights:
            masks = self._masks(frames, size, device)
            total = sum(masks, torch.zeros(1, *size, device=device))
            if self.content is None or not masks:
                shares = [mask / total.clamp_min(1) for mask in masks]
            else:  # the outside comes from the content, and the regions share everything
                shares = [torch.where(total > 0, mask / total.clamp_min(1e-30), mask) for mask in masks]
                shares[0] = shares[0] + (total <= 0).to(
                    shares[0]
                )  # pixels without a mask, which `_with_content` overwrites
            base = 1 - sum(shares, torch.zeros_like(total))
            base = torch.where(base < _TINY, torch.zeros_like(base), base)
            by_group = {BASE: base, **dict(zip(self.masked, shares, strict=True))}
            needed = {number: share for number, share in by_group.items() if share.any()}
            stacked = torch.stack(torch.broadcast_tensors(*needed.values()))
            self._weights[key] = RegionWeights(list(needed), stacked, total.clamp_max(1))
        return self._weights[key]

    def _masks(self, frames: Sequence[int], size: tuple[int, int], device: Any) -> list[Tensor]:
        selected = [select(self.regions[i].mask, frames, "region's mask").float() for i in self.masked]
        small = [interpolate(mask[:, None], size=size, mode="area")[:, 0] for mask in selected]
        return [mask.clamp(0, 1).to(device) for mask in small]

    def _run(self, call: UNetCall, of_call: Rows, groups: list[int]) -> Tensor:
        """The rows of some regions, one region after the other."""
        n = of_call.count
        texts = [self._text(number, call) for number in groups]
        positive = [i * n + f for i, side in enumerate(of_call.sides) if side[0] == 0 for f in range(n)]
        repeated = call.repeated(len(groups))
        options = {**repeated.options, ROUTES: self._routes(call.x, groups)}
        if len(groups) > 1:
            options["uuids"] = [_side_id(side, number) for number in groups for side in of_call.sides]
        return repeated.run(
            context=_with_texts(call.context, [t.get("c_crossattn") for t in texts], positive),
            y=_with_texts(call.y, [t.get("y") for t in texts], positive),
            options=options,
        )

    def _routes(self, like: Tensor, groups: list[int]) -> Routes:
        key, count = (like.device, like.dtype), len(like)
        if key not in self._on_device:
            self._on_device[key] = [_branches(region, like) for region in self.regions]
        branches, total = self._on_device[key], count * len(groups)
        routes = [(slice(0, total), branches[i]) for i, r in enumerate(self.regions) if r.mask is None]
        for place, number in enumerate(groups):
            if number != BASE:
                routes.append((slice(place * count, (place + 1) * count), branches[number]))
        outside = slice(0, count) if self.masked and groups[0] == BASE else None
        return Routes(total, routes, outside)

    def _text(self, number: int, call: UNetCall) -> dict[str, Tensor]:
        """The text of a region, else of the last region without a mask, else none (the sampler's is used)."""
        own = [r.positive for r in self.regions if r.mask is None and r.positive is not None][-1:]
        if number != BASE and self.regions[number].positive is not None:
            own = [self.regions[number].positive]
        return host.conditions(self.base, own[0], call.x, call.sigma) if own else {}

    def _with_content(self, prediction: Prediction) -> Tensor:
        """Eq. 6: outside the masks the sampler has the content at the next level; its first step starts from
        the content there."""
        x, sigma = prediction.x, prediction.sigma
        mix = self.weights(prediction.frames, tuple(x.shape[2:]), x.device)
        share = mix.covered[:, None].to(x)
        start = prediction.content(self.content, sigma).lerp(x, share) if prediction.first else x
        inside = prediction.continued_from(start)
        outside = prediction.leading_to(prediction.content(self.content, prediction.following))
        return outside.lerp(inside.to(x), share).to(inside)


def _branches(region: Region, like: Tensor) -> LoRAWeights:
    """A region's low-rank matrices on the UNet's device, in its number type."""

    def place(t: Tensor) -> Tensor:
        t = t.to(like)
        # a tensor from inference mode cannot take part in gradients, a copy can
        return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t

    return {
        path: (place(low_rank.down), place(low_rank.up), float(low_rank.scale * region.strength))
        for path, low_rank in region.lora.weights.items()
    }


def _side_id(side: tuple, number: int) -> uuid.UUID:
    """An id for a side of the guidance in a region; the same in every call."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{side} {number}")


def _with_texts(values: Tensor | None, texts: list[Tensor | None], rows: list[int]) -> Tensor | None:
    """A tensor of rows once per region, with the region's own text in `rows`. Texts of different lengths are
    repeated to the same length, as in ComfyUI; this does not change the attention to them."""
    if values is None or (len(texts) == 1 and texts[0] is None):
        return values
    length = math.lcm(*[t.shape[1] for t in (values, *texts) if t is not None])
    fitted = lambda t: t if t.ndim < 3 else t.repeat(1, length // t.shape[1], 1)  # noqa: E731
    groups = []
    for text in texts:
        group = fitted(values).clone()
        if text is not None and rows:
            group[rows] = fitted(text[:1].to(values))
        groups.append(group)
    return torch.cat(groups)
