"""A style is computed once: shared by frames, sides and calls, never reused wrongly, never left behind."""

from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes.diffusion import unet
from reelbrush.nodes.diffusion.clip_nodes import FramesPerCall
from reelbrush.nodes.diffusion.reference import ReferenceAttention
from reelbrush.nodes.diffusion.store import Reference, weights_key

from .attention_tools import BOTH, counted, levels, make, sample, trajectory
from .test_zstar import FREE, zstar
from .tiny import conditioning


@BOTH
def test_a_style_costs_one_row_per_step_however_the_clip_is_split(kind):
    model = make(kind)
    style, steps, results = trajectory(model), 3, {}
    for cache, per_step in (("gpu", 9), ("cpu", 9), ("recompute", 11)):
        (patched,) = FramesPerCall().patch(zstar(model, style, cache=cache, **FREE), 3)
        with counted(model) as rows:
            results[cache] = sample(patched, frames=8, sigmas=levels(model, steps))
        assert sum(rows) == steps * per_step, cache
    (patched,) = FramesPerCall().patch(zstar(model, style, cache="cpu", **FREE), 3)
    with counted(model) as rows:
        results["cpu again"] = sample(patched, frames=8, sigmas=levels(model, steps))
    assert sum(rows) == steps * 8
    whole = zstar(model, style, **FREE)
    with counted(model) as rows:
        results["one call"] = sample(whole, frames=8, sigmas=levels(model, steps))
    assert rows == [1, 8] * steps
    for name, result in results.items():
        if name != "one call":  # other batch sizes may round otherwise
            assert torch.equal(result, results["gpu"]), name
        torch.testing.assert_close(result, results["gpu"], rtol=1e-4, atol=1e-4)


@BOTH
def test_conds_and_unconds_share_the_style(kind):
    model = make(kind)
    with counted(model) as rows:
        sample(zstar(model, trajectory(model), **FREE), frames=2, cfg=4.0)
    assert rows == [1, 4] * 3


@BOTH
@pytest.mark.parametrize("change", ["weights", "patch", "replacement", "object patch", "wrapper", "text"])
def test_a_wrong_reuse_is_impossible(kind, change):
    """After any change to what computes features, a kept style gives what a fresh one gives."""
    model = make(kind)
    kept = trajectory(model)
    before = sample(zstar(model, kept, cache="cpu", **FREE))
    other = model.clone()
    if change == "weights":
        other.add_weight_wrapper(
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight", lambda w: w * 2
        )
    elif change == "patch":
        other.set_model_output_block_patch(lambda h, skip, extra: (h * 1.3, skip))
    elif change == "replacement":
        other.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    elif change == "object patch":
        unet.on_resblock(other, 2, lambda h: h * 2)
    elif change == "wrapper":
        scaled = lambda run, x, *a, **k: run(x * 1.1, *a, **k)  # noqa: E731
        other.add_wrapper_with_key("diffusion_model", "somebody", scaled)
    else:
        kept.conditioning, kept.cache = conditioning(model, seed=30), {}  # a new text is a new trajectory
    fresh = trajectory(model)
    fresh.conditioning = kept.conditioning
    again = sample(zstar(other, kept, cache="cpu", **FREE))
    assert torch.equal(again, sample(zstar(other, fresh, cache="recompute", **FREE)))
    assert not torch.equal(again, before)
    assert len({key[3:5] for key in kept.cache["reference features"]}) == 1  # one model's at a time


def test_weights_are_the_same_only_with_the_same_hooks_patches_and_living_base():
    class Thing:
        pass

    def patcher(**changes):
        hooks = SimpleNamespace(hooks=[SimpleNamespace(hook_ref=lora, strength=0.5)])
        given = {"patches_uuid": 1, "object_patches": {"a": lora}, "current_hooks": hooks}
        return SimpleNamespace(**{**given, "injections": {"bypass": [lora]}} | changes)

    lora, other, base = Thing(), Thing(), Thing()
    base.current_patcher = patcher()
    key = weights_key(base)
    base.current_patcher = patcher()
    assert weights_key(base) == key and hash(weights_key(base)) == hash(key)
    weaker = SimpleNamespace(hooks=[SimpleNamespace(hook_ref=lora, strength=0.4)])
    foreign = SimpleNamespace(hooks=[SimpleNamespace(hook_ref=other, strength=0.5)])
    for changes in (
        {"patches_uuid": 2},
        {"object_patches": {"a": other}},
        {"object_patches": {}},
        {"current_hooks": None},
        {"current_hooks": weaker},
        {"current_hooks": foreign},
        {"injections": {}},
        {"injections": {"bypass": [other]}},
        {"injections": {"another": [lora]}},
    ):
        base.current_patcher = patcher(**changes)
        assert weights_key(base) != key, changes
    twin = Thing()
    twin.current_patcher = patcher()
    assert weights_key(twin) != key
    del base
    assert weights_key(twin) != key  # what is gone equals nothing
    twin.current_patcher = None
    assert weights_key(twin) != weights_key(twin)  # not inside a run: never reused


@BOTH
def test_nothing_is_left_on_the_device_after_a_run_or_a_cancelled_one(kind):
    model = make(kind)
    found = []
    node = zstar(model, trajectory(model), **FREE)
    (wrapper,) = node.wrappers["diffusion_model"]["reelbrush 5 zstar"]
    part = next(c.cell_contents for c in wrapper.__closure__ if hasattr(c.cell_contents, "__self__"))
    store = part.__self__.style

    def cancelled(denoise, x, sigmas):
        denoise(x, sigmas[0])
        found.append(len(store._levels))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(node, function=cancelled)
    assert found == [1] and not store._levels
    sample(node)
    assert not store._levels


@BOTH
def test_a_long_clip_s_content_does_not_pile_up_on_the_device(kind):
    """StyleID's content queries in calls of two: each frame read once per step, four frames held at most."""
    model = make(kind)
    content, style, held = trajectory(model, frames=10, seed=20), trajectory(model), []
    queries = Reference(model, content, unet.pick_layers(model, "10-15"), "q", frames_apart=True)
    keys = Reference(model, style, queries.chosen)
    patched = model.clone()
    when = unet.sigma_range(model, 0.0, 1.0)
    ReferenceAttention(keys, queries.chosen, when, "style-id", 0.75, 1.5, queries).attach(patched)

    def watch(call):
        held.append(sum(len(found[15].q) for found in queries._levels.values()))
        return call.run()

    unet.attach(patched, "watch", watch, rank=1)
    (split,) = FramesPerCall().patch(patched, 2)
    with counted(model) as rows:
        sample(split, frames=10, cfg=3.0)
    assert max(held) == 4
    assert rows == ([1, 2, 4] + [2, 4] * 4) * 3  # the style, then the content of each call and the call
