"""ComfyUI's attention, samplers and guiders."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.attention import attend
from . import memory
from .comfyui import comfy, inside_comfyui
from .gradients import differentiable
from .progress import check_interrupt


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, precision: Any, options: dict
) -> Tensor:
    """ComfyUI's current attention function on [B, N, heads * d].

    It keeps ComfyUI's precision rule (SD2 computes in float32), its backend, and the overrides in
    `transformer_options`.
    """
    if inside_comfyui():
        core = comfy("comfy.ldm.modules.attention")
        if mask is None:
            return core.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=options
            )
        return core.optimized_attention_masked(
            q, k, v, heads, mask, attn_precision=precision, transformer_options=options
        )
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
    return attend(*split, mask if mask is None else mask[:, None]).transpose(1, 2).flatten(2)


class Denoiser:
    """What a sampling function gets: the loaded model under its guider, with prepared conditionings.

    `denoise(x, sigma)` returns x0 with guidance. `denoise.predict(x, sigma, "negative")` returns x0 of one
    conditioning without guidance, with another text embedding where `context` is given. Both take
    x [N, C, h, w] in model space and one sigma.
    """

    def __init__(self, model_k: Any, extra_args: dict, callback: Callable | None, steps: int):
        self._model, self._extra, self._callback, self._steps = model_k, extra_args, callback, steps

    @property
    def guider(self) -> Any:
        """ComfyUI's guider; `inner_model` is the loaded BaseModel, `conds` the prepared conditionings."""
        return self._model.inner_model

    @property
    def model(self) -> nn.Module:
        """The loaded BaseModel: `apply_model`, `diffusion_model`, `model_sampling`."""
        return self.guider.inner_model

    @property
    def options(self) -> dict:
        """`model_options` of this run; copy its `transformer_options` before you call the model directly."""
        return self._extra["model_options"]

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._model(x, self._sigmas(x, sigma), **self._extra)

    def predict(
        self, x: Tensor, sigma: Tensor | float, side: str = "positive", context: Tensor | None = None
    ) -> Tensor:
        """x0 under the positive or the negative conditioning alone."""
        conds = self.guider.conds[side]
        if context is not None:
            conds = [self._with_context(c, context) for c in conds]
        return self._batch(conds, x, self._sigmas(x, sigma))

    def through(self, sampler: Any, x: Tensor, sigmas: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """A SAMPLER's own steps over some of this run's levels, from step `index` on: x, and its last x0.

        Each call draws other noise. A sampler that uses earlier steps starts without any.
        """
        function = getattr(sampler, "sampler_function", None)
        if function is None:
            raise ValueError(
                f"a sampler of the type {type(sampler).__name__} cannot be run in parts: "
                "connect KSamplerSelect or a sampler node of ComfyUI"
            )
        seen = {"denoised": x}
        extra = {**self._extra, "seed": (self._extra.get("seed") or 0) + index}
        options = getattr(sampler, "extra_options", {})
        x = function(self._model, x, sigmas, extra_args=extra, callback=seen.update, disable=True, **options)
        return x, seen["denoised"]

    def load_differentiable(self, prepare: Callable[[Any], Any]) -> Any:
        """Let gradients flow through the model until the end of this run; returns what `prepare` returns.

        A SAMPLER does not see the MODEL, so a differentiable clone of the running one is loaded in its place.
        `prepare(clone)` may patch the clone before. ComfyUI loads the original again when it is used next.
        """
        self._clone = differentiable(self.model.current_patcher)  # ComfyUI keeps weak references only
        prepared = prepare(self._clone)
        controls = getattr(self.guider, "loaded_models", [])  # ControlNets must not be unloaded for it
        memory.load_model(self._clone, *controls)
        return prepared

    def step(self, index: int, x: Tensor, denoised: Tensor, total: int | None = None) -> None:
        """Report that step `index` is done: progress bar and preview. A cancelled run stops here."""
        check_interrupt()
        if self._callback is not None:
            self._callback(index, denoised.detach(), x.detach(), total or self._steps)

    @staticmethod
    def _sigmas(x: Tensor, sigma: Tensor | float) -> Tensor:
        """One sigma per row of x, in float32 or better."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1).expand(len(x)).clone()

    @staticmethod
    def _with_context(cond: dict, context: Tensor) -> dict:
        text = comfy("comfy.conds").CONDCrossAttn(context)
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": text}}

    def _batch(self, conds: list[dict], x: Tensor, sigma: Tensor) -> Tensor:
        return comfy("comfy.samplers").calc_cond_batch(self.model, [conds], x, sigma, self.options)[0]


SamplingFunction = Callable[[Denoiser, Tensor, Tensor], Tensor]


def sampler(function: SamplingFunction, what: str = "sampling") -> Any:
    """A SAMPLER for SamplerCustom: `function(denoise, x, sigmas) -> x` in model space; masks work too."""

    def run(model_k, x, sigmas, extra_args=None, callback=None, disable=None, **_):
        last = len(sigmas) - 2

        def report(index, denoised, x, _):
            callback({"i": min(index, last), "denoised": denoised, "x": x})

        denoiser = Denoiser(model_k, extra_args or {}, report if callback else None, len(sigmas) - 1)
        return function(denoiser, x, sigmas)

    return comfy("comfy.samplers", what).KSAMPLER(run)


def sample(
    model: Any,
    function: SamplingFunction,
    latent: Tensor,
    sigmas: Tensor,
    positive: list,
    negative: list | None = None,
    *,
    cfg: float = 1.0,
    steps: int | None = None,
    report: Callable[[int, int], None] | None = None,
    what: str = "sampling",
) -> Tensor:
    """Run `function` under ComfyUI's guider, with its loading, ControlNet, previews, cancelling and clean-up.

    `latent` and the result are scaled as in a LATENT; the guider converts to model space and back.
    `steps` is the number of calls to `denoise.step`, where that is not len(sigmas) - 1. `report(step, steps)`
    takes the place of the progress bar and the preview.
    """
    samplers = comfy("comfy.samplers", what)
    guider = samplers.CFGGuider(model)
    sides = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
    guider.inner_set_conds(sides)
    guider.set_cfg(cfg)
    total = steps or len(sigmas) - 1
    if report is None:
        show_step = comfy("latent_preview").prepare_callback(model, total)
    else:
        show_step = lambda step, denoised, x, steps: report(step + 1, steps)  # noqa: E731

    class FunctionSampler(samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
            inner = samplers.KSamplerX0Inpaint(guider, sigmas)
            extra_args["denoise_mask"] = None
            return function(Denoiser(inner, extra_args, show_step, total), latent_image, sigmas)

    return guider.sample(
        torch.zeros_like(latent), latent, FunctionSampler(), sigmas, disable_pbar=report is not None, seed=0
    )


def run_sampler(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    latent: Tensor,
    noise: Tensor,
    positive: list,
    negative: list,
    *,
    cfg: float,
    seed: int,
    report: Callable[[int, int], None],
    what: str = "sampling",
) -> Tensor:
    """ComfyUI's SamplerCustom: latents as in a LATENT, started from `latent` with `noise` added.

    `report(step, steps)` is called after every step.
    """
    callback = lambda step, denoised, x, steps: report(step + 1, steps)  # noqa: E731
    return comfy("comfy.sample", what).sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        latent,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
