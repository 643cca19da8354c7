"""`reelbrush train stya2k`: trains a StyA2K model; the same command resumes a run."""

import argparse
import logging
import os
import time
from dataclasses import fields
from pathlib import Path

import torch

from ...common.perceptual import INSTALLED, load_perceptual, perceptual_path
from ...stya2k import checkpoint
from ...stya2k.attention import KINDS
from ...stya2k.data import Pictures
from ...stya2k.recipe import EQUATIONS, SIZES, Recipe, recipe_in
from ...stya2k.small import HALVINGS
from ...stya2k.train import StepReport, Trainer

log = logging.getLogger("reelbrush")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", choices=("stya2k",), help="what to train")
    parser.add_argument(
        "folder", type=Path, help="the run's folder (state, log, samples); an existing run is resumed"
    )
    parser.add_argument("--contents", type=Path, required=True, help="photographs: a folder or a packed file")
    parser.add_argument("--styles", type=Path, required=True, help="styles: a folder or a packed file")
    parser.add_argument(
        "--perceptual",
        type=Path,
        help="weights of a SqueezeNet, VGG-16 or VGG-19 (default: those of the package stlpips-pytorch)",
    )
    parser.add_argument("--clips", type=Path, help="folder of clips: frame pairs for the temporal loss")
    parser.add_argument(
        "--preset",
        choices=("small", "paper"),
        default="small",
        help="paper: the network, schedule and weights of the paper instead of the defaults below",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        help="weights that a new run starts from; of another attention, all but the attention is used",
    )
    parser.add_argument("--save-as", type=Path, help="the file for the averaged weights at the end")
    parser.add_argument("--cache", type=Path, help="the folder for packed pictures (default: beside the run)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="the device: cuda or cpu"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0,
        help="threads that prepare batches ahead (default: up to 8 with a GPU, otherwise 0)",
    )
    parser.add_argument("--no-capture", action="store_true", help="do not record a step as a CUDA graph")
    parser.add_argument(
        "--save-every", type=int, default=200, metavar="STEPS", help="how often the state is saved"
    )
    parser.add_argument(
        "--sheet-every", type=int, default=500, metavar="STEPS", help="how often sample pictures are written"
    )
    parser.add_argument("--until", type=int, default=0, metavar="STEP", help="stop and save at this step")
    choices = {
        "attention": KINDS,
        "size": SIZES,
        "halving": HALVINGS,
        "equations": EQUATIONS,
        "schedule": ("linear", "constant", "paper"),
    }
    for item in fields(Recipe):
        name, meaning = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if item.type is bool:
            parser.add_argument(name, action="store_true", default=None, help=meaning)
        else:
            parser.add_argument(
                name,
                type=item.type,
                choices=choices.get(item.name),
                help=f"{meaning} (default {item.default})",
            )


def run(args: argparse.Namespace) -> int:
    """Train until the recipe's last step; Ctrl-C saves a state from which the run can be resumed."""
    values = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    values = {name: value for name, value in values.items() if value is not None}
    recipe = recipe_in(args.folder, values, args.preset == "paper")
    if str(args.device).startswith("cuda"):  # every step has the same shapes, and tf32 is precise enough
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
        load_perceptual(args.perceptual or perceptual_path(INSTALLED)),
        args.device,
        workers=args.workers,
        capture=not args.no_capture,
    )
    if args.clips:
        trainer.use_clips(args.clips)
    if trainer.load():
        log.info("resuming at step %d", trainer.step)
    elif args.start_from:
        trainer.start_from(checkpoint.load(args.start_from))
    start = time.monotonic()

    def watch(report: StepReport) -> None:
        if report.step % 20 == 0:
            terms = " ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
            log.info("step %d/%d %.0f s: %s", report.step, report.steps, time.monotonic() - start, terms)
        if args.until and report.step >= args.until:
            raise KeyboardInterrupt

    exit_code = 0
    try:
        trainer.run(watch, save_every=args.save_every, sheet_every=args.sheet_every)
    except KeyboardInterrupt:
        log.info("stopped at step %d; the same command resumes it", trainer.step)
        exit_code = 0 if args.until else 130
    if args.save_as:
        checkpoint.save(trainer.averaged(), args.save_as, about=trainer.facts())
        log.info("wrote %s", args.save_as)
    return exit_code
