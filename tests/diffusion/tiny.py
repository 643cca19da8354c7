"""A MODEL for tests without ComfyUI: the tiny UNet behind ComfyUI's ModelPatcher protocol.

    model = tiny_model("sd15")                # or "sd21", "sdxl", or a dict of the layout; seed=, prediction=
    model = comfy_model("sd15")               # the same weights in a real ComfyUI (COMFYUI_PATH)
    positive = conditioning(model, seed=1)    # CONDITIONING with random text (SDXL: pooled text too)
    stand_in(monkeypatch)                     # host.sample and host.sampler run on tiny models
    out = sample(model, euler, latent, sigmas, positive, negative, cfg=7.5, noise=noise)

What it mimics, traps included: `clone()` deep-copies model_options; object patches are applied only while a
run lasts; conds and unconds share a batch, unconds first; `sample_sigmas`, `sigmas`, `cond_or_uncond` and
`uuids` reach the patches; wrappers and the callbacks `on_pre_run` and `on_cleanup` are called (the last after
an exception too). What it leaves out: masks, areas, hooks, ControlNet objects, low VRAM.
"""

import copy
import math
import uuid
from collections.abc import Callable
from functools import reduce
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from .tiny_sampling import euler, sample, stand_in, wrappers
from .tiny_unet import LAYOUTS, Executor, TinyUNet

__all__ = ["LAYOUTS", "comfy_model", "conditioning", "euler", "randomize", "sample", "stand_in", "tiny_model"]

# -- the model -------------------------------------------------------------------------------------


class ModelSampling(nn.Module):
    """ComfyUI's discrete schedule with SD's betas; eps- or v-prediction."""

    def __init__(self, prediction: str = "eps"):
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = (1 - betas).cumprod(0)
        self.prediction, self.sigma_data = prediction, 1.0
        self.register_buffer("sigmas", ((1 - abar) / abar).sqrt().float())
        self.register_buffer("log_sigmas", self.sigmas.log())

    sigma_min = property(lambda self: self.sigmas[0])
    sigma_max = property(lambda self: self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        t = timestep.float().clamp(0, 999)
        low, high = t.floor().long(), t.ceil().long()
        return self.log_sigmas[low].lerp(self.log_sigmas[high], t.frac()).exp()

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else self.sigma(torch.tensor((1 - percent) * 999)).item()

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma**2 + 1).sqrt()

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        if self.prediction == "eps":
            return x - output * sigma
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False
    ) -> Tensor:
        return latent + noise * ((1 + sigma**2).sqrt() if max_denoise else sigma)


class TinyBase(nn.Module):
    """ComfyUI's BaseModel, as far as the pack knows it."""

    def __init__(self, layout: dict, prediction: str, scale: float):
        super().__init__()
        self.diffusion_model = TinyUNet(**layout)
        self.model_sampling = ModelSampling(prediction)
        self.latent_format = SimpleNamespace(scale_factor=scale, latent_channels=4, latent_rgb_factors=None)
        self.model_config = SimpleNamespace(unet_config=dict(layout))
        self.model_type = SimpleNamespace(name="EPS" if prediction == "eps" else "V_PREDICTION")
        self.current_patcher, self.manual_cast_dtype, self.device = None, None, torch.device("cpu")

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent * self.latent_format.scale_factor

    def process_latent_out(self, latent: Tensor) -> Tensor:
        return latent / self.latent_format.scale_factor

    def get_dtype(self) -> torch.dtype:
        return self.diffusion_model.dtype

    def memory_required(self, input_shape: list[int], cond_shapes: dict | None = None) -> int:
        return 1000 * input_shape[0]

    def extra_conds(self, **kwargs) -> dict[str, Tensor]:
        """A text's part of the UNet's inputs; SDXL's vector is the pooled text, then zeros for the sizes."""
        found = {"c_crossattn": kwargs["cross_attn"]}
        if "pooled_output" in kwargs:
            found["y"] = torch.nn.functional.pad(kwargs["pooled_output"], (0, 1536))
        return found

    def apply_model(
        self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ):
        options = {} if transformer_options is None else transformer_options
        run = Executor(self._apply_model, wrappers(options, "apply_model"), self)
        return run(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _apply_model(self, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        sampling, sigma = self.model_sampling, t.view(-1, 1, 1, 1)
        scaled = sampling.calculate_input(sigma, x).to(self.get_dtype())
        output = self.diffusion_model(
            scaled,
            sampling.timestep(t).float(),
            context=c_crossattn.to(scaled.dtype),
            control=control,
            transformer_options=transformer_options,
            **kwargs,
        )
        return sampling.calculate_denoised(sigma, output.to(torch.promote_types(x.dtype, torch.float32)), x)


class TinyPatcher:
    """ComfyUI's ModelPatcher, as far as the pack knows it."""

    stand_in = True

    def __init__(self, model: TinyBase):
        self.model, self.parent = model, None
        self.load_device = self.offload_device = torch.device("cpu")
        self.model_options: dict = {"transformer_options": {}}
        self.patches: dict = {}
        self.object_patches: dict = {}
        self.weight_wrapper_patches: dict[str, list] = {}
        self.wrappers: dict[str, dict] = {}
        self.callbacks: dict[str, dict] = {}
        self.attachments: dict = {}
        self.patches_uuid = uuid.uuid4()

    def clone(self) -> "TinyPatcher":
        new = TinyPatcher(self.model)
        new.model_options = copy.deepcopy(self.model_options)
        new.object_patches, new.attachments = dict(self.object_patches), dict(self.attachments)
        new.weight_wrapper_patches = {k: list(v) for k, v in self.weight_wrapper_patches.items()}
        for name in ("wrappers", "callbacks"):
            kinds = {k: {key: list(f) for key, f in v.items()} for k, v in getattr(self, name).items()}
            setattr(new, name, kinds)
        new.patches_uuid, new.parent = self.patches_uuid, self
        return new

    def is_clone(self, other) -> bool:
        return self.model is getattr(other, "model", None)

    # patches

    def set_model_patch(self, patch: Callable, name: str) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, []), patch]

    def set_model_patch_replace(
        self, patch, name: str, block: str, number: int, index: int | None = None
    ) -> None:
        options = self.model_options["transformer_options"] = dict(self.model_options["transformer_options"])
        replace = options["patches_replace"] = dict(options.get("patches_replace", {}))
        address = (block, number) if index is None else (block, number, index)
        replace[name] = {**replace.get(name, {}), address: patch}

    def __getattr__(self, name: str):
        # set_model_attn1_patch(f), set_model_attn2_replace(f, block, number, index), ...
        if name.startswith("set_model_") and name.endswith("_replace"):
            kind = name.removeprefix("set_model_").removesuffix("_replace")
            return lambda patch, block, number, transformer_index=None: self.set_model_patch_replace(
                patch, kind, block, number, transformer_index
            )
        if name.startswith("set_model_") and "patch" in name:
            return lambda patch: self.set_model_patch(patch, name.removeprefix("set_model_"))
        raise AttributeError(name)

    def set_model_unet_function_wrapper(self, function: Callable) -> None:
        self.model_options["model_function_wrapper"] = function

    def set_model_sampler_pre_cfg_function(self, function: Callable, disable_cfg1_optimization=False) -> None:
        self._cfg_function("sampler_pre_cfg_function", function, disable_cfg1_optimization)

    def set_model_sampler_post_cfg_function(
        self, function: Callable, disable_cfg1_optimization=False
    ) -> None:
        self._cfg_function("sampler_post_cfg_function", function, disable_cfg1_optimization)

    def _cfg_function(self, name: str, function: Callable, disable: bool) -> None:
        self.model_options[name] = [*self.model_options.get(name, []), function]
        if disable:
            self.model_options["disable_cfg1_optimization"] = True

    def add_object_patch(self, name: str, value: object) -> None:
        self.object_patches[name] = value

    def get_model_object(self, name: str) -> object:
        return self.object_patches.get(name) or reduce(getattr, name.split("."), self.model)

    def add_weight_wrapper(self, name: str, function: Callable) -> None:
        self.weight_wrapper_patches.setdefault(name, []).append(function)
        self.patches_uuid = uuid.uuid4()

    # wrappers and callbacks

    def add_wrapper_with_key(self, kind: str, key: str, function: Callable) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(function)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def getwrappers(self, kind: str, key: str) -> list[Callable]:
        return self.wrappers.get(kind, {}).get(key, [])

    def add_callback_with_key(self, kind: str, key: str, function: Callable) -> None:
        self.callbacks.setdefault(kind, {}).setdefault(key, []).append(function)

    def remove_callbacks_with_key(self, kind: str, key: str) -> None:
        self.callbacks.get(kind, {}).pop(key, None)

    def call(self, kind: str) -> None:
        for functions in self.callbacks.get(kind, {}).values():
            for function in functions:
                function(self)

    # around a run

    def model_dtype(self) -> torch.dtype:
        return self.model.get_dtype()

    def pre_run(self) -> None:
        """Put object patches and weight wrappers in place."""
        self.model.current_patcher = self
        self._backup = {}
        for name, value in self.object_patches.items():
            parent, _, last = name.rpartition(".")
            owner = reduce(getattr, parent.split("."), self.model) if parent else self.model
            self._backup[name] = (owner, last, last in vars(owner), getattr(owner, last))
            _set(owner, last, value)
        for name, functions in self.weight_wrapper_patches.items():
            owner, _, last = name.rpartition(".")
            setattr(reduce(getattr, owner.split("."), self.model), f"{last}_function", functions)
        self.call("on_pre_run")

    def cleanup(self) -> None:
        """Take them away again."""
        for owner, last, own, value in self._backup.values():
            if own or isinstance(value, nn.Module):
                _set(owner, last, value)
            else:
                delattr(owner, last)
        for name in self.weight_wrapper_patches:
            owner, _, last = name.rpartition(".")
            delattr(reduce(getattr, owner.split("."), self.model), f"{last}_function")
        self.model.current_patcher = None
        self.call("on_cleanup")


def _set(owner: nn.Module, name: str, value: object) -> None:
    (setattr if isinstance(value, nn.Module) else object.__setattr__)(owner, name, value)


def tiny_model(
    layout: str | dict = "sd15",
    weights: dict[str, Tensor] | None = None,
    *,
    seed: int = 0,
    prediction: str = "eps",
    scale: float = 0.18215,
) -> TinyPatcher:
    """A MODEL with random weights (or these), float32, on the CPU."""
    base = TinyBase(LAYOUTS[layout] if isinstance(layout, str) else layout, prediction, scale)
    if weights is None:
        randomize(base.diffusion_model, seed)
    else:
        base.diffusion_model.load_state_dict(weights)
    return TinyPatcher(base.train(False).requires_grad_(False))


def randomize(network: nn.Module, seed: int = 0, gain: float = 0.7) -> nn.Module:
    """Weights that make the output neither vanish nor explode: std = gain / sqrt(fan-in), norms near 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(network.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                p.copy_(noise * gain / math.sqrt(p[0].numel()))
            else:
                p.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return network.train(False).requires_grad_(False)


def conditioning(model, *, seed: int = 0, tokens: int = 77) -> list:
    """CONDITIONING of a random text."""
    g = torch.Generator().manual_seed(seed)
    config = model.model.model_config.unet_config
    text = torch.randn(1, tokens, config["context_dim"], generator=g)
    pooled = torch.randn(1, 1280, generator=g) if config.get("adm_in_channels") else None
    return [[text, {} if pooled is None else {"pooled_output": pooled}]]


def comfy_model(
    layout: str | dict = "sd15",
    weights: dict[str, Tensor] | None = None,
    *,
    seed: int = 0,
    prediction: str = "eps",
    scale: float = 0.18215,
):
    """The same in a real ComfyUI: its own UNet, BaseModel and ModelPatcher around the same weights."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models as supported

    config = dict(LAYOUTS[layout] if isinstance(layout, str) else layout)
    if weights is None:
        weights = randomize(TinyUNet(**config), seed).state_dict()
    linear, adm = config.pop("linear", False), config.get("adm_in_channels")
    kind = supported.SDXL if adm else supported.SD20 if linear else supported.SD15
    unet = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_head_channels": -1,
        "use_linear_in_transformer": linear,
        "dtype": torch.float32,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
    }
    if adm:
        unet["num_classes"] = "sequential"
    made = kind(unet)
    made.unet_config.update(unet)  # the kind puts the public model's head count over ours
    made.latent_format = comfy.latent_formats.SD15(scale)
    types = comfy.model_base.ModelType
    base_class = comfy.model_base.SDXL if adm else comfy.model_base.BaseModel
    base = base_class(made, types.EPS if prediction == "eps" else types.V_PREDICTION, device="cpu")
    base.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.train(False).requires_grad_(False), cpu, cpu)
