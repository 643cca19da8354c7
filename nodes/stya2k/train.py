"""Training a StyA2K network: eqs. 16-18 on folders of pictures, resumable to the bit.

A run is a folder: `recipe.json` (settings and data), `state.pt` (weights, optimizer, averages, step),
`log.csv`, `samples/`. All randomness of step k comes from (seed, k), so a killed run continues as if it had
not been interrupted (bit-equal on a CPU; sums on a GPU vary). Threads prepare batches ahead, and on CUDA a
step's kernels are recorded once and replayed (capture.py). Sheets show held-out styles on held-out contents
with the averaged weights. The paper's schedule is the preset `paper`.
"""

import copy
import csv
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from ...kernels.palette import sample
from ..common import pictures
from ..common.files import replacing
from ..common.perceptual import VGG, Perceptual
from ..common.plot import loss_plot
from ..common.weights import reading
from .attention import A2K
from .capture import Captured, ahead
from .clips import ClipPairs
from .data import ZOOM, Pictures, crop, recolor, step_rng
from .losses import MovedFrame
from .modulated import ModulatedStyA2K
from .network import OFFICIAL, StyA2K
from .network import PAPER as PAPER_SIZES
from .objective import DIRECTIONS, WIDEST, TrainingBatch, terms
from .recipe import Recipe, kept
from .small import SmallStyA2K

log = logging.getLogger("reelbrush")

# The random motion of the temporal loss: its limits, and noise like that of a codec and a sensor.
MOVE, NOISE = torch.tensor([0.06, 0.06, 0.12]), 0.01


@dataclass
class StepReport:
    """The progress after a step."""

    step: int
    steps: int
    losses: dict[str, float]
    seconds: float
    sheet: Tensor | None = field(default=None, repr=False)


def build(recipe: Recipe, perceptual: Perceptual | None = None) -> nn.Module:
    """A fresh network for a recipe. The size "paper" uses the perceptual VGG-19 as its encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.size == "modulated":
            return ModulatedStyA2K(kind=recipe.attention)
        if recipe.size == "small":
            return SmallStyA2K(kind=recipe.attention, halving=recipe.halving)
        if recipe.size != "paper":
            raise ValueError(f"size {recipe.size!r} is not known: modulated, small or paper")
        if not isinstance(perceptual, VGG) or perceptual.depth != 19:
            raise ValueError("the paper's size needs VGG-19 as its perceptual network: it is its encoder too")
        how = OFFICIAL if recipe.equations == "official" else PAPER_SIZES
        if recipe.attention == "one head":
            how = tuple(replace(h, heads=1) for h in how)
        encoder = copy.deepcopy(perceptual).until("relu5_1")
        return StyA2K(encoder, how=how, kind=recipe.attention)


class Trainer:
    """One run. `workers` threads make batches ahead; `capture` replays steps on CUDA."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        contents: Pictures,
        styles: Pictures,
        perceptual: Perceptual,
        device: torch.device | str = "cpu",
        *,
        workers: int = 0,
        capture: bool = True,
    ):
        self.folder, self.recipe, self.device = Path(folder), recipe, torch.device(device)
        self.workers, self._capture = workers, capture and self.device.type == "cuda"
        self.contents, self.styles = contents, styles
        self._hold_out(
            contents.hold_out(recipe.held_contents, recipe.seed),
            styles.hold_out(recipe.held_styles, recipe.seed),
        )
        self.perceptual = perceptual.to(self.device, memory_format=torch.channels_last)
        self.network = build(recipe, perceptual).to(self.device, memory_format=torch.channels_last)
        self.trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=recipe.learning_rate)
        self._captured: Captured | None = None
        self.clips: ClipPairs | None = None
        self.step, self.seconds, self._whole = 0, 0.0, True
        self.history: dict[str, list[float]] = {}

    def _hold_out(self, contents: list[str], styles: list[str]) -> None:
        """Hold these pictures out of the training."""
        self.held_contents, self.held_styles = contents, styles
        self.content_names = self.contents.apart(contents)
        self.style_names = self.styles.apart(styles)

    def use_clips(self, folder: Path) -> None:
        """Use frame pairs of real clips for the temporal loss instead of moved pictures."""
        self.clips = ClipPairs(folder, self.contents.cache, self.recipe.load_size)

    def start_from(self, weights: nn.Module) -> None:
        """Start from the weights of another network with the same widths instead of fresh ones.

        If it was trained with another attention, the attention starts fresh and adds nothing at first. If
        it halves its maps differently, its weights are usable but do not give the same pictures."""
        state = weights.state_dict()
        wrong = [k for k, p in self.trained.items() if k not in state or state[k].shape != p.shape]
        if wrong:
            raise ValueError(
                f"the weights to start from are of another network ({wrong[0]} differs): "
                f"give a {self.recipe.size} one of the same widths"
            )
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(state[name])
        if self.recipe.size == "small" and weights.halving != self.recipe.halving:
            log.warning("the weights to start from are of a network whose halving was not this run's")
        if weights.kind != self.recipe.attention:
            for module in self.network.modules():
                if isinstance(module, A2K):
                    module.silence()
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    # -- one step ----------------------------------------------------------------------------------

    def batch(self, step: int) -> TrainingBatch:
        """The data of a step, on the CPU; always the same for one step."""
        r, rng = self.recipe, step_rng(self.recipe.order, step)
        how = (r.crop, rng, (r.crop / r.load_size,) * 2 if r.literal else ZOOM)
        contents = [crop(self.contents.draw(self.content_names, rng), *how) for _ in range(r.batch)]
        styles = [recolor(crop(self._draw_style(rng), *how), rng, r.color_share) for _ in range(r.batch)]
        motion = None
        if r.temporal_weight and self.clips:
            pair = self.clips.draw(r.crop, rng)
            contents[0] = pair.first
            motion = MovedFrame(pair.second[None], pair.flow[None], pair.valid[None])
        elif r.temporal_weight:
            theta = torch.eye(2, 3) + (torch.rand(2, 3, generator=rng) - 0.5) * MOVE
            motion = MovedFrame.affine(contents[0][None], theta[None])
            noise = NOISE * torch.randn(motion.frame.shape, generator=rng)
            motion = replace(motion, frame=motion.frame + noise)
        content, style, base = torch.stack(contents), torch.stack(styles), None
        if hasattr(self.network, "paint"):
            frames, palette = content, sample(style)
            if motion:
                frames, palette = torch.cat([frames, motion.frame]), torch.cat([palette, palette[:1]])
            base = self.network.paint(frames, palette)
        directions = torch.randn(WIDEST, DIRECTIONS, generator=rng)
        return TrainingBatch(content, style, directions, motion, base)

    def _draw_style(self, rng: torch.Generator) -> Tensor:
        share = self.recipe.photo_share
        if share and float(torch.rand(1, generator=rng)) < share:
            return self.contents.draw(self.content_names, rng)
        return self.styles.draw(self.style_names, rng)

    def _here(self, batch: TrainingBatch) -> TrainingBatch:
        """The batch on the training device, with pictures in channels_last format."""
        found = [
            t.to(self.device, memory_format=torch.channels_last) if t.ndim == 4 else t.to(self.device)
            for t in batch.tensors()
        ]
        return batch.like(found)

    def losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The weighted terms of a step."""
        return terms(self.recipe, self.network, self.perceptual, batch)

    def _gradients(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The step's losses and their sum. The gradients are stored in the weights."""
        if not self._capture:
            losses = self.losses(batch)
            self.optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            return losses
        if self._captured is None:
            self._captured = Captured(lambda t: self.losses(batch.like(t)), self.optimizer, batch.tensors())
        return self._captured(batch.tensors())

    def advance(self, batch: TrainingBatch | None = None) -> dict[str, float]:
        """One optimization step. A batch that was prepared ahead must belong to this step."""
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = r.learning_rate * r.rate(self.step)
        losses = self._gradients(self._here(batch or self.batch(self.step)))
        norm = nn.utils.clip_grad_norm_(self.trained.values(), math.inf if r.literal else 10.0)
        # An interruption from here on would leave a half-updated state, which must not be saved.
        self._whole = False
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        keep = min(r.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - keep)
        values = torch.stack([*losses.values()]).detach().tolist()
        found = dict(zip(losses, values, strict=True)) | {"total": sum(values)}
        for name, value in found.items():
            self.history.setdefault(name, []).append(value)
        self._whole = True
        return found

    def run(
        self,
        watch: Callable[[StepReport], None] | None = None,
        *,
        save_every: int = 200,
        sheet_every: int = 500,
    ) -> nn.Module:
        """Train to the last step. `watch` may raise to stop; the state is saved then."""
        try:
            start = time.perf_counter()
            for batch in ahead(self.batch, self.step, self.recipe.steps, self.workers):
                losses = self.advance(batch)
                self.seconds += time.perf_counter() - start
                last = self.step == self.recipe.steps
                if last or self.step % save_every == 0:
                    self.save()
                sheet = None
                if last or self.step % sheet_every == 0:
                    sheet = self.sheet()
                    self._write_sheet(sheet)
                if watch:
                    watch(StepReport(self.step, self.recipe.steps, losses, self.seconds, sheet))
                start = time.perf_counter()
        except BaseException:
            if self._whole:  # otherwise the run continues from the last saved state
                self.save()
            raise
        return self.averaged()

    # -- results -----------------------------------------------------------------------------------

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, on the CPU."""
        network = build(self.recipe, self.perceptual).cpu()
        network.load_state_dict({k: v.cpu() for k, v in self.average.items()}, strict=False)
        return network.requires_grad_(False).train(False)

    @torch.no_grad()
    def sheet(self, styles: int = 5, contents: int = 4, size: int = 256) -> Tensor:
        """A contact sheet [H, W, 3]: one column per held-out style, one row per held-out content."""
        rng = torch.Generator().manual_seed(0)
        few = self.styles.some(self.held_styles or self.style_names)
        shown = [crop(x, size, rng, (1.0, 1.0)) for x in islice(few, styles)]
        few = self.contents.some(self.held_contents or self.content_names)
        given = torch.stack([crop(x, size, rng, (1.0, 1.0)) for x in islice(few, contents)])
        network = self.averaged().to(self.device)
        columns = [torch.cat([torch.ones(1, 3, size, size), given])]
        for style in shown:
            code = network.encode_style(style[None].to(self.device))
            columns.append(torch.cat([style[None], network(given.to(self.device), code).cpu()]))
        rows = torch.stack(columns, 1).clamp(0, 1)  # rows, columns, 3, H, W
        return rows.permute(0, 3, 1, 4, 2).reshape(len(rows) * size, -1, 3)

    def _write_sheet(self, sheet: Tensor) -> None:
        pictures.write(self.folder / "samples" / f"{self.step:07}.jpg", sheet)
        name = self.folder.name.lstrip(".")  # a node's run is hidden
        plot = loss_plot(self.history, f"training {name}", log=True)[0]
        pictures.write(self.folder / "losses.png", plot)

    # -- state -------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state."""
        with replacing(self.folder / "recipe.json") as temporary:
            temporary.write_text(json.dumps(self.facts(), indent=1))
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "network": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "history": {k: torch.tensor(v) for k, v in self.history.items()},
        }
        with replacing(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)
        with replacing(self.folder / "log.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["step", *self.history])
            columns = list(self.history.values())
            table.writerows(
                [i + 1, *(f"{v:.5g}" for v in row)] for i, row in enumerate(zip(*columns, strict=True))
            )

    def facts(self) -> dict:
        """The recipe and the other facts for a model card."""
        return asdict(self.recipe) | {
            "step": self.step,
            "held_out_styles": self.held_styles,
            "held_out_contents": self.held_contents,
            "skipped": self.contents.skipped + self.styles.skipped,
        }

    def load(self) -> bool:
        """Continue from the folder's state, if there is one."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return False
        with reading(path, "state of this training"):
            self._restore(path)
        return True

    def _restore(self, path: Path) -> None:
        old = kept(self.folder)
        for name in (
            "size",
            "attention",
            "halving",
            "equations",
            "seed",
            "batch",
            "crop",
            "held_styles",
            "held_contents",
        ):
            if old[name] != getattr(self.recipe, name):
                raise ValueError(
                    f"the run in {self.folder.name!r} was started with {name} = {old[name]}, not "
                    f"{getattr(self.recipe, name)}: give the same, or another name"
                )
        self._keep_held(old)
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"], strict=False)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = {k: v.double().tolist() for k, v in state["history"].items()}

    def _keep_held(self, old: dict) -> None:
        """Keep the held-out pictures of the earlier run, also if the folders have changed."""
        before = old["held_out_contents"], old["held_out_styles"]
        if before == (self.held_contents, self.held_styles):
            return
        log.warning(
            "the picture folders changed since the run began: training continues with the new pictures"
        )
        here = set(self.contents.names), set(self.styles.names)
        self._hold_out(*([n for n in names if n in now] for names, now in zip(before, here, strict=True)))
