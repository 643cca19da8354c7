"""A style LoRA per region (DiffStyler, eqs. 6 and 7): all regions in one evaluation, one copy of the weights.

    eps = sum_i M_i eps_{theta + dtheta_i}(z, t, c_i) + (1 - sum_i M_i) eps_theta(z, t, c)         (7)

Every row of a UNet call (a frame under a side of the guidance) becomes one row per region and one for the
base model, all in ONE call. A LoRA is a low-rank branch beside each projection that it changes, and runs on
its region's rows only: weights are never patched, there are no copies of them, and switching a region on
costs its rows and nothing else. Rows come together again by the masks. Where masks overlap, they are divided
by their sum. Rows that no mask needs in a call are not computed: no base row where the masks cover
everything, no region whose mask is black in all frames of the call. A LoRA without a mask is part of every
row, the base model's included, as a LoRA on the model itself would be.

With a content trajectory the outside is not the base model but the inverted content (eq. 6):

    z = M z* + (1 - M) z_content

applied at every step, so that there are no base rows at all. A patch has no hold on a sampler's latents, so
the outside gets the derivative that leads from here to the content's next level; for Euler and DDIM this is
eq. 6 exactly, and every sampler ends at the content's own clean latents.

Nodes chain: each adds a region to one part (`apply`). Passes that only read (the source of an injection,
a Z* style) never see these LoRAs.

Departures of the official code: one copy of the UNet per LoRA, three rows in each, the source row in all of
them and under the LoRA; hard masks that overwrite one another in order; no eq. 6.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear

from .. import host
from . import unet
from .hooks import Now, around
from .rows import Rows, frames_of, rows, select
from .unet import Pass

if TYPE_CHECKING:
    from .lora import StyleLoRA
    from .trajectory import Trajectory

ROUTES = "reelbrush_regions"  # in transformer_options: which rows are whose
BASE = -1  # beside the regions' numbers
_NAME, _RANK = "regions", 3
_TINY = 1e-6  # a weight below it is rounding


@dataclass(frozen=True, eq=False)
class Region:
    """A style, and where it goes: everywhere without a mask."""

    lora: StyleLoRA
    strength: float = 1.0
    mask: Tensor | None = None  # [1 or frames, H, W]
    positive: list | None = None  # the region's own text, for the positive side

    @property
    def black(self) -> bool:
        return self.mask is not None and not bool((self.mask > 0).any())


@dataclass(frozen=True, eq=False)
class Split:
    """Who speaks where in some frames."""

    groups: list[int]  # who has rows: BASE first, where it is needed, then masked regions by number
    weights: Tensor  # [groups, 1 or frames, h, w], together 1
    covered: Tensor  # the sum of the masks, at most 1, [1 or frames, h, w]


@dataclass(eq=False)
class Routes:
    """Who has which rows of one evaluation."""

    count: int
    branches: list[tuple[slice, dict[str, tuple[Tensor, Tensor, float]]]]
    outside: slice | None = None  # the base model's rows, where there are regions beside them

    def add(self, path: str, x: Tensor, out: Tensor) -> Tensor:
        """The LoRAs' branches beside one projection, each on its rows."""
        for where, parts in self.branches:
            if (part := parts.get(path)) is None:
                continue
            if len(x) != self.count:
                raise RuntimeError(
                    f"a projection has {len(x)} rows where the call has {self.count}: take HyperTile and "
                    "other nodes that tile attention off this model, or the regional LoRAs"
                )
            down, up, factor = part
            if x.ndim == 4:  # SD1.x goes in and out of its transformers by 1x1 convolutions
                low = linear(x[where].movedim(1, -1), down.to(x))
                out[where].add_(linear(low, up.to(out)).movedim(-1, 1), alpha=factor)
            else:
                low = linear(x[where], down.to(x))
                out[where].view(-1, out.shape[-1]).addmm_(low.flatten(0, -2), up.to(out).T, alpha=factor)
        return out


def apply(model: Any, region: Region, content: Trajectory | None = None) -> Any:
    """A clone of `model` with one region more; `content` is what stays outside all masks."""
    region.lora.check(model)
    if content is not None:
        content.require(unet.family(model))
    before: Regions | None = model.attachments.get(f"reelbrush {_NAME}")
    clone = model.clone()
    chain = Regions(model.model) if before is None else before
    if content is not None and chain.content not in (None, content):
        raise ValueError(
            "two regions name different contents: give `content` to one Apply Style LoRA of the chain, or "
            "the same trajectory to all"
        )
    replace(
        chain, regions=(*chain.regions, region), content=chain.content if content is None else content
    ).attach(clone, first=before is None)
    return clone


@dataclass(eq=False)
class Regions:
    """The part: all regions of a chain of nodes."""

    base: Any
    regions: tuple[Region, ...] = ()
    content: Trajectory | None = None
    now: Now = field(default_factory=Now)
    hooked: frozenset[str] = frozenset()

    def __post_init__(self):
        self._placed: dict[Any, list[dict]] = {}
        self._splits: dict[Any, Split] = {}

    def __deepcopy__(self, memo: dict) -> Regions:
        return self

    def attach(self, model: Any, *, first: bool) -> None:
        """Put the part on a CLONE, in place of the one with a region less."""
        if first:
            self.now.attach(model, _NAME)
        unet.detach(model, _NAME, rank=_RANK)
        unet.attach(model, _NAME, self.part, rank=_RANK)
        model.remove_wrappers_with_key("predict_noise", "reelbrush regions content")
        if self.content is not None and self.masked:
            model.add_wrapper_with_key("predict_noise", "reelbrush regions content", self._predictor())
        model.remove_callbacks_with_key("on_cleanup", f"reelbrush {_NAME}")
        model.add_callback_with_key("on_cleanup", f"reelbrush {_NAME}", lambda patcher: self.drop())
        wanted = {path for region in self.regions for path in region.lora.parts}
        for path in sorted(wanted - self.hooked):
            around(model, path, self._hook(path))
        self.hooked |= wanted
        model.attachments[f"reelbrush {_NAME}"] = self

    def _hook(self, path: str) -> Callable[[Tensor, Tensor], Tensor]:
        now = self.now

        def hook(x: Tensor, out: Tensor) -> Tensor:
            routes = now.wish(ROUTES)
            return out if routes is None else routes.add(path, x, out)

        return hook

    def drop(self) -> None:
        """Forget what is on the device: at the end of a run, after a cancel too."""
        self._placed.clear()
        self._splits.clear()

    @property
    def masked(self) -> list[int]:
        return [i for i, region in enumerate(self.regions) if region.mask is not None]

    # one evaluation

    def part(self, call: Pass) -> Tensor:
        """Around one evaluation of the UNet."""
        where = rows(call.options, len(call.x))
        split = self.split(where.frames, tuple(call.x.shape[2:]), call.x.device)
        found = [self._run(call, where, groups) for groups in self._fitting(call, split.groups)]
        if len(split.groups) == 1:
            return found[0]
        apart = torch.cat(found).unflatten(0, (len(split.groups), len(where.sides), where.count))
        weights = split.weights[:, None, :, None]
        spoken = (apart.float() * weights).masked_fill_(weights == 0, 0)  # an overflow stays in its region
        return spoken.sum(0).flatten(0, 1).to(found[0])

    def split(self, frames: Sequence[int], size: tuple[int, int], device: Any = None) -> Split:
        """Who speaks where in these frames."""
        key = (tuple(frames), size, device)
        if key not in self._splits:
            masks = self._masks(frames, size, device)
            total = sum(masks, torch.zeros(1, *size, device=device))
            if self.content is None or not masks:
                shares = [mask / total.clamp_min(1) for mask in masks]
            else:  # the outside is the content's, and the regions share all that is left
                shares = [torch.where(total > 0, mask / total.clamp_min(1e-30), mask) for mask in masks]
                shares[0] = shares[0] + (total <= 0).to(shares[0])  # what is said there is not heard
            base = 1 - sum(shares, torch.zeros_like(total))
            shares = {BASE: torch.where(base < _TINY, torch.zeros_like(base), base)} | dict(
                zip(self.masked, shares, strict=True)
            )
            needed = [number for number, share in shares.items() if share.any()]
            weights = torch.stack(torch.broadcast_tensors(*[shares[number] for number in needed]))
            self._splits[key] = Split(needed, weights, total.clamp_max(1))
        return self._splits[key]

    def _masks(self, frames: Sequence[int], size: tuple[int, int], device: Any) -> list[Tensor]:
        found = []
        for number in self.masked:
            mask = select(self.regions[number].mask, frames, "region's mask").float()
            small = interpolate(mask[:, None], size=size, mode="area")[:, 0]
            found.append(small.clamp(0, 1).to(device))
        return found

    def _fitting(self, call: Pass, groups: list[int]) -> list[list[int]]:
        """All regions in one run, or in several where free memory does not take their rows together."""
        free, n = host.free_memory(call.x.device), len(call.x)
        size = len(groups)
        while size > 1 and self.base.memory_required([n * size, *call.x.shape[1:]]) > free:
            size = (size + 1) // 2
        return [groups[i : i + size] for i in range(0, len(groups), size)]

    def _run(self, call: Pass, where: Rows, groups: list[int]) -> Tensor:
        """The rows of some regions, one region after the other."""
        n, times = len(call.x), len(groups)

        def many(t: Any) -> Any:
            return (
                t.repeat(times, *[1] * (t.ndim - 1))
                if torch.is_tensor(t) and len(t) == n and times > 1
                else t
            )

        texts = [self._text(number, call) for number in groups]
        at = [i * where.count + f for i, s in enumerate(where.sides) if s[0] == 0 for f in range(where.count)]
        options = {**call.options, ROUTES: self._routes(call.x, groups)}
        if times > 1:
            options["cond_or_uncond"] = list(options.get("cond_or_uncond") or [0]) * times
            options["uuids"] = [_own(side, number) for number in groups for side in where.sides]
        control = call.control  # lists of its own: the UNet empties them
        return call.run(
            x=many(call.x),
            timesteps=many(call.timesteps),
            context=_texts(call.context, [t.get("c_crossattn") for t in texts], at),
            y=_texts(call.y, [t.get("y") for t in texts], at),
            control=control and {name: [many(t) for t in outputs] for name, outputs in control.items()},
            extra={name: many(value) for name, value in call.extra.items()},
            options=options,
        )

    def _routes(self, like: Tensor, groups: list[int]) -> Routes:
        key, count = (like.device, like.dtype), len(like)
        if key not in self._placed:
            self._placed[key] = [_placed(region, like) for region in self.regions]
        placed, total = self._placed[key], count * len(groups)
        branches = [(slice(0, total), placed[i]) for i, r in enumerate(self.regions) if r.mask is None]
        for place, number in enumerate(groups):
            if number != BASE:
                branches.append((slice(place * count, (place + 1) * count), placed[number]))
        outside = slice(0, count) if self.masked and groups[0] == BASE else None
        return Routes(total, branches, outside)

    def _text(self, number: int, call: Pass) -> dict[str, Tensor]:
        """The text of a region, else of the last region without a mask, else the sampler's (nothing)."""
        own = [r.positive for r in self.regions if r.mask is None and r.positive is not None][-1:]
        if number != BASE and self.regions[number].positive is not None:
            own = [self.regions[number].positive]
        return unet.conditions(self.base, own[0], call.x, call.sigma) if own else {}

    # eq. 6

    def _predictor(self) -> Callable:
        """PREDICT_NOISE: all frames of the clip, after guidance. Where no mask is, the derivative leads to
        the content at the next level; the first step begins from the content there."""

        def predict(run: Callable, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            sigma = float(timestep.flatten()[0])
            options = (kwargs.get("model_options") or next(iter(args), {})).get("transformer_options", {})
            levels = options.get("sample_sigmas")
            levels = [] if levels is None else levels.tolist()
            following = max((s for s in levels if s < sigma * (1 - 1e-5)), default=0.0)
            frames = frames_of(options, len(x))
            share = self.split(frames, tuple(x.shape[2:]), x.device).covered[:, None].to(x)
            content = lambda s: self._content(frames, s, x)  # noqa: E731
            begins = sigma >= max(levels, default=sigma) * (1 - 1e-5)
            seen = content(sigma).lerp(x, share) if begins else x
            denoised = run(seen, timestep, *args, **kwargs)
            inside = denoised + (seen - x) * (following / (sigma - following))
            outside = x - (content(following) - x) * (sigma / (following - sigma))
            return outside.lerp(inside.to(x), share).to(denoised)

        return predict

    def _content(self, frames: Sequence[int], sigma: float, like: Tensor) -> Tensor:
        latents = select(self.content.at(sigma), frames, "content trajectory")
        if latents.shape[2:] != like.shape[2:]:
            raise ValueError("the content trajectory has another size than the latents: invert these latents")
        return latents.to(like) * (1 + sigma**2) ** 0.5


def _placed(region: Region, like: Tensor) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A region's low-rank parts where and how the UNet computes."""

    def there(t: Tensor) -> Tensor:
        t = t.to(like)  # what a node has made in inference mode cannot take part in gradients: a copy can
        return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t

    return {
        path: (there(part.down), there(part.up), float(part.scale * region.strength))
        for path, part in region.lora.parts.items()
    }


def _own(side: tuple, number: int) -> uuid.UUID:
    """A name for a side of the guidance in a region; the same in every call."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{side} {number}")


def _texts(values: Tensor | None, own: list[Tensor | None], at: list[int]) -> Tensor | None:
    """A tensor of rows once per region, the rows `at` of each replaced by the region's own text. Texts of
    different lengths are repeated up to the same, which attention does not notice (core does so too)."""
    if values is None or (len(own) == 1 and own[0] is None):
        return values
    length = math.lcm(*[t.shape[1] for t in (values, *own) if t is not None])
    fitted = lambda t: t if t.ndim < 3 else t.repeat(1, length // t.shape[1], 1)  # noqa: E731
    found = []
    for text in own:
        group = fitted(values).clone()
        if text is not None and at:
            group[at] = fitted(text[:1].to(values))
        found.append(group)
    return torch.cat(found)
