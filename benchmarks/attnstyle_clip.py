"""What the temporal loss does for a clip: key frames trained with and without it, applied to every frame.

    python benchmarks/attnstyle_clip.py --perceptual squeezenet.safetensors --clip CLIP.mp4 --word striped \\
        --temporal 0 --out FOLDER
    (the same with --temporal 10, then)
    python benchmarks/attnstyle_clip.py --compare FOLDER
    python benchmarks/attnstyle_clip.py --render FOLDER/x.safetensors --clip CLIP.mp4 --frames 240

A run trains on the key frames that the Key Frames node picks, applies the style to the clip as the video node
does, and measures: the word's probability (mean over the frames), the optical-flow error (DIS flow of the
content, valid pixels, mean squared, 0-255), the same error as a share of the picture's own local variance
there (a flattened picture gains nothing), the local contrast (deviation in 7x7 pixels, 0-255), and the
content's own along the same flow. The judge is the hand-built one of attnstyle_texture.py, or with `--judge`
a trained one. `--compare` brings two runs to an equal score first. `--render` is a process of its own, so
that what it held is what rendering took, not training; it says so every 48 frames.
"""

import argparse
import json
import logging
import resource
import time
from pathlib import Path

import cv2
import torch
from torch import Tensor

from reelbrush.kernels.flow import difference, validity, warp, warping_error
from reelbrush.lab import attnstyle_judge, attnstyle_texture
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.keyframes import pick
from reelbrush.nodes.attnstyle.losses import local_variance
from reelbrush.nodes.attnstyle.style import TextStyle, load, save
from reelbrush.nodes.attnstyle.train import Settings, train
from reelbrush.nodes.flow.estimate import estimator
from reelbrush.nodes.stya2k.perceptual import load_perceptual
from reelbrush.nodes.video.lazy_video import LazyVideo

log = logging.getLogger("attnstyle_clip")
NEAR = 0.005  # scores that differ by less are equal
SAME = ("clip", "word", "side", "first", "frames", "epochs", "seed")  # what two runs to compare share


def flow_errors(content: Tensor, *clips: Tensor) -> list[tuple[float, float]]:
    """For each clip [N, H, W, 3], along the content's flow and over pairs that share a pixel: the mean error,
    and all errors as a share of all local variance at the same pixels."""
    source = estimator("dis-medium")
    ready = [source.prepare(frame) for frame in content]
    sums, pairs = [[0.0, 0.0, 0.0] for _ in clips], 0
    for t in range(len(content) - 1):
        forward, backward = source.both(ready[t], ready[t + 1])
        valid = validity(backward, forward)
        if not valid.any():  # a cut
            continue
        pairs += 1
        for i, clip in enumerate(clips):
            first, second = (clip[k : k + 1].permute(0, 3, 1, 2) for k in (t, t + 1))
            apart = difference(warp(first, backward), second)
            sums[i][0] += warping_error(apart, valid).item()
            sums[i][1] += (apart * valid).sum().item()
            sums[i][2] += (local_variance(second) * valid).sum().item() * 255**2
    return [(error / pairs, apart / varies) for error, apart, varies in sums]


def contrast(clip: Tensor) -> float:
    """Mean deviation within 7x7 pixels, 0-255."""
    parts = [local_variance(frame[None].permute(0, 3, 1, 2)).sqrt().mean() for frame in clip]
    return 255 * torch.stack(parts).mean().item()


def styled(video: LazyVideo, style: TextStyle, strength: float = 1.0) -> LazyVideo:
    """A clip with the style on it, as the video node does it."""
    params = {"strength": strength, "about": style.about}
    return video.then("attnstyle.apply", params, tensors=style.tensors, node="Apply AttnStyle to Video")


def opened(clip: Path, side: int) -> LazyVideo:
    return LazyVideo.of(LazyVideo.from_file(str(clip))).fit(side)


class Scale:
    """What a style does to the first frames of a clip: the word's mean probability and the flow error."""

    def __init__(self, judge: str, clip: Path, word: str, side: int, first: int, frames: int):
        if judge:
            self.judge, words = attnstyle_judge.WordJudge(Path(judge)), attnstyle_judge.WORDS
        else:
            self.judge, words = attnstyle_texture.TextureJudge(), attnstyle_texture.WORDS
        self.word, self.others = words.index(word), tuple(w for w in words if w not in (word, "photo"))
        self.short = opened(clip, side).trim(first, frames)
        self.content = torch.cat(list(self.short.chunks(8)))

    def probability(self, frames: Tensor) -> float:
        with torch.no_grad():
            return self.judge.words(frames.permute(0, 3, 1, 2))[:, self.word].mean().item()

    def draw(self, style: TextStyle, strength: float = 1.0) -> Tensor:
        return torch.cat(list(styled(self.short, style, strength).chunks(8)))


def run(args: argparse.Namespace) -> None:
    scale = Scale(args.judge, args.clip, args.word, args.side, args.first, args.frames)
    keys, numbers = pick(scale.short, 4)
    weights = Weights(temporal=args.temporal)
    draw = {"patches": 16, "threshold": 0.2, "early_stop": False, "seed": args.seed}
    settings = Settings(epochs=args.epochs, weights=weights, others=scale.others, **draw)
    start, last = time.process_time(), {}

    def watch(step) -> None:
        last.update(step.losses)
        if step.epoch % 10 == 0:
            log.info("%d, %.0f s: %s", step.epoch, time.process_time() - start, step.losses)

    result = train(
        scale.judge,
        keys.permute(0, 3, 1, 2),
        args.word,
        "a photo",
        settings,
        perceptual=load_perceptual(args.perceptual),
        watch=watch,
    )
    style = TextStyle.of(
        result.network, style_text=args.word, source_text="a photo", size=list(keys.shape[1:3])
    )
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"{args.clip.stem}_{args.word}_{args.side}px_{args.epochs}_seed{args.seed}_{args.temporal:g}"
    save(style, args.out / f"{name}.safetensors")
    content, frames = scale.content, scale.draw(style)
    own, errors = flow_errors(content, content, frames)
    row = {"temporal": args.temporal, "word": args.word, "clip": str(args.clip), "judge": args.judge}
    row |= {"epochs": args.epochs, "seed": args.seed}
    row |= {
        "side": args.side,
        "size": list(frames.shape[1:3]),
        "first": args.first,
        "frames": len(frames),
        "key frames": numbers,
    }
    row |= {"P before": scale.probability(content), "P": scale.probability(frames)}
    row |= {"flow error, and relative": errors, "content's own": own}
    row |= {"contrast": contrast(frames), "content's contrast": contrast(content)}
    row |= {"losses": last, "style": f"{name}.safetensors"}
    row["seconds"] = time.process_time() - start
    log.info("%s", json.dumps(row))
    (args.out / f"{name}.json").write_text(json.dumps(row))
    cv2.imwrite(str(args.out / f"{name}.png"), sheet(content, frames))


def sheet(*clips: Tensor):
    """Six frames of each clip, one clip a row."""
    step = max(1, len(clips[0]) // 6)
    rows = [torch.cat(list(clip[::step][:6]), 1) for clip in clips]
    return (torch.cat(rows, 0).numpy()[..., ::-1] * 255).round().astype("uint8")


def render(args: argparse.Namespace) -> None:
    """Stream the first frames of a clip through a saved style, and say what this process has held so far."""
    style, clip = load(args.render), opened(args.clip, args.side).trim(0, args.frames)
    count = 0
    for chunk in styled(clip, style).chunks(8):
        count += len(chunk)
        if count % 48 == 0:
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            frames = count * clip.width * clip.height * 3 * 4 >> 20
            log.info("%d frames: %d MiB at most (these frames alone are %d MiB)", count, held, frames)


def compare(folder: Path) -> None:
    """Ratios of the flow error to the run with weight 0, clip by clip and word by word, at equal score.

    Where the scores differ by more than `NEAR`, the run that scores higher is mixed with the content
    (the node's strength) until they are equal.
    """
    rows = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    for base in (r for r in rows if r["temporal"] == 0):
        scale = Scale(*(base[k] for k in ("judge", "clip", "word", "side", "first", "frames")))
        plain = load(folder / base["style"])
        for r in rows:
            if not r["temporal"] or any(r[k] != base[k] for k in SAME):
                continue
            calm, strengths = load(folder / r["style"]), [1.0, 1.0]
            if abs(r["P"] - base["P"]) > NEAR:
                higher = 0 if base["P"] > r["P"] else 1
                style, goal = (plain, r["P"]) if higher == 0 else (calm, base["P"])
                strengths[higher] = match(scale, style, goal)
            drawn = [scale.draw(s, k) for s, k in zip((plain, calm), strengths, strict=True)]
            without, errors = flow_errors(scale.content, *drawn)
            scores, contrasts = ([f(d) for d in drawn] for f in (scale.probability, contrast))
            name = r["style"].removesuffix(".safetensors")
            log.info(
                "%s: flow error %.3g, without %.3g, ratio %.2f; relative %.4f, without %.4f, ratio %.2f; "
                "contrast %.2f, without %.2f; P %.3f, without %.3f; strengths %.2f, without %.2f",
                *(name, errors[0], without[0], errors[0] / without[0]),
                *(errors[1], without[1], errors[1] / without[1]),
                *(contrasts[1], contrasts[0], scores[1], scores[0], strengths[1], strengths[0]),
            )
            cv2.imwrite(str(folder / f"compare_{name}.png"), sheet(scale.content, *drawn))


def match(scale: Scale, style: TextStyle, goal: float) -> float:
    """The strength at which a style scores `goal`."""
    full, low, high = scale.draw(style), 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        found = scale.probability(scale.content.lerp(full, middle))
        low, high = (middle, high) if found < goal else (low, middle)
    return (low + high) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER")
    parser.add_argument("--render", type=Path, metavar="STYLE")
    parser.add_argument("--judge", default="", help="trained towers; without, the textures' own judge")
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--word", default="striped")
    parser.add_argument("--temporal", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="frame of the clip to begin at")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("attnstyle_clip"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.compare:
        compare(args.compare)
    elif args.render:
        render(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
