"""`reelbrush train stya2k` and `reelbrush convert-stya2k`; any path may be given here."""

import argparse
import logging
import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch

from . import checkpoint
from .attention import KINDS
from .data import Pictures
from .perceptual import load_perceptual
from .recipe import Recipe, recipe_in
from .small import HALVINGS
from .train import Report, Trainer

log = logging.getLogger("reelbrush")


class Command(NamedTuple):
    """What `__main__` asks of a sub-command."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", choices=("stya2k",), help="what to train")
    parser.add_argument("folder", type=Path, help="the run: state, log, samples; resumed if it exists")
    parser.add_argument("--contents", type=Path, required=True, help="photographs: a folder or a packed file")
    parser.add_argument("--styles", type=Path, required=True, help="styles: a folder or a packed file")
    parser.add_argument("--perceptual", type=Path, required=True, help="SqueezeNet v1.0 or VGG-19 weights")
    parser.add_argument("--clips", type=Path, help="folder of clips: frame pairs for the temporal loss")
    parser.add_argument(
        "--preset",
        choices=("small", "paper"),
        default="small",
        help="paper: its network, schedule and weights in place of the defaults below",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        help="a new run begins with these weights; of another attention: all but that",
    )
    parser.add_argument("--save-as", type=Path, help="write the averaged weights here at the end")
    parser.add_argument("--cache", type=Path, help="where packed pictures go (default: beside the run)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train: cuda, cpu"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0,
        help="threads that make batches ahead (default: as many as pay beside a GPU)",
    )
    parser.add_argument("--no-capture", action="store_true", help="on CUDA: launch every kernel anew")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="between two states")
    parser.add_argument("--sheet-every", type=int, default=500, metavar="STEPS", help="between two sheets")
    parser.add_argument("--until", type=int, default=0, metavar="STEP", help="stop (and save) at this step")
    choices = {"attention": KINDS, "halving": HALVINGS, "schedule": ("linear", "constant", "paper")}
    for item in fields(Recipe):
        name, meaning = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if item.type is bool:
            parser.add_argument(name, action="store_true", default=None, help=meaning)
        elif item.name != "size":
            parser.add_argument(
                name,
                type=item.type,
                choices=choices.get(item.name),
                help=f"{meaning} (default {item.default})",
            )


def _train(args: argparse.Namespace) -> int:
    """Train until the recipe's last step; Ctrl-C leaves a state to go on from."""
    given = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = recipe_in(args.folder, given, args.preset == "paper")
    if str(args.device).startswith("cuda"):  # one shape, thousands of times; a picture needs no 24 bits
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    cache = args.cache or args.folder.parent
    contents = Pictures(args.contents, cache, recipe.load_size)
    styles = Pictures(args.styles, cache, recipe.load_size)
    trainer = Trainer(
        args.folder,
        recipe,
        contents,
        styles,
        load_perceptual(args.perceptual),
        args.device,
        workers=args.workers,
        capture=not args.no_capture,
    )
    if args.clips:
        trainer.use_clips(args.clips)
    if trainer.load():
        log.info("going on from step %d", trainer.step)
    elif args.start_from:
        trainer.start_from(checkpoint.load(args.start_from))
    start = time.monotonic()

    def watch(report: Report) -> None:
        if report.step % 20 == 0:
            terms = " ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
            log.info("step %d/%d %.0f s: %s", report.step, report.steps, time.monotonic() - start, terms)
        if args.until and report.step >= args.until:
            raise KeyboardInterrupt

    done = 0
    try:
        trainer.run(watch, save_every=args.save_every, sheet_every=args.sheet_every)
    except KeyboardInterrupt:
        log.info("stopped at step %d; the same command goes on", trainer.step)
        done = 0 if args.until else 130
    if args.save_as:
        checkpoint.save(trainer.averaged(), args.save_as, about=trainer.facts())
        log.info("wrote %s", args.save_as)
    return done


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="latest_net_{A2K,transform,decoder}.pth and an encoder")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="float16: half the size")


def _convert(args: argparse.Namespace) -> int:
    """The official files as one."""
    network = checkpoint.load(args.folder)
    checkpoint.save(network, args.output.with_suffix(".safetensors"), half=args.half)
    log.info("wrote %s; put it into models/stya2k", args.output.with_suffix(".safetensors"))
    return 0


train = Command(_train_arguments, _train)
convert = Command(_convert_arguments, _convert)
