"""A mask from a word: where the cross-attention of the inverted content attends to it.

At some noise levels of the content's inversion, in some decoder blocks, the attention of every picture token
to the text is read (mean over the heads). The columns of the word's tokens, added up, are a rough map of the
word. Self-attention of the same layer connects tokens of the same object: the map is multiplied by its matrix
`refine` times, which fills objects and follows their outlines. The maps are averaged over layers and levels,
scaled to 0..1 over the whole clip, enlarged to the picture and cut at a threshold.

    h_l = mean over layers of sum over tokens softmax(q k_text)[:, tokens],    h = mean over l of A_l^r h_l

Departure: the DiffStyler paper takes masks from FastSAM, which it finds better than such maps. That needs the
download of a segmentation model and a pack of its own; Apply Style LoRA takes the masks of any such pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...kernels.attention import by_queries, weights
from .. import host
from ..common.inputs import comma_separated
from .inversion.trajectory import Trajectory
from .patching import unet
from .patching.layers import AttentionLayer
from .patching.unet import AttentionSite, Features

# -- words -----------------------------------------------------------------------------------------


def positions(clip: Any, text: str, words: str) -> list[list[int]]:
    """For each word or phrase of the comma-separated `words`, its positions among the text's tokens."""
    tokens = _ids(clip, text)
    special = set(_ids(clip, ""))  # start, end, padding
    phrases = comma_separated(words)
    places = []
    for phrase in phrases or [text]:
        piece = [t for t in _ids(clip, phrase) if t not in special]
        starts = [i for i in range(len(tokens) - len(piece) + 1) if tokens[i : i + len(piece)] == piece]
        if not piece or not starts:
            raise ValueError(
                f"the words {phrase!r} are not in the text {text!r}: write a text that contains them, and "
                "give the words as they are in the text, separated by commas"
            )
        places.append([i + n for i in starts for n in range(len(piece))])
    return places


def _ids(clip: Any, text: str) -> list[int]:
    """The token numbers of a text: all its chunks of 77 joined, without padding."""
    tokens = clip.tokenize(text)
    chunks = tokens.get("l") or next(iter(tokens.values()))
    ids = [entry[0] for chunk in chunks for entry in chunk]
    while len(ids) > 2 and ids[-1] == ids[-2]:
        ids.pop()
    return ids


def encoded(clip: Any, text: str) -> list:
    """CONDITIONING of a text, as from CLIP Text Encode."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


# -- maps ------------------------------------------------------------------------------------------


def levels(
    model: Any, trajectory: Trajectory, start_percent: float = 0.3, end_percent: float = 0.8, steps: int = 5
) -> list[float]:
    """Noise levels evenly spread over a part of the sampling, within the trajectory's range."""
    ends = (start_percent, end_percent)
    percents = torch.linspace(*ends, steps).tolist() if steps > 1 else [sum(ends) / 2]
    return [max(trajectory.reached(host.percent_to_sigma(model, p)), 1e-3) for p in percents]


def heat(
    model: Any,
    trajectory: Trajectory,
    conditioning: list,
    words: Sequence[Sequence[int]],
    layers: Sequence[AttentionLayer],
    sigmas: Sequence[float],
    refine: int,
) -> Tensor:
    """[frames, h, w] in 0..1, at the latents' size; the mean over the words (token positions of each)."""
    size, frames = tuple(trajectory.latents.shape[-2:]), []
    with host.loaded(model) as base, host.progress(trajectory.frames * len(sigmas), "Reading") as bar:
        for frame in range(trajectory.frames):
            total = torch.zeros(size)
            for sigma in sigmas:
                latents = trajectory.at(sigma)[frame : frame + 1].to(model.load_device)
                cross, own = _read(model, base, latents, sigma, conditioning, layers)
                total += _refined(_rough(cross, words, size), own, refine).cpu()
                bar.step()
            frames.append(total)
    maps = torch.stack(frames)
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low).clamp_min(1e-12)


def _read(
    model: Any, base: Any, latents: Tensor, sigma: float, conditioning: list, layers: Sequence[AttentionLayer]
) -> tuple[list[Features], list[Features]]:
    """Queries and keys of cross- and self-attention of one frame at one noise level."""
    features: dict[str, list[Features]] = {"attn2": [], "attn1": []}

    def keep(kind: str) -> unet.Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
            features[kind].append(Features(site.layer, site.size, q, k))
            return site.inner(q, k, v)

        return attend

    options = unet.reading_options(host.transformer_options(model, torch.tensor([sigma])))
    for kind in features:
        options = unet.with_attention(options, layers, keep(kind), reading=True, kind=kind)
    with torch.no_grad():
        host.evaluate(base, latents, sigma, host.conditions(base, conditioning, latents, sigma), options)
    if any(len(read) != len(layers) for read in features.values()):
        raise unet.unreadable()
    return tuple(features.values())


def _rough(cross: Sequence[Features], words: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """The words' share of the attention to the text, mean over layers and words, [h, w]."""
    maps = []
    for f in cross:
        to_text = weights(f.heads("q").float(), f.heads("k").float()).mean(1)[0]  # [N, text]
        word_weights = torch.stack([to_text[:, list(tokens)].sum(-1) for tokens in words]).mean(0)
        maps.append(_resized(word_weights.view(f.size), size))
    return torch.stack(maps).mean(0)


def _refined(rough: Tensor, own: Sequence[Features], times: int) -> Tensor:
    """The map multiplied by a layer's self-attention `times` times, mean over layers."""
    if not times:
        return rough
    maps = []
    for f in own:
        q, k = f.heads("q").float()[0], f.heads("k").float()[0]
        values = _resized(rough, f.size).flatten()
        for _ in range(times):
            values = by_queries(lambda some, k=k, values=values: weights(some, k) @ values, q).mean(0)
        maps.append(_resized(values.view(f.size), tuple(rough.shape)))
    return torch.stack(maps).mean(0)


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
