"""Parity with the official DiffStyler (lishaoxu1994/DiffStyler).

Its injection functions and its `denoise_step` run on diffusers' UNet, ours on ComfyUI's, with the same
weights: Stable Diffusion 1.5's layout with 32 channels, std 0.7/sqrt(fan-in), norms 1 ± 0.1; queries and keys
are three times that, so that attention has something to choose. Needs a checkout (DIFFSTYLER_PATH).

Ten steps of Stable Diffusion's scheduler (901, 801, ... 1), guidance 10.5 with a negative text, in two
variants: its base UNet's (all steps, queries and keys faded) and its LoRA UNets' (features for 0.6 and
attention for 0.5 of the steps, where its fade is 1: replaced). The last variant is the preset
`official code`, with a LoRA in the weights of both sides and the source under it.
"""

import copy
import logging
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.inversion.trajectory import Trajectory
from reelbrush.nodes.diffusion.nodes_inject import Inject

from . import tiny, tiny_sampling
from .inversion.test_inversion import official_unet
from .lora_tools import change_of, random_lora

OFFICIAL = os.environ.get("DIFFSTYLER_PATH")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not OFFICIAL, reason="needs the official code: set DIFFSTYLER_PATH"),
]
log = logging.getLogger("reelbrush.parity")

STEPS, SIDE, TOLERANCE, CFG = 10, 16, 1e-3, 10.5
VARIANTS = [
    pytest.param("fade", 1.0, 1.0, 0.0, id="fade, all steps"),
    pytest.param("replace", 0.6, 0.5, 0.0, id="replace, six and five steps"),
    pytest.param("fade", 0.6, 0.5, 1.0, id="the preset, with a LoRA"),
]


@pytest.fixture
def official(monkeypatch):
    monkeypatch.syspath_prepend(OFFICIAL)
    import diffstyler
    import pnp_utils_combine

    yield SimpleNamespace(step=diffstyler.PNP.denoise_step, functions=pnp_utils_combine)
    for name in ("diffstyler", "pnp_utils_combine"):
        del sys.modules[name]


def weights_of(strength):
    """The test's weights: larger queries and keys, and a LoRA merged into the projections."""
    model = tiny.comfy_model("sd15")
    weights = copy.deepcopy(model.model.diffusion_model.state_dict())
    for path, part in random_lora(model, 1).weights.items():
        weights[f"{path}.weight"] += strength * change_of(part)
    for name in weights:
        if name.endswith(("to_q.weight", "to_k.weight")):
            weights[name] *= 3
    return weights


def schedule():
    from diffusers import DDIMScheduler

    made = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    made.set_timesteps(STEPS)
    return made


def run_official(official, network, scheduler, folder, walk, texts, start, ends):
    """The official step function over all steps, text encoder and VAE apart."""
    for t, latents in walk.items():
        torch.save(latents, folder / f"noisy_latents_{t}.pt")
    steps = [round(end * STEPS) for end in ends]
    official.functions.register_conv_control_efficient(network, scheduler.timesteps[: steps[0]])
    official.functions.register_attention_control_efficient(network, scheduler.timesteps[: steps[1]])
    null, negative, positive = texts
    # what the step reads of its class; no LoRA UNets beside this one
    it = SimpleNamespace(
        config={
            "guidance_scale": CFG,
            "latents_path": str(folder.parent),
            "image_path": f"{folder.name}.png",
        },
        unet=_Callable(network),
        scheduler=scheduler,
        text_embeds=torch.cat([negative, positive]),
        pnp_guidance_embeds=null,
        lora_list=[],
        lora_text_embeds_list=[],
        mask_list=[],
    )

    x = start
    for t in scheduler.timesteps:
        x = official.step(it, x, t)
    return x


class _Callable:
    """The network as the official code calls it, its modules within reach."""

    def __init__(self, network):
        self.network = network

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, x, t, encoder_hidden_states):
        return {"sample": self.network(x, t, encoder_hidden_states=encoder_hidden_states).sample}


@pytest.mark.parametrize(("blend", "feature_end", "attention_end", "strength"), VARIANTS)
def test_injection_is_the_official_code(
    official, capsys, tmp_path, blend, feature_end, attention_end, strength
):
    weights, scheduler = weights_of(strength), schedule()
    model, network = tiny.comfy_model("sd15", weights), official_unet(weights)
    abar, times = scheduler.alphas_cumprod, scheduler.timesteps.tolist()
    g = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 1, 4, SIDE, SIDE, generator=g)
    walk = {t: abar[t].sqrt() * clean + (1 - abar[t]).sqrt() * noise for t in times}
    texts = torch.randn(3, 1, 77, 768, generator=g)
    folder = tmp_path / "latents" / "clip"
    folder.mkdir(parents=True)
    with torch.no_grad():
        ends = (feature_end, attention_end)
        theirs = run_official(official, network, scheduler, folder, walk, texts, walk[times[0]], ends)

    sigma = lambda t: float(((1 - abar[t]) / abar[t]).sqrt())  # noqa: E731
    null, negative, positive = ([[text, {}]] for text in texts)
    ascending = torch.tensor([sigma(t) for t in times[::-1]])
    content = Trajectory(torch.stack([walk[t] for t in times[::-1]]), ascending, null, "sd1", "next timestep")
    levels = torch.tensor([sigma(t) for t in [*times, 0]])
    start = walk[times[0]] * (1 + levels[0] ** 2).sqrt() / 0.18215

    def ours(model):
        with torch.inference_mode():
            out = host.sample(model, tiny_sampling.euler, start, levels, positive, negative, cfg=CFG)
        return out * 0.18215 / (1 + levels[-1] ** 2).sqrt()

    ends = {"feature_end": feature_end, "attention_end": attention_end}
    node = Inject().patch(model, content, "4", "4-11", True, False, blend=blend, **ends)
    if strength:  # what the official code does in its LoRA UNets
        nothing = {"feature_end": 0.0, "attention_end": 0.0}
        node = Inject().patch(model, content, "0", "0", False, False, preset="official code", **nothing)
    injected = ours(node[0])
    error, off = (((found - theirs).norm() / theirs.norm()).item() for found in (injected, ours(model)))
    other = "replace" if blend == "fade" else "fade"
    paper = ours(Inject().patch(model, content, "4-11", "all", True, True, blend=other, **ends)[0])
    apart = ((paper - theirs).norm() / theirs.norm()).item()
    with capsys.disabled():
        said = (
            "official DiffStyler, %s: relative error %.1e, on - off %.3f, the paper's variant %.3f, std %.2f"
        )
        log.warning(said, blend, error, off, apart, theirs.std())
    assert error < TOLERANCE
    assert off > 50 * TOLERANCE and apart > 50 * TOLERANCE
    assert theirs.std() > 0.1
