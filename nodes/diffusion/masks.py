"""A mask from a word: where the inverted content's cross-attention looks for it.

At some noise levels of the content's inversion, in some decoder blocks, every picture token's attention over
the text is read (mean over the heads); the columns of the word's tokens, added up, are a rough map of where
the word is. The self-attention beside it says which places belong together: the map is multiplied by that
matrix `refine` times, which fills objects and follows their borders. Maps are averaged over layers and
levels, stretched to 0..1 over the whole clip, enlarged to the picture and cut at a threshold.

    h_l = mean over layers of sum over tokens softmax(q k_text)[:, tokens],    h = mean over l of A_l^r h_l

Departure: the DiffStyler paper takes masks from FastSAM, which it finds better than such maps; a segmentation
model is a download and a pack of its own. Masks of any such pack go straight into Apply Style LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import host
from . import unet
from .unet import At, Features, Layer

if TYPE_CHECKING:
    from .trajectory import Trajectory

_QUERIES = 1024

# -- words -----------------------------------------------------------------------------------------


def positions(clip: Any, text: str, words: str) -> list[list[int]]:
    """For each of the comma-separated `words` (a word may be several), its places among the text's tokens."""
    tokens = _ids(clip, text)
    marks = set(_ids(clip, ""))  # start, end, padding
    wanted = [w.strip() for w in words.split(",") if w.strip()]
    found = []
    for word in wanted or [text]:
        piece = [t for t in _ids(clip, word) if t not in marks]
        starts = [i for i in range(len(tokens) - len(piece) + 1) if tokens[i : i + len(piece)] == piece]
        if not piece or not starts:
            raise ValueError(
                f"the words {word!r} do not stand in the text {text!r}: write a text that holds them, and "
                "give words as they stand there, with commas between"
            )
        found.append([i + n for i in starts for n in range(len(piece))])
    return found


def _ids(clip: Any, text: str) -> list[int]:
    """The token numbers of a text, all its chunks of 77 one after the other, padding off."""
    tokens = clip.tokenize(text)
    chunks = tokens.get("l") or next(iter(tokens.values()))
    ids = [entry[0] for chunk in chunks for entry in chunk]
    while len(ids) > 2 and ids[-1] == ids[-2]:
        ids.pop()
    return ids


def encoded(clip: Any, text: str) -> list:
    """CONDITIONING of a text, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


# -- maps ------------------------------------------------------------------------------------------


def levels(model: Any, trajectory: Trajectory, start: float, end: float, count: int) -> list[float]:
    """Noise levels evenly spread over a part of the sampling, those that the trajectory reaches."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    lowest, highest = max(float(trajectory.sigmas.min()), 1e-3), float(trajectory.sigmas.max())
    parts = torch.linspace(start, end, count).tolist() if count > 1 else [(start + end) / 2]
    return [min(max(float(to_sigma(p)), lowest), highest) for p in parts]


def heat(
    model: Any,
    trajectory: Trajectory,
    conditioning: list,
    places: Sequence[Sequence[int]],
    chosen: Sequence[Layer],
    sigmas: Sequence[float],
    refine: int,
) -> Tensor:
    """[frames, h, w] in 0..1, at the latents' size; several words' maps are averaged."""
    size, frames = tuple(trajectory.latents.shape[-2:]), []
    with unet.loaded(model) as base, host.progress(trajectory.frames * len(sigmas), "Reading") as bar:
        for frame in range(trajectory.frames):
            total = torch.zeros(size)
            for sigma in sigmas:
                latents = trajectory.at(sigma)[frame : frame + 1].to(model.load_device)
                cross, own = _read(model, base, latents, sigma, conditioning, chosen)
                total += _refined(_rough(cross, places, size), own, refine).cpu()
                bar.step()
            frames.append(total)
    found = torch.stack(frames)
    low, high = found.min(), found.max()
    return (found - low) / (high - low).clamp_min(1e-12)


def _read(
    model: Any, base: Any, latents: Tensor, sigma: float, conditioning: list, chosen: Sequence[Layer]
) -> tuple[list[Features], list[Features]]:
    """Queries and keys of cross- and self-attention of one frame at one noise level."""
    found: dict[str, list[Features]] = {"attn1": [], "attn2": []}

    def reading(kind: str):
        def attend(q: Tensor, k: Tensor, v: Tensor, at: At) -> Tensor:
            found[kind].append(Features(at.layer, at.size, q, k))
            return at.below(q, k, v)

        return attend

    options = unet.reference(unet.standalone_options(model, torch.tensor([sigma])))
    for kind in found:
        options = unet.patched(options, chosen, reading(kind), reading=True, kind=kind)
    given = unet.conditions(base, conditioning, latents, sigma)
    with torch.no_grad():
        unet.evaluate(base, latents, sigma, given, options)
    if any(len(features) != len(chosen) for features in found.values()):
        raise RuntimeError(
            "another node replaces whole attention blocks, so that their layers cannot be read: take it off "
            "this model"
        )
    return found["attn2"], found["attn1"]


def _rough(cross: Sequence[Features], places: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """The words' share of the attention to the text, mean over layers and words, [h, w]."""
    maps = []
    for f in cross:
        q, k = f.heads("q").float(), f.heads("k").float()
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[0]  # [N, text]
        each = torch.stack([weights[:, list(p)].sum(-1) for p in places]).mean(0)
        maps.append(_resized(each.view(f.size), size))
    return torch.stack(maps).mean(0)


def _refined(rough: Tensor, own: Sequence[Features], times: int) -> Tensor:
    """The map spread over what belongs together: times a layer's self-attention, mean over layers."""
    if not times:
        return rough
    maps = []
    for f in own:
        spread = _resized(rough, f.size).flatten()
        for _ in range(times):
            spread = _looked_up(f.heads("q").float()[0], f.heads("k").float()[0], spread)
        maps.append(_resized(spread.view(f.size), tuple(rough.shape)))
    return torch.stack(maps).mean(0)


def _looked_up(q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    """softmax(q k) @ values, mean over heads; never all of N x N at once."""
    scale = q.shape[-1] ** -0.5
    parts = [((p @ k.transpose(-1, -2)) * scale).softmax(-1) @ values for p in q.split(_QUERIES, dim=1)]
    return torch.cat(parts, dim=-1).mean(0)


def _resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    smaller = size[0] < one.shape[0] or size[1] < one.shape[1]
    how = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return interpolate(one[None, None], size=size, **how)[0, 0]


# -- pictures --------------------------------------------------------------------------------------


def enlarged(heat: Tensor, factor: int = 8) -> Tensor:
    """[frames, H, W] at the pictures' size."""
    size = (heat.shape[1] * factor, heat.shape[2] * factor)
    return interpolate(heat[:, None], size=size, mode="bicubic").clamp(0, 1)[:, 0]


def coloured(heat: Tensor) -> Tensor:
    """IMAGE [frames, H, W, 3]: black, red, yellow, white."""
    return torch.stack([heat * 3, heat * 3 - 1, heat * 3 - 2], dim=-1).clamp(0, 1)
