"""What the temporal loss does for a clip: key frames trained with and without it, applied to every frame.

    python benchmarks/attnstyle_clip.py --judge judge.safetensors --perceptual squeezenet.safetensors \\
        --clip CLIP.mp4 --word rough --temporal 0 --out FOLDER
    (the same with --temporal 100, then)  python benchmarks/attnstyle_clip.py --compare FOLDER

A run trains on the key frames that the Key Frames node picks, applies the style to the clip as the video node
does, and measures: the word's probability (mean over the frames), the optical-flow error (DIS flow of the
content, valid pixels, mean squared, 0-255), the content's own error along the same flow, and the memory that
rendering 48 frames and then five times as many takes.
"""

import argparse
import json
import logging
import resource
import time
from pathlib import Path

import attnstyle_judge as towers
import cv2
import torch
from torch import Tensor

from reelbrush.kernels.flow import difference, validity, warp, warping_error
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.keyframes import pick
from reelbrush.nodes.attnstyle.style import TextStyle, save
from reelbrush.nodes.attnstyle.train import Settings, train
from reelbrush.nodes.flow.estimate import estimator
from reelbrush.nodes.stya2k.perceptual import load_perceptual
from reelbrush.nodes.video.reel import LazyVideo

log = logging.getLogger("attnstyle_clip")


def flow_errors(content: Tensor, *clips: Tensor) -> list[float]:
    """The mean error of each clip [N, H, W, 3] along the content's flow, over pairs that share a pixel."""
    source = estimator("dis-medium")
    ready = [source.prepare(frame) for frame in content]
    sums, pairs = [0.0] * len(clips), 0
    for t in range(len(content) - 1):
        forward, backward = source.both(ready[t], ready[t + 1])
        valid = validity(backward, forward)
        if not valid.any():  # a cut
            continue
        pairs += 1
        for i, clip in enumerate(clips):
            first, second = (clip[k : k + 1].permute(0, 3, 1, 2) for k in (t, t + 1))
            sums[i] += warping_error(difference(warp(first, backward), second), valid).item()
    return [s / pairs for s in sums]


def memory() -> int:
    """The most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(args: argparse.Namespace) -> None:
    judge = towers.WordJudge(args.judge)
    clip = LazyVideo.of(LazyVideo.from_file(str(args.clip))).fit(args.side)
    short = clip.trim(0, args.frames)
    keys, numbers = pick(short, 4)
    weights = Weights(temporal=args.temporal)
    settings = Settings(epochs=args.epochs, patches=16, threshold=0.2, early_stop=False, weights=weights)
    start, last = time.process_time(), {}

    def watch(step) -> None:
        last.update(step.losses)
        if step.epoch % 10 == 0:
            log.info("%d, %.0f s: %s", step.epoch, time.process_time() - start, step.losses)

    result = train(
        judge,
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
    name = f"{args.clip.stem}_{args.word}_{args.temporal:g}"
    save(style, args.out / f"{name}.safetensors")

    def styled(video: LazyVideo) -> LazyVideo:
        params = {"strength": 1.0, "about": style.about}
        return video.then("attnstyle.apply", params, tensors=style.tensors, node="Apply AttnStyle to Video")

    for _ in styled(short).chunks(8):
        pass
    used = [memory()]
    for _ in styled(clip).chunks(8):
        pass
    used.append(memory())
    content, frames = (torch.cat(list(v.chunks(8))) for v in (short, styled(short)))
    k = towers.WORDS.index(args.word)
    with torch.no_grad():
        before, after = (judge.words(v.permute(0, 3, 1, 2))[:, k].mean().item() for v in (content, frames))
    own, error = flow_errors(content, content, frames)
    row = {
        "temporal": args.temporal,
        "word": args.word,
        "clip": args.clip.name,
        "size": list(frames.shape[1:3]),
    }
    row |= {"key frames": numbers, "P before": before, "P": after, "flow error": error, "content's own": own}
    row |= {"MiB after frames": {str(len(frames)): used[0], str(clip.frame_count): used[1]}, "losses": last}
    row["seconds"] = time.process_time() - start
    log.info("%s", json.dumps(row))
    (args.out / f"{name}.json").write_text(json.dumps(row))
    step = max(1, len(frames) // 6)
    sheet = [torch.cat([c, f], 0) for c, f in zip(content[::step], frames[::step], strict=True)]
    picture = (torch.cat(sheet[:6], 1).numpy()[..., ::-1] * 255).round().astype("uint8")
    cv2.imwrite(str(args.out / f"{name}.png"), picture)


def compare(folder: Path) -> None:
    """Ratios of the flow error to the run with weight 0, clip by clip and word by word."""
    rows = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    for base in (r for r in rows if r["temporal"] == 0):
        for r in rows:
            if r["temporal"] and (r["clip"], r["word"]) == (base["clip"], base["word"]):
                log.info(
                    "%s, %s, weight %g: flow error %.1f, without %.1f, ratio %.2f; P %.3f, without %.3f",
                    *(r["clip"], r["word"], r["temporal"], r["flow error"], base["flow error"]),
                    *(r["flow error"] / base["flow error"], r["P"], base["P"]),
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--perceptual", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--word", default="rough")
    parser.add_argument("--temporal", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("attnstyle_clip"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    compare(args.compare) if args.compare else run(args)


if __name__ == "__main__":
    main()
