"""ComfyUI's guider and sampling loop for tiny models: `host.sample` and `host.sampler` without ComfyUI."""

import uuid
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor

from .tiny_unet import Executor


def wrappers(options: dict, kind: str) -> list[Callable]:
    """All wrappers of a kind in transformer_options, in the order in which they were added."""
    return [f for key in options.get("wrappers", {}).get(kind, {}).values() for f in key]


def prepared(model, latent: Tensor, positive: list, negative: list | None = None) -> dict[str, list[dict]]:
    """CONDITIONING as a guider keeps it: one dict per entry, ranges as sigmas, a uuid."""
    sampling, sides = model.get_model_object("model_sampling"), {}
    for side, entries in {"positive": positive, "negative": negative}.items():
        if entries is None:
            continue
        sides[side] = []
        for text, extra in entries:
            given = {"width": latent.shape[3] * 8, "height": latent.shape[2] * 8, **extra, "cross_attn": text}
            cond = {**given, "model_conds": model.model.extra_conds(**given), "uuid": uuid.uuid4()}
            for end in ("start", "end"):
                if f"{end}_percent" in extra:
                    cond[f"timestep_{end}"] = sampling.percent_to_sigma(extra[f"{end}_percent"])
            sides[side].append(cond)
    return sides


def calc_cond_batch(base, sides: list[list[dict] | None], x: Tensor, sigma: Tensor, options: dict):
    """x0 per side; all that applies at this sigma in one call, the last side first, as ComfyUI does."""
    run = Executor(_calc_cond_batch, wrappers(options["transformer_options"], "calc_cond_batch"))
    return run(base, sides, x, sigma, options)


def _calc_cond_batch(base, sides, x, sigma, options):
    entries = [
        (index, cond)
        for index, conds in enumerate(sides)
        for cond in conds or ()
        if cond.get("timestep_end", 0) <= float(sigma[0]) <= cond.get("timestep_start", 1e10)
    ][::-1]
    texts = {
        key: torch.cat(
            [c["model_conds"][key].expand(len(x), *c["model_conds"][key].shape[1:]) for _, c in entries]
        )
        for key in entries[0][1]["model_conds"]
    }
    to = {**options["transformer_options"], "cond_or_uncond": [i for i, _ in entries], "sigmas": sigma}
    to["uuids"] = [c["uuid"] for _, c in entries]
    rows, sigmas = torch.cat([x] * len(entries)), sigma.repeat(len(entries))
    arguments = {**texts, "transformer_options": to}
    if "model_function_wrapper" in options:
        given = {"input": rows, "timestep": sigmas, "c": arguments, "cond_or_uncond": to["cond_or_uncond"]}
        out = options["model_function_wrapper"](base.apply_model, given)
    else:
        out = base.apply_model(rows, sigmas, **arguments)
    found: list[list[Tensor]] = [[] for _ in sides]
    for (index, _), part in zip(entries, out.chunk(len(entries)), strict=True):
        found[index].append(part)
    return [torch.stack(f).mean(0) if f else torch.zeros_like(x) for f in found]


class TinyGuider:
    """ComfyUI's CFGGuider."""

    def __init__(self, base, conds: dict[str, list[dict]], cfg: float):
        self.inner_model, self.conds, self.cfg = base, conds, cfg

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict, seed=None, denoise_mask=None) -> Tensor:
        run = Executor(self._predict, wrappers(model_options["transformer_options"], "predict_noise"), self)
        return run(x, sigma, model_options)

    def _predict(self, x: Tensor, sigma: Tensor, options: dict) -> Tensor:
        single = self.cfg == 1 and not options.get("disable_cfg1_optimization")
        sides = [self.conds["positive"], None if single else self.conds.get("negative")]
        out = calc_cond_batch(self.inner_model, sides, x, sigma, options)
        about = {"conds": sides, "cond_scale": self.cfg, "timestep": sigma, "sigma": sigma, "input": x}
        about |= {"model": self.inner_model, "model_options": options}
        for function in options.get("sampler_pre_cfg_function", ()):
            out = function({**about, "conds_out": out})
        cond, uncond = out
        result = cond if sides[1] is None else uncond + (cond - uncond) * self.cfg
        for function in options.get("sampler_post_cfg_function", ()):
            about |= {"denoised": result, "cond_denoised": cond, "uncond_denoised": uncond}
            result = function(about)
        return result


def _merged(model) -> dict:
    """model_options for one run: a copy, with the model's own wrappers among those of transformer_options."""
    options = dict(model.model_options)
    to = options["transformer_options"] = dict(options["transformer_options"])
    kinds = {kind: dict(keys) for kind, keys in to.get("wrappers", {}).items()}
    for kind, keys in model.wrappers.items():
        for key, functions in keys.items():
            mine = kinds.setdefault(kind, {})
            mine[key] = [*mine.get(key, []), *functions]
    to["wrappers"] = kinds
    return options


def sample(
    model,
    function: Callable,
    latent: Tensor,
    sigmas: Tensor,
    positive: list,
    negative: list | None = None,
    *,
    cfg: float = 1.0,
    steps: int | None = None,
    what: str = "",
    noise: Tensor | None = None,
    report: Callable | None = None,
) -> Tensor:
    """`host.sample` on a tiny model; with `noise`, what a core sampler node does."""
    from reelbrush.nodes import host

    class Denoiser(host.Denoiser):
        @staticmethod
        def _with_context(cond: dict, context: Tensor) -> dict:
            return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": context}}

        def _batch(self, conds: list[dict], x: Tensor, sigma: Tensor) -> Tensor:
            return calc_cond_batch(self.model, [conds], x, sigma, self.options)[0]

    options = _merged(model)
    to = options["transformer_options"]
    to["sample_sigmas"] = sigmas
    conds = prepared(model, latent, positive, negative)
    ready = Executor(
        lambda model, shape, conds, model_options=None: (model.model, conds, []),
        wrappers(to, "prepare_sampling"),
    )
    base, conds, _ = ready(model, latent.shape, conds, model_options=options)
    guider = TinyGuider(base, conds, cfg)
    inner = InnerModel(guider)
    model.pre_run()
    try:
        x = base.process_latent_in(latent)
        if noise is not None:
            top = float(sigmas[0]) >= float(base.model_sampling.sigma_max) - 1e-5
            x = base.model_sampling.noise_scaling(sigmas[0], noise, x, top)
        x = function(Denoiser(inner, {"model_options": options}, None, steps or len(sigmas) - 1), x, sigmas)
        return base.process_latent_out(x)
    finally:
        model.cleanup()


class InnerModel:
    """What a k-diffusion function calls: the guider, and whatever was hung on it."""

    def __init__(self, guider: TinyGuider):
        self.inner_model = guider

    def __call__(self, x: Tensor, sigma: Tensor, **extra) -> Tensor:
        return self.inner_model(x, sigma, **extra)


def euler(denoise: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    """The plain sampler, a function for `sample`."""
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        x = x + (following - sigma) * (x - denoised) / sigma
        denoise.step(index, x, denoised)
    return x


def stand_in(monkeypatch) -> None:
    """Make the samplers of `host` run on tiny models for one test; a SAMPLER has `.function`."""
    from reelbrush.nodes import host

    def run_sampler(model, sampler, sigmas, latent, noise, positive, negative, *, cfg, seed, report, what=""):
        return sample(
            model, sampler.function, latent, sigmas, positive, negative, cfg=cfg, noise=noise, what=what
        )

    monkeypatch.setattr(host, "sample", sample)
    monkeypatch.setattr(host, "run_sampler", run_sampler)
    monkeypatch.setattr(host, "sampler", lambda function, what="": SimpleNamespace(function=function))
