"""Training a style LoRA on one or several pictures (DiffStyler, eq. 3), on ComfyUI's own MODEL in process.

    L(dtheta) = E_{eps, t} || eps - eps_{theta + dtheta}(sqrt(a_t) z0 + sqrt(1 - a_t) eps, t, c) ||^2      (3)

`dtheta` is low-rank: beside each of the attention projections q, k and v (self- and cross-attention, every
block) runs a branch up(down(x)), up starting at zero. The norm is the mean square, as the official code has
it. A v-prediction model is asked for its velocity instead, which it was trained for.

The MODEL's weights take no part: they are neither copied for keeps, nor patched, nor given gradients; the
branches stand beside the projections only while `train` runs. They are kept in float32 and used in what the
UNet computes in (mixed precision); in half precision the loss is scaled, the scale halves on an overflow.

All that is random about step k comes from (seed, k), and the state (branches, AdamW's averages, losses) goes
to disk every few seconds and whenever the training stops: a killed run goes on as if it had not been. A state
is used again only by the same training (pictures, text, weights, settings); `steps` may be raised.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from .. import host
from ..common.plot import loss_plot
from . import unet
from .autograd import Changes, dtype_of, gradients, held_bytes, picture, plain_attention, recomputed
from .lora import KIND, LowRank, StyleLoRA, save
from .lora_names import naming
from .unet import network

MOST = 4096  # of the rank: no projection is wider
SHARE = 0.7  # of the free memory, for the graph: the backward pass needs room beside it
SAVE_EVERY = 15.0  # seconds between two states on disk
_PROBE = 32  # side of the latents that the memory plan is made with


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome, beside the pictures, the text and the model; the defaults are the paper's."""

    rank: int = 16
    steps: int = 200
    learning_rate: float = 2e-4
    projections: str = "q,k,v"
    seed: int = 0


# -- which layers ----------------------------------------------------------------------------------


def projections(model: Any, words: str) -> list[str]:
    """Paths of the attention projections that "q,k,v" or "q,k,v,out" name, in a fixed order."""
    ends = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    chosen = [word.strip() for word in words.split(",") if word.strip()]
    wrong = [word for word in chosen if word not in ends]
    if wrong or not chosen:
        raise ValueError(
            f"projections is {words!r}: name some of q, k, v and out with commas between (the paper: q,k,v)"
        )
    endings = tuple(f".{attn}.{ends[word]}" for word in chosen for attn in ("attn1", "attn2"))
    return sorted(name for name, _ in network(model).named_modules() if name.endswith(endings))


class Branch:
    """One projection's trainable pair."""

    def __init__(self, down: Tensor, up: Tensor):
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def beside(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The projection's forward with the branch added."""

        def both(x: Tensor) -> Tensor:
            return forward(x) + linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

        return both


def fresh(
    net: nn.Module, paths: Sequence[str], rank: int, seed: int, device: Any = None
) -> dict[str, Branch]:
    """Branches that change nothing yet: down random (deviation 1 / rank, as diffusers starts), up zero."""
    g = rng(seed, -1)
    branches = {}
    for path in paths:
        out, into = net.get_submodule(path).weight.shape[:2]
        down = torch.randn(rank, into, generator=g) / rank
        branches[path] = Branch(down.to(device), torch.zeros(out, rank, device=device))
    return branches


def rng(seed: int, step: int) -> torch.Generator:
    """The generator of one step: everything random about it comes from here."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))


# -- the loss --------------------------------------------------------------------------------------


def weights_in_use(net: nn.Module) -> Iterator[Tensor]:
    """Every weight as a call sees it: ComfyUI patches some in place, others (low VRAM) on their way in."""
    for module in net.modules():
        for name, weight in module.named_parameters(recurse=False):
            functions, weight = getattr(module, f"{name}_function", ()), weight.detach()
            yield reduce(lambda w, f: f(w), functions, weight.clone()) if functions else weight


def target(base: Any) -> str:
    """What the network was trained to say, "noise" or "velocity", asked of its own arithmetic."""
    one = torch.ones(1, 1, 1, 1)
    share = float(base.model_sampling.calculate_denoised(torch.ones(1), one * 0, one).flatten()[0])
    found = {1.0: "noise", 0.5: "velocity"}.get(round(share, 6))
    if found is None:
        raise ValueError(
            "this model predicts neither noise nor velocity: train on an SD1.x, SD2.x or SDXL checkpoint "
            "without a model sampling node before it"
        )
    return found


def eq3(base: Any, clean: Tensor, noise: Tensor, sigma: float, conditions: dict[str, Tensor]) -> Loss:
    """Eq. 3's mean square for pictures [n, C, h, w] in model space at one noise level."""
    abar = 1 / (1 + sigma**2)
    signal, rest = abar**0.5, (1 - abar) ** 0.5
    z = signal * clean + rest * noise
    level = torch.full((1,), sigma, device=z.device)
    options = unet.reference({"optimized_attention_override": plain_attention, "sigmas": level})
    denoised = unet.evaluate(base, z, sigma, conditions, options)
    if target(base) == "noise":
        loss = mse_loss((z - signal * denoised) / rest, noise)
    else:
        loss = mse_loss((signal * z - denoised) / rest, signal * noise - rest * clean)
    return Loss(loss, denoised.detach())


@dataclass
class Loss:
    """Eq. 3's value, and the clean picture that the network sees in the noise."""

    value: Tensor
    denoised: Tensor


# -- a training ------------------------------------------------------------------------------------


@contextmanager
def branching(base: Any, branches: dict[str, Branch], *, frugal: bool = False) -> Iterator[None]:
    """Branches beside a loaded base model's projections, gradients on; afterwards the module is as it was.

    `frugal` computes the insides of residual and transformer blocks again in the backward pass.
    """
    with gradients(base) as changes:
        for path, branch in branches.items():
            module = base.diffusion_model.get_submodule(path)
            changes.set(module, "forward", branch.beside(module.forward))
        if frugal:
            _checkpoint(base, changes)
        yield


def _checkpoint(base: Any, changes: Changes) -> None:
    for module in base.diffusion_model.modules():
        if hasattr(module, "in_layers") or (hasattr(module, "attn1") and hasattr(module, "ff")):
            changes.set(module, "forward", recomputed(module.forward))


class Training:
    """A training in the making, on a loaded base model."""

    def __init__(self, base: Any, style: Tensor, positive: list, recipe: Recipe):
        self.base, self.recipe, self.positive = base, recipe, positive
        self.device = base.current_patcher.load_device
        self.pictures = base.process_latent_in(style.to(self.device, torch.float32)).detach().clone()
        paths = projections(base, recipe.projections)
        self.branches = fresh(base.diffusion_model, paths, recipe.rank, recipe.seed, self.device)
        self.parameters = [p for branch in self.branches.values() for p in (branch.down, branch.up)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate)
        self.step, self.losses = 0, []
        self.scale = 2.0**14 if dtype_of(base) == torch.float16 else 1.0
        self.frugal = False

    # one step

    def draw(self, step: int) -> tuple[int, int, Tensor]:
        """Which picture, timestep and noise a step has; every picture once before any comes again."""
        count = len(self.pictures)
        order = torch.randperm(count, generator=rng(self.recipe.seed, -2 - step // count))
        g = rng(self.recipe.seed, step)
        timestep = int(torch.randint(len(self.base.model_sampling.sigmas), (), generator=g))
        noise = torch.randn(self.pictures[:1].shape, generator=g)
        return int(order[step % count]), timestep, noise.to(self.device)

    def loss(self, picture: int, timestep: int, noise: Tensor, side: int | None = None) -> Loss:
        """Eq. 3's loss of one draw; `side` looks at a corner of the picture only."""
        sigma = float(self.base.model_sampling.sigma(torch.tensor(float(timestep))))
        clean = self.pictures[picture : picture + 1, :, :side, :side]
        given = unet.conditions(self.base, self._text(picture), clean, sigma)
        given = {k: v.detach().clone().to(self.device) for k, v in given.items() if torch.is_tensor(v)}
        return eq3(self.base, clean, noise[..., :side, :side], sigma, given)

    def _text(self, picture: int) -> list:
        one_each = len(self.positive) == len(self.pictures) > 1
        return self.positive[picture : picture + 1] if one_each else self.positive

    def advance(self) -> Loss:
        """One step of AdamW. An overflow in half precision repeats it with a smaller loss scale."""
        drawn = self.draw(self.step)
        while True:
            for p in self.parameters:
                p.grad = None
            found = self.loss(*drawn)
            (found.value * self.scale).backward()
            slopes = [p.grad for p in self.parameters]
            if bool(torch.stack([g.isfinite().all() for g in slopes]).all()):
                break
            if self.scale <= 1 or not bool(found.value.isfinite()):
                raise RuntimeError(
                    f"the LoRA training met a NaN at step {self.step + 1}: lower learning_rate, or run "
                    "ComfyUI with --bf16-unet or --force-fp32"
                )
            self.scale /= 2
        for slope in slopes:
            slope.div_(self.scale)
        self.optimizer.step()
        self.losses.append(float(found.value.detach()))
        self.step += 1
        return found

    # memory

    def plan(self) -> None:
        """Recompute in the backward pass where the graph would not fit into free memory."""
        picture, timestep, noise = self.draw(0)
        side = min(_PROBE, *noise.shape[-2:])
        larger = noise[0, 0].numel() / side**2
        with branching(self.base, self.branches):
            held = held_bytes(self.base, lambda: self.loss(picture, timestep, noise, side))
        weights = sum(p.numel() for p in self.base.diffusion_model.parameters())
        copied = weights * dtype_of(self.base).itemsize
        self.frugal = held * larger + copied > SHARE * host.free_memory(self.device)

    # the state

    def save(self, path: Path, fingerprint: str) -> None:
        """The whole state, never half of it."""
        state = {
            "fingerprint": fingerprint,
            "step": self.step,
            "scale": self.scale,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path, fingerprint: str) -> bool:
        """Go on from a state of the same training that has not gone further than asked for."""
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            other = state["fingerprint"] != fingerprint or state["step"] > self.recipe.steps
        except Exception as error:  # a damaged file raises what it likes
            host.log.warning(
                "the state of a LoRA training, %s, cannot be read (%s): starting anew", path, error
            )
            return False
        if other:
            host.log.info("there is a state of another LoRA training in %s: starting anew", path.parent)
            return False
        with torch.no_grad():
            for p, kept in zip(self.parameters, state["parameters"], strict=True):
                p.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.scale, self.losses = state["step"], state["scale"], state["losses"].tolist()
        return True

    def fingerprint(self) -> str:
        """Equal exactly when a state can go on here: settings, pictures, text, and a probe of the weights."""
        settings = {
            **asdict(self.recipe),
            "steps": 0,
            "target": target(self.base),
            "as": str(dtype_of(self.base)),
        }
        seen = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        texts = [t for text, values in self.positive for t in (text, *values.values()) if torch.is_tensor(t)]
        used = weights_in_use(self.base.diffusion_model)
        probes = [w.flatten()[:: max(1, w.numel() // 8)].float().cpu() for w in used]
        for tensor in [self.pictures, *texts, torch.cat(probes)]:
            seen.update(str(tuple(tensor.shape)).encode())
            seen.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return seen.hexdigest()

    def lora(self, name: str) -> StyleLoRA:
        """What has been learned so far."""
        copied = lambda p: p.detach().float().cpu().clone()  # noqa: E731
        return StyleLoRA(name, {k: LowRank(copied(b.down), copied(b.up)) for k, b in self.branches.items()})

    def run(
        self, watch: Callable[[Training, Loss], None], state: Path, *, save_every: float = SAVE_EVERY
    ) -> None:
        """Train to the recipe's end, from where `state` stands; `watch` may raise to stop."""
        fingerprint = self.fingerprint()
        self.load(state, fingerprint)
        self.plan()
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            found = self._advance_within_memory()
            due = self.step == self.recipe.steps or time.monotonic() - saved >= save_every
            try:
                watch(self, found)
            except BaseException:  # a cancel; inside a step there would be half of one to save
                due = True
                raise
            finally:
                if due:
                    self.save(state, fingerprint)
                    saved = time.monotonic()

    def _advance_within_memory(self) -> Loss:
        try:
            with branching(self.base, self.branches, frugal=self.frugal):
                return self.advance()
        except Exception as error:
            if self.frugal or not host.is_out_of_memory(error):
                raise
        host.release_memory()
        self.frugal = True
        return self._advance_within_memory()


def train(
    model: Any, style: Tensor, positive: list, recipe: Recipe, save_as: str = ""
) -> tuple[StyleLoRA, Tensor]:
    """Train a LoRA of a MODEL on latents [pictures, C, h, w], with progress; the LoRA and its loss curve.

    Named, it is saved to output/loras and its state is kept beside it, hidden; else the state is temporary.
    """
    check(model, style, positive, recipe)
    file, state = places(save_as)
    name = file.stem if file else "style"
    try:
        with (
            unet.loaded(model) as base,
            host.gradients(),
            host.progress(recipe.steps, "Training style LoRA", "steps") as bar,
        ):
            training = Training(base, style, positive, recipe)
            training.run(lambda t, loss: bar.at(t.step, lambda: picture(base, loss.denoised)), state)
            made = training.lora(name)
    finally:
        host.release_memory()
    if file:
        about = {"ss_steps": recipe.steps, "ss_learning_rate": recipe.learning_rate, "ss_seed": recipe.seed}
        save(made, file, naming(model), {**about, "reelbrush": asdict(recipe)})
    return made, loss_plot({"eq. 3": training.losses}, f"Style LoRA {name}", log=True)


def places(save_as: str) -> tuple[Path | None, Path]:
    """The file that a training writes, if any, and the one that its state is in."""
    name = save_as.strip().removesuffix(".safetensors")
    if not name:
        return None, host.folder("temp") / KIND / "unsaved.state"
    file = host.trained_path(KIND, f"{name}.safetensors", "save_as")
    if not file.stem or file.name.startswith("."):
        raise ValueError(f"save_as is {save_as!r}: give the LoRA a name that does not begin with a dot")
    return file, file.with_name(f".{file.stem}") / "training.state"


def check(model: Any, style: Tensor, positive: list, recipe: Recipe) -> None:
    """One sentence for what cannot be trained."""
    network(model)
    channels = int(model.model.latent_format.latent_channels)
    if style.ndim != 4 or not len(style) or style.shape[1] != channels:
        raise ValueError(
            f"the style latent has shape {tuple(style.shape)}, this model needs [pictures, {channels}, "
            "height, width]: encode pictures with the VAE of this model's checkpoint"
        )
    if recipe.steps < 1 or not 1 <= recipe.rank <= MOST or not recipe.learning_rate > 0:
        raise ValueError("steps, rank and learning_rate are positive: the paper's are 200, 16 and 2e-4")
    if not positive:
        raise ValueError("the conditioning is empty: give CLIP Text Encode of a simple prompt")
    projections(model, recipe.projections)
