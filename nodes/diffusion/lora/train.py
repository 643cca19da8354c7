"""Training a style LoRA on one or several pictures (DiffStyler, eq. 3), on ComfyUI's MODEL.

    L(dtheta) = E_{eps, t} || eps - eps_{theta + dtheta}(sqrt(a_t) z0 + sqrt(1 - a_t) eps, t, c) ||^2      (3)

`dtheta` is low-rank: beside each of the attention projections q, k and v (self- and cross-attention, every
block) runs a branch up(down(x)), where up starts at zero. The norm is the mean square, as in the official
code. A v-prediction model is trained on the velocity instead.

The MODEL's weights are not trained, patched or kept as copies: the branches are hooks on a differentiable
clone. They are float32 and are used in the UNet's number type (mixed precision). In half precision the loss
is scaled, and the scale is halved after an overflow.

All randomness of step k comes from (seed, k). The state (branches, AdamW's averages, losses) is written to
disk every few seconds and whenever the training stops, so that a stopped run continues with the same result.
A state is used only by the same training (pictures, text, weights, settings); `steps` may be raised.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from ....kernels.ddim import alpha_bar
from ... import host
from ...common.files import replacing
from ...common.inputs import comma_separated
from ...common.plot import loss_plot
from ..patching import unet
from ..patching.hooks import hook_output
from ..patching.layers import network, recomputable
from .file import KIND, LowRank, StyleLoRA, save
from .names import naming

MOST = 4096  # of the rank: no projection is wider
SAVE_EVERY = 15.0  # seconds between two states on disk


@dataclass(frozen=True)
class LoRARecipe:
    """The settings of a training; the defaults are the paper's."""

    rank: int = 16
    steps: int = 200
    learning_rate: float = 2e-4
    projections: str = "q,k,v"
    seed: int = 0


# -- the branches ----------------------------------------------------------------------------------


def projections(model: Any, words: str) -> list[str]:
    """Paths of the attention projections that "q,k,v" or "q,k,v,out" name, in a fixed order."""
    modules = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    chosen = comma_separated(words)
    if not chosen or not set(chosen) <= modules.keys():
        raise ValueError(
            f"projections is {words!r}: name some of q, k, v and out, separated by commas (the paper: q,k,v)"
        )
    endings = tuple(f".{attn}.{modules[word]}" for word in chosen for attn in ("attn1", "attn2"))
    return sorted(name for name, _ in network(model).named_modules() if name.endswith(endings))


class LoRABranch:
    """The trainable pair of matrices of one projection."""

    def __init__(self, down: Tensor, up: Tensor):
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """The projection's output with the branch added."""
        return out + linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


LoRABranches = dict[str, LoRABranch]  # by module path


def fresh(net: nn.Module, paths: Sequence[str], rank: int, seed: int, device: Any = None) -> LoRABranches:
    """New branches: down random (standard deviation 1 / rank, as in diffusers), up zero."""
    g = rng(seed, -1)
    branches = {}
    for path in paths:
        out, into = net.get_submodule(path).weight.shape[:2]
        down = torch.randn(rank, into, generator=g) / rank
        branches[path] = LoRABranch(down.to(device), torch.zeros(out, rank, device=device))
    return branches


def with_branches(model: Any, branches: LoRABranches) -> Any:
    """A differentiable clone of a MODEL with branches beside its projections."""
    clone = host.differentiable(model)
    for path, branch in branches.items():
        hook_output(clone, path, branch.add)
    return clone


def rng(seed: int, step: int) -> torch.Generator:
    """The generator for all randomness of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))


# -- the loss --------------------------------------------------------------------------------------


class LossAndPicture(NamedTuple):
    """Eq. 3's value, and the denoised latents for the preview."""

    loss: Tensor
    denoised: Tensor


def predicts(base: Any) -> str:
    """What the network predicts, "noise" or "velocity", from ComfyUI's arithmetic for it."""
    one = torch.ones(1, 1, 1, 1)
    share = float(base.model_sampling.calculate_denoised(torch.ones(1), one * 0, one).flatten()[0])
    kind = {1.0: "noise", 0.5: "velocity"}.get(round(share, 6))
    if kind is None:
        raise ValueError(
            "this model predicts neither noise nor velocity: train on an SD1.x, SD2.x or SDXL checkpoint "
            "without a model sampling node before it"
        )
    return kind


def eq3(
    base: Any, clean: Tensor, noise: Tensor, sigma: float, conditions: dict[str, Tensor]
) -> LossAndPicture:
    """Eq. 3's mean square for pictures [n, C, h, w] in model space at one noise level."""
    abar = float(alpha_bar(sigma))
    signal, rest = abar**0.5, (1 - abar) ** 0.5
    z = signal * clean + rest * noise
    level = torch.full((1,), sigma, device=z.device)
    overrides = {"optimized_attention_override": host.differentiable_attention, "sigmas": level}
    denoised = host.evaluate(base, z, sigma, conditions, unet.reading_options(overrides))
    if predicts(base) == "noise":
        loss = mse_loss((z - signal * denoised) / rest, noise)
    else:
        loss = mse_loss((signal * z - denoised) / rest, signal * noise - rest * clean)
    return LossAndPicture(loss, denoised.detach())


def weights_in_use(net: nn.Module) -> Iterator[Tensor]:
    """Every weight as it is used: ComfyUI patches some in place, and others (low VRAM) at every use."""
    for module in net.modules():
        for name, weight in module.named_parameters(recurse=False):
            functions, weight = getattr(module, f"{name}_function", ()), weight.detach()
            yield reduce(lambda w, f: f(w), functions, weight.clone()) if functions else weight


# -- a training ------------------------------------------------------------------------------------


class LoRATraining:
    """A training in progress. Create and use it within `host.gradients()`; `model` is the clone to load."""

    def __init__(self, model: Any, style: Tensor, positive: list, recipe: LoRARecipe):
        self.base, self.device, self.recipe, self.positive = model.model, model.load_device, recipe, positive
        self.pictures = self.base.process_latent_in(style.to(self.device, torch.float32)).detach().clone()
        paths = projections(model, recipe.projections)
        self.branches = fresh(network(model), paths, recipe.rank, recipe.seed, self.device)
        self.model = with_branches(model, self.branches)
        self.recomputation = host.Recomputation(self.model, recomputable(self.model))
        self.parameters = [p for branch in self.branches.values() for p in (branch.down, branch.up)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate)
        self.step, self.losses = 0, []
        self.scale = 2.0**14 if host.compute_dtype(self.base) == torch.float16 else 1.0

    # one step

    def draw(self, step: int) -> tuple[int, int, Tensor]:
        """The picture, timestep and noise of a step; every picture is used once before any is used again."""
        count = len(self.pictures)
        order = torch.randperm(count, generator=rng(self.recipe.seed, -2 - step // count))
        g = rng(self.recipe.seed, step)
        timestep = int(torch.randint(len(self.base.model_sampling.sigmas), (), generator=g))
        noise = torch.randn(self.pictures[:1].shape, generator=g)
        return int(order[step % count]), timestep, noise.to(self.device)

    def loss(self, picture: int, timestep: int, noise: Tensor) -> LossAndPicture:
        """Eq. 3's loss of one draw."""
        return self._loss(self.pictures[picture : picture + 1], picture, timestep, noise)

    def _loss(self, clean: Tensor, picture: int, timestep: int, noise: Tensor) -> LossAndPicture:
        sigma = float(self.base.model_sampling.sigma(torch.tensor(float(timestep))))
        conditions = host.conditions(self.base, self.text(picture), clean, sigma)
        tensors = {k: v.detach().clone().to(self.device) for k, v in conditions.items() if torch.is_tensor(v)}
        return eq3(self.base, clean, noise, sigma, tensors)

    def text(self, picture: int) -> list:
        """The conditioning of a picture: its own where there is one for each, else all of it."""
        one_each = len(self.positive) == len(self.pictures) > 1
        return self.positive[picture : picture + 1] if one_each else self.positive

    def advance(self) -> LossAndPicture:
        """One step of AdamW. An overflow in half precision repeats it with a smaller loss scale."""
        drawn = self.draw(self.step)
        while True:
            for p in self.parameters:
                p.grad = None
            result = self.loss(*drawn)
            (result.loss * self.scale).backward()
            gradients = [p.grad for p in self.parameters]
            if bool(torch.stack([g.isfinite().all() for g in gradients]).all()):
                break
            if self.scale <= 1 or not bool(result.loss.isfinite()):
                raise RuntimeError(
                    f"the LoRA training met a NaN at step {self.step + 1}: lower learning_rate, or run "
                    "ComfyUI with --bf16-unet or --force-fp32"
                )
            self.scale /= 2
        for gradient in gradients:
            gradient.div_(self.scale)
        self.optimizer.step()
        self.losses.append(float(result.loss.detach()))
        self.step += 1
        return result

    # memory

    def plan(self) -> None:
        """Recompute in the backward pass where the graph would not fit into free memory."""
        picture, timestep, noise = self.draw(0)
        graph = host.graph_size(lambda z: self._loss(z, picture, timestep, z), noise)
        self.recomputation.on = graph.frames(noise, host.free_memory(self.device)) < 1

    def _advance_within_memory(self) -> LossAndPicture:
        try:
            return self.advance()
        except Exception as error:
            if self.recomputation.on or not host.is_out_of_memory(error):
                raise
        host.release_memory()
        self.recomputation.on = True
        return self.advance()

    # the state

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the whole state."""
        state = {
            "fingerprint": fingerprint,
            "step": self.step,
            "scale": self.scale,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path, fingerprint: str) -> bool:
        """Continue from a state of the same training that has at most the wanted number of steps."""
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            other = state["fingerprint"] != fingerprint or state["step"] > self.recipe.steps
        except Exception as error:  # a damaged file can raise any error
            host.log.warning(
                "the state of a LoRA training, %s, cannot be read (%s): starting from the beginning",
                path,
                error,
            )
            return False
        if other:
            host.log.info("%s is the state of another LoRA training: starting from the beginning", path)
            return False
        with torch.no_grad():
            for p, kept in zip(self.parameters, state["parameters"], strict=True):
                p.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.scale, self.losses = state["step"], state["scale"], state["losses"].tolist()
        return True

    def fingerprint(self) -> str:
        """Equal only if a state can be continued: settings, pictures, text, and samples of all weights."""
        dtype = str(host.compute_dtype(self.base))
        settings = {**asdict(self.recipe), "steps": 0, "target": predicts(self.base), "as": dtype}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        texts = [t for text, more in self.positive for t in (text, *more.values()) if torch.is_tensor(t)]
        weights = weights_in_use(self.base.diffusion_model)
        samples = [w.flatten()[:: max(1, w.numel() // 8)].float().cpu() for w in weights]
        for tensor in [self.pictures, *texts, torch.cat(samples)]:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def lora(self, name: str) -> StyleLoRA:
        """The LoRA at this step."""
        copied = lambda p: p.detach().float().cpu().clone()  # noqa: E731
        return StyleLoRA(name, {k: LowRank(copied(b.down), copied(b.up)) for k, b in self.branches.items()})

    def run(
        self,
        watch: Callable[[LoRATraining, LossAndPicture], None],
        state: Path,
        *,
        save_every: float = SAVE_EVERY,
    ) -> None:
        """Train to the recipe's last step, from `state` if it can be continued; `watch` may raise to stop."""
        fingerprint = self.fingerprint()
        self.load(state, fingerprint)
        self.plan()
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            result = self._advance_within_memory()
            due = self.step == self.recipe.steps or time.monotonic() - saved >= save_every
            try:
                watch(self, result)
            except BaseException:  # a cancel between two steps
                due = True
                raise
            finally:
                if due:
                    self.save(state, fingerprint)
                    saved = time.monotonic()


def train(
    model: Any, style: Tensor, positive: list, recipe: LoRARecipe, save_as: str = ""
) -> tuple[StyleLoRA, Tensor]:
    """Train a LoRA of a MODEL on latents [pictures, C, h, w], with progress; the LoRA and its loss curve.

    With a name, it is saved to output/loras with its state in a hidden folder beside it. Without a name the
    state is temporary.
    """
    check(model, style, positive, recipe)
    file, state = places(save_as)
    name = file.stem if file else "style"
    try:
        with host.gradients(), host.progress(recipe.steps, "Training style LoRA", "steps") as bar:
            training = LoRATraining(model, style, positive, recipe)
            with host.loaded(training.model) as base:
                show = lambda result: lambda: host.latent_picture(base, result.denoised)  # noqa: E731
                training.run(lambda t, result: bar.at(t.step, show(result)), state)
            lora = training.lora(name)
    finally:
        host.release_memory()
    if file:
        about = {"ss_steps": recipe.steps, "ss_learning_rate": recipe.learning_rate, "ss_seed": recipe.seed}
        save(lora, file, naming(model), {**about, "reelbrush": asdict(recipe)})
    return lora, loss_plot({"eq. 3": training.losses}, f"Style LoRA {name}", log=True)


def places(save_as: str) -> tuple[Path | None, Path]:
    """The file that a training writes (None without a name), and its state's file."""
    name = save_as.strip().removesuffix(".safetensors")
    if not name:
        return None, host.folder("temp") / KIND / "unsaved.state"
    file = host.trained_path(KIND, f"{name}.safetensors", "save_as")
    if not file.stem or file.name.startswith("."):
        raise ValueError(f"save_as is {save_as!r}: give the LoRA a name that does not begin with a dot")
    return file, file.with_name(f".{file.stem}") / "training.state"


SMALLEST = 4  # positions of the latent; below, the deepest maps of a UNet have one point


def check(model: Any, style: Tensor, positive: list, recipe: LoRARecipe) -> None:
    """Raise an error for inputs that cannot be trained on."""
    network(model)
    channels = host.latent_channels(model)
    if style.ndim != 4 or not len(style) or style.shape[1] != channels:
        raise ValueError(
            f"the style latent has shape {tuple(style.shape)}, this model needs [pictures, {channels}, "
            "height, width]: encode pictures with the VAE of this model's checkpoint"
        )
    if min(style.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"the style picture has {style.shape[-1] * 8}x{style.shape[-2] * 8} pixels: use a larger one, at "
            f"least {SMALLEST * 8} on each side"
        )
    if recipe.steps < 1 or not 1 <= recipe.rank <= MOST or not recipe.learning_rate > 0:
        raise ValueError(
            f"steps is {recipe.steps}, rank {recipe.rank}, learning_rate {recipe.learning_rate}: all must be "
            "positive, as the paper's 200, 16 and 2e-4"
        )
    if not positive:
        raise ValueError("the conditioning is empty: connect CLIP Text Encode of a simple prompt")
    projections(model, recipe.projections)
