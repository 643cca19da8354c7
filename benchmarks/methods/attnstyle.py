"""AttnStyle with a private judge (judge=FILE of lab/attnstyle_judge.py), or the judge of textures."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelbrush.benchmarks.measures import ssim
from reelbrush.kernels.flow import difference, validity, warp, warping_error
from reelbrush.lab import attnstyle_judge, attnstyle_texture
from reelbrush.nodes.attnstyle import losses
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.keyframes import spread
from reelbrush.nodes.attnstyle.patches import parse_scales
from reelbrush.nodes.attnstyle.style import TextStyle, apply
from reelbrush.nodes.attnstyle.train import Settings, train
from reelbrush.nodes.common.perceptual import load_perceptual
from reelbrush.nodes.flow.cuts import find_cuts
from reelbrush.nodes.flow.estimate import estimator

Numbers = dict[str, float]
NEAR, STILL = 0.005, 20  # an optimization of pixels ends when it gains less than NEAR in STILL steps
SOURCE = "a photo"


@cache
@torch.inference_mode(False)  # gradients go through the networks
def _network(file: str) -> torch.nn.Module:
    return load_perceptual(Path(file))


@cache
@torch.inference_mode(False)
def _judge(file: str) -> tuple[Any, tuple[str, ...]]:
    """A judge and its words."""
    if file:
        return attnstyle_judge.WordJudge(Path(file)), attnstyle_judge.WORDS
    return attnstyle_texture.TextureJudge(), attnstyle_texture.WORDS


def _scores(judge: str, word: str) -> Callable[[Tensor], float]:
    """The mean probability of the word for pictures [N, 3, h, w]."""
    scorer, words = _judge(judge)
    return lambda x: scorer.words(x)[:, words.index(word)].mean().item()


def _settings(judge: str, word: str, epochs: int, **more: Any) -> Settings:
    """Fewer patches and a lower threshold than the node's: these judges are less certain than CLIP."""
    others = tuple(w for w in _judge(judge)[1] if w not in (word, "photo"))
    return Settings(epochs=epochs, patches=16, threshold=0.2, early_stop=False, others=others, **more)


def _weights(perceptual: str, **more: float) -> Weights:
    return Weights(**({} if perceptual else {"content": 0.0}), **more)


@cache
def _trained(
    judge: str, perceptual: str, word: str, content: Tensor, epochs: int, temporal: float, seed: int
) -> Any:
    """A network that was trained on pictures [n, h, w, 3]."""
    network = _network(perceptual) if perceptual else None
    settings = _settings(judge, word, epochs, weights=_weights(perceptual, temporal=temporal), seed=seed)
    return train(_judge(judge)[0], content.movedim(-1, 1), word, SOURCE, settings, perceptual=network).network


def _mixed(score: Callable[[Tensor], float], a: Tensor, b: Tensor, goal: float) -> Tensor:
    """The mix of a, which scores less than the goal, and b, which scores more, that scores it."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if score(a.lerp(b, middle)) < goal else (low, middle)
    return a.lerp(b, high)


def _objective(
    judge: str, perceptual: str, word: str, picture: Tensor, structure: bool
) -> Callable[[Tensor], Tensor]:
    """AttnStyle's losses as a function of the picture alone; `structure`: with content, layout, variation."""
    settings, weights = _settings(judge, word, 1), _weights(perceptual)
    scorer, first = _judge(judge)[0], torch.tensor([0])
    aim = scorer.aim(word, SOURCE, picture, settings.others)
    draw = {"patches": settings.patches, "threshold": settings.threshold}
    draw["generator"] = torch.Generator().manual_seed(0)
    terms = {
        "classification": losses.ClassificationLoss(aim),
        "confidence": losses.ConfidenceLoss(aim),
        "patches": losses.PatchLoss(aim, scorer.size, parse_scales(settings.patch_scales), **draw),
    }
    if structure:
        variation = losses.TotalVariationLoss()
        terms |= {"layout": losses.LayoutLoss(aim, picture), "tv": lambda x, _: variation(x)}
        if perceptual:
            terms["content"] = losses.ContentLoss(_network(perceptual), picture)
    return lambda x: sum(getattr(weights, name) * term(x, first) for name, term in terms.items())


def _optimized(
    score: Callable[[Tensor], float], picture: Tensor, goal: float, loss: Callable, steps: int
) -> Tensor:
    """Adam on the pixels, until the score is `goal` or no longer rises: the first picture that scores it."""
    x = picture.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    path, scores, best = [picture], [score(picture)], 0
    while len(path) <= steps and scores[-1] < goal and len(path) - best <= STILL:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
        path.append(x.detach().clone())
        scores.append(score(path[-1]))
        if scores[-1] > scores[best] + NEAR:
            best = len(path) - 1
    reached = min(goal, scores[best])
    step = next(i for i, value in enumerate(scores) if value >= reached)
    return _mixed(score, path[max(step - 1, 0)], path[step], reached)


def picture(
    content: Tensor,
    style: Tensor,
    way: str = "attnstyle",
    word: str = "striped",
    judge: str = "",
    perceptual: str = "",
    epochs: int = 150,
    steps: int = 100,
    seed: int = 0,
) -> tuple[Tensor, Numbers]:
    """AttnStyle against Adam on the pixels at equal score.

    way: attnstyle; pixels (the same judge and losses), all (with the content, layout and variation losses
    too), score (the word's log probability alone). "AttnStyle's 1-SSIM" is that of AttnStyle's picture mixed
    with the content down to the same score, to compare with this way's own.
    """
    score, x = _scores(judge, word), content.movedim(-1, 1)
    drawn = _trained(judge, perceptual, word, content, epochs, 0.0, seed)(x)
    numbers = {"P before": score(x)}
    out = drawn
    if way != "attnstyle":
        with torch.inference_mode(False), torch.enable_grad():
            plain = x.clone()
            scorer, words = _judge(judge)
            loss = lambda y: -scorer.words(y)[0, words.index(word)].log()  # noqa: E731
            if way in ("pixels", "all"):
                loss = _objective(judge, perceptual, word, plain, way == "all")
            out = _optimized(score, plain, score(drawn), loss, steps)
        same = _mixed(score, x, drawn, min(score(drawn), score(out)))
        numbers["AttnStyle's 1-SSIM"] = 1 - ssim(same.movedim(1, -1), content)
    return out.detach().movedim(1, -1), numbers | {"P": score(out)}


def clip(
    content: Tensor,
    style: Tensor,
    temporal: float = 0.0,
    word: str = "striped",
    score: float = 0.0,
    judge: str = "",
    perceptual: str = "",
    epochs: int = 150,
    seed: int = 0,
) -> tuple[Tensor, Numbers]:
    """A style that was trained on 4 key frames, on every frame of a clip (--clip).

    score > 0 mixes the result with the content down to that probability of the word, so that different
    `temporal` weights compare at equal score. "relative flow error" is a share of the picture's own local
    variance: a flatter picture gains nothing there.
    """
    cuts = [0, *find_cuts(content), len(content)]
    keys = spread(list(pairwise(cuts)), 4)
    network = _trained(judge, perceptual, word, _keys(content, tuple(keys)), epochs, temporal, seed)
    about = TextStyle.of(network, style_text=word, source_text=SOURCE, size=list(content.shape[1:3]))
    frames, x, scored = apply(about, content).movedim(-1, 1), content.movedim(-1, 1), _scores(judge, word)
    if score and scored(frames) > score:
        frames = _mixed(scored, x, frames, score)
    numbers = {"P before": scored(x), "P": scored(frames)}
    frames = frames.movedim(1, -1)
    return frames, numbers | _flow_errors(content, frames)


@cache
def _keys(content: Tensor, numbers: tuple[int, ...]) -> Tensor:
    return content[list(numbers)]


def _flow_errors(content: Tensor, clip: Tensor) -> Numbers:
    """The mean error along the content's flow, and all errors as a share of all local variance there."""
    source, sums, pairs = estimator("dis-medium"), [0.0, 0.0, 0.0], 0
    ready = [source.prepare(frame) for frame in content]
    for t in range(len(content) - 1):
        forward, backward = source.both(ready[t], ready[t + 1])
        valid = validity(backward, forward)
        if not valid.any():  # a cut
            continue
        pairs += 1
        first, second = (clip[k : k + 1].permute(0, 3, 1, 2) for k in (t, t + 1))
        apart = difference(warp(first, backward), second)
        sums[0] += warping_error(apart, valid).item()
        sums[1] += (apart * valid).sum().item()
        sums[2] += (losses.local_variance(second) * valid).sum().item() * 255**2
    return {"flow error": sums[0] / max(pairs, 1), "relative flow error": sums[1] / max(sums[2], 1e-9)}
