"""Reference attention, references without an inversion, and StyleID's start."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.nodes_style import MatchLatent, ReferenceNoise
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.layers import attention_layers, network
from reelbrush.nodes.diffusion.reference import match, noised_levels

from .attention_tools import (
    BOTH,
    INSIDE,
    counted,
    fingerprint,
    heads,
    latents,
    levels,
    make,
    reference,
    same,
    sample,
    softmax_of,
    trajectory,
)
from .tiny import conditioning

ANY = "comfy" if INSIDE else "tiny"


@BOTH
@pytest.mark.parametrize("mode", ["concat", "swap", "style-id"])
def test_a_layer_computes_its_mode(kind, mode):
    """What goes into `to_out`, for frames 0..3 in calls of 2, with each frame's own content queries."""
    model = make(kind)
    layer = attention_layers(model)[11]
    picture, content = trajectory(model), trajectory(model, frames=4, seed=40)
    sigma = float(levels(model)[1])
    with host.loaded(model) as base:
        given = host.conditions(base, picture.conditioning, latents(), sigma)
        held = unet.capture(base, picture.at(sigma), sigma, given, [layer], "kv")[11]
        queries = unet.capture(base, content.at(sigma), sigma, given, [layer], "q")[11]
    patched = reference(model, picture, mode, keep=0.6, layers="11", content=content)
    (patched,) = FramesPerCall().patch(patched, 2)
    seen = {name: [] for name in ("q", "k", "v", "out")}
    attn = network(model).get_submodule(layer.path)
    hooks = [
        getattr(attn, f"to_{n}").register_forward_hook(lambda m, a, out, n=n: seen[n].append(out))
        for n in "qkv"
    ]
    hooks.append(attn.to_out.register_forward_pre_hook(lambda m, args: seen["out"].append(args[0])))
    sample(patched, frames=4, sigmas=torch.tensor([sigma, 0.0]))
    for hook in hooks:
        hook.remove()
    two = [
        i for i, out in enumerate(seen["out"]) if len(out) == 2
    ]  # the main passes: reading ones end before it
    assert len(two) == 2
    own = {n: [t for t in seen[n] if len(t) == 2] for n in ("q", "k", "v")}
    last = slice(1, None, 2) if mode == "style-id" else slice(None)  # style-id reads two content frames first
    q, k, v = (heads(torch.cat(own[n][last]), layer.heads) for n in "qkv")
    out = heads(torch.cat([seen["out"][i] for i in two]), layer.heads)
    k_s, v_s, q_c = (heads(t, layer.heads) for t in (held.k, held.v, queries.q))
    root = q.shape[-1] ** 0.5
    if mode == "concat":
        logits = torch.cat([q @ k_s.transpose(-1, -2), q @ k.transpose(-1, -2)], -1) / root
        expected = softmax_of(logits, torch.cat([v_s.expand(4, -1, -1, -1), v], 2))
    else:
        asked = q if mode == "swap" else 1.5 * (0.6 * q_c + 0.4 * q)
        expected = softmax_of(asked @ k_s.transpose(-1, -2) / root, v_s)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_a_frame_that_looks_at_itself_stays_as_it_is(kind):
    """A reference that is the frame itself, at the same level and with the same text, changes nothing."""
    model = make(kind)
    sigmas = torch.tensor([float(levels(model)[1]), 0.0])
    own = latents(1) * float(sigmas[0])
    picture = trajectory(model)
    picture.latents = (own / (1 + sigmas[0] ** 2).sqrt())[None].repeat(len(picture.sigmas), 1, 1, 1, 1)
    picture.conditioning = conditioning(model, seed=1)
    plain = sample(model, latent=own, sigmas=sigmas)
    for mode, more in (("concat", {}), ("swap", {}), ("style-id", {"temperature": 1.0, "keep": 0.0})):
        patched = reference(model, picture, mode, **more)
        torch.testing.assert_close(sample(patched, latent=own, sigmas=sigmas), plain, rtol=1e-4, atol=1e-4)
    far = sample(reference(model, trajectory(model), "swap"), latent=own, sigmas=sigmas)
    assert (far - plain).abs().max() > 1e-3


@BOTH
def test_style_id_reads_each_content_frame_once_per_step_for_both_sides(kind):
    model = make(kind)
    content = trajectory(model, frames=2, seed=40)
    before = fingerprint(model)
    patched = reference(model, trajectory(model), "style-id", content=content)
    with counted(model) as rows:
        sample(patched, frames=2, cfg=3.0)
    assert rows == [1, 1, 2, 4] * 3  # the reference with either text
    assert same(fingerprint(model), before)


def test_off_and_errors():
    model = make(ANY)
    picture = trajectory(model)
    assert reference(model, picture, layers="none") is model
    assert reference(model, picture, start_percent=0.5, end_percent=0.5) is model
    with pytest.raises(ValueError, match="connect `content`"):
        reference(model, picture, "style-id")
    reference(model, picture, "style-id", keep=0.0)  # nothing to blend, nothing needed
    small = trajectory(model, seed=40, size=(8, 8))
    with pytest.raises(ValueError, match="connect an inversion of these latents"):
        sample(reference(model, picture, "style-id", content=small))
    short = trajectory(model, frames=2, seed=40)
    with pytest.raises(ValueError, match="content trajectory has 2 frames, but frame 2"):
        sample(reference(model, picture, "style-id", content=short), frames=3)


def test_a_noised_reference_has_one_noise_and_unit_variance():
    z = latents(2, seed=3, size=(32, 32))
    sigmas = torch.tensor([14.0, 3.0, 3.0, 0.5, 0.0])
    made, ascending = noised_levels(z, sigmas, seed=5)
    assert ascending.tolist() == [0, 0.5, 3, 14] and made.shape == (4, 2, 4, 32, 32)
    assert torch.equal(made[0], z)
    noise = [(m * (1 + s**2).sqrt() - z) / s for m, s in zip(made[1:], ascending[1:], strict=True)]
    for other in noise[1:]:
        torch.testing.assert_close(other, noise[0], rtol=1e-3, atol=1e-3)
    assert all(abs(m.std() - 1) < 0.05 for m in made)
    assert not torch.equal(noised_levels(z, sigmas, seed=6)[0], made) and torch.equal(
        noised_levels(z, sigmas, seed=5)[0], made
    )


@BOTH
def test_reference_from_noise_is_in_model_space(kind):
    model = make(kind)
    picture, text = {"samples": latents()}, conditioning(model)
    (found,) = ReferenceNoise().make(picture, model, text, levels(model), 1)
    assert torch.equal(found.latents[0], model.model.process_latent_in(latents()))
    assert (found.family, found.conditioning, found.frames) == ("sd1", text, 1)
    assert torch.equal(picture["samples"], latents())
    sample(reference(model, found))


def test_matched_latents_have_the_references_statistics():
    x, ref = latents(3, seed=1), latents(1, seed=2) * 3 + 1
    out = match(x, ref, 1.0)
    for frame in out:
        torch.testing.assert_close(frame.mean((1, 2)), ref[0].mean((1, 2)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(frame.std((1, 2)), ref[0].std((1, 2)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(match(x, ref, 0.5), (x + out) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(match(x, x * 2, 1.0)[1], (x[1] - x[1].mean((1, 2), keepdim=True)) * 2
        + 2 * x[1].mean((1, 2), keepdim=True), rtol=1e-3, atol=1e-3)  # fmt: skip
    given = {"samples": x, "noise_mask": torch.ones(1)}
    assert MatchLatent().match(given, {"samples": ref}, 0.0)[0] is given
    assert "noise_mask" in MatchLatent().match(given, {"samples": ref}, 1.0)[0]
    with pytest.raises(ValueError, match="2 frames, the latent 3"):
        match(x, latents(2), 1.0)
