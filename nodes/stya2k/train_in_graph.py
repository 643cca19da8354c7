"""Training from a graph: folders below input/, progress with samples, a model in output/stya2k."""

from pathlib import Path

from torch import Tensor

from .. import host
from ..common.perceptual import load_perceptual, perceptual_path
from ..common.plot import loss_plot
from . import checkpoint, library
from .data import Pictures
from .recipe import AUTOMATIC, Recipe, recipe_in
from .style import Model, load_model
from .train import StepReport, Trainer


def train(
    contents: str, styles: str, clips: str, perceptual: str, name: str, resume: bool, values: dict
) -> tuple[Model, Tensor, str]:
    """Start or continue the training `name`. Gives the model, a plot of the losses, and a text."""
    if not name.strip():
        raise ValueError("save_as is empty: give the run a name")
    target = host.inside(host.folder("output") / library.KIND, f"{name}.safetensors", "save_as")
    folder = target.with_name(f".{target.stem}")  # a hidden folder, so that the run is not listed as a model
    if not resume and (folder.exists() or target.exists()):
        raise ValueError(f"the run {name!r} already exists: turn on resume, or give another save_as")
    paper = values["size"] == "paper"
    # What the inputs do not say, the preset or the run's folder does.
    unsaid = {"steps": Recipe.steps if paper else None, "equations": AUTOMATIC}
    values = {name: value for name, value in values.items() if value != unsaid.get(name)}
    recipe = recipe_in(folder, values, paper)
    # Everything is loaded outside inference mode, because such tensors cannot be used in training.
    with host.gradients(), host.progress(recipe.steps, "Training StyA2K", "steps") as bar:
        sources = [
            Pictures(host.input_path(f, "folder"), host.folder("temp") / "stya2k", recipe.load_size)
            for f in (contents, styles)
        ]
        judge = load_perceptual(perceptual_path(perceptual))
        trainer = Trainer(folder, recipe, *sources, judge, host.device())
        if clips:
            trainer.use_clips(host.input_path(clips, "folder"))
        trainer.load()
        begun = trainer.step

        def watch(report: StepReport) -> None:
            bar.at(report.step, report.sheet)

        trainer.run(watch, sheet_every=max(1, min(250, recipe.steps // 4)))
    checkpoint.save(trainer.averaged(), target, half=False, about=trainer.facts())
    skipped = sources[0].skipped + sources[1].skipped
    lines = [
        f"saved as {Path(target).name}; choose it in Load StyA2K",
        f"steps {begun + 1} to {trainer.step}, {trainer.seconds:.0f} s in all",
        f"held out: {len(trainer.held_styles)} styles, {len(trainer.held_contents)} contents",
        f"unreadable pictures: {len(skipped)}" + (f" ({', '.join(skipped[:5])})" if skipped else ""),
    ]
    plot = loss_plot(trainer.history, f"StyA2K training {name}", log=True)
    return load_model(target), plot, "\n".join(lines)
