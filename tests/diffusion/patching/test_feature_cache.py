"""A style is computed once: shared by frames, sides and calls, never reused wrongly, never left behind."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_clip import FramesPerCall
from reelbrush.nodes.diffusion.patching import unet
from reelbrush.nodes.diffusion.patching.hooks import on_resblock
from reelbrush.nodes.diffusion.patching.layers import decoder_blocks

from ..attention_tools import (
    BOTH,
    FREE,
    counted,
    features_alive,
    levels,
    make,
    reference,
    sample,
    trajectory,
    zstar,
)
from ..tiny import conditioning


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
    assert rows == [1, 1, 4] * 3, "the negative text is another one: the style is read with both"
    style = trajectory(model)
    style.conditioning = conditioning(model, seed=2)
    with counted(model) as rows:
        sample(zstar(model, style, **FREE), frames=2, cfg=4.0)
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
        on_resblock(other, decoder_blocks(model)[2], lambda h: h * 2)
    elif change == "wrapper":
        scaled = lambda run, x, *a, **k: run(x * 1.1, *a, **k)  # noqa: E731
        other.add_wrapper_with_key("diffusion_model", "somebody", scaled)
    else:
        kept = replace(kept, conditioning=conditioning(model, seed=30))  # a new text is a new trajectory
    fresh = replace(trajectory(model), conditioning=kept.conditioning)
    again = sample(zstar(other, kept, cache="cpu", **FREE))
    assert torch.equal(again, sample(zstar(other, fresh, cache="recompute", **FREE)))
    assert not torch.equal(again, before)


def test_weights_are_the_same_only_with_the_same_hooks_patches_and_living_base():
    class Thing:
        pass

    def patcher(**changes):
        hooks = SimpleNamespace(hooks=[SimpleNamespace(hook_ref=lora, strength=0.5)])
        given = {"patches_uuid": 1, "object_patches": {"a": lora}, "current_hooks": hooks}
        return SimpleNamespace(**{**given, "injections": {"bypass": [lora]}} | changes)

    lora, other, base = Thing(), Thing(), Thing()
    base.current_patcher = patcher()
    key = host.weights_key(base)
    base.current_patcher = patcher()
    assert host.weights_key(base) == key and hash(host.weights_key(base)) == hash(key)
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
        assert host.weights_key(base) != key, changes
    twin = Thing()
    twin.current_patcher = patcher()
    assert host.weights_key(twin) != key
    del base
    assert host.weights_key(twin) != key  # a deleted object equals nothing
    twin.current_patcher = None
    assert host.weights_key(twin) != host.weights_key(twin)  # not inside a run: never reused


@BOTH
def test_features_of_one_model_at_a_time_are_kept_and_die_with_the_trajectory(kind):
    model = make(kind)
    other = model.clone()
    other.set_model_output_block_patch(lambda h, skip, extra: (h * 1.3, skip))
    kept = trajectory(model)
    before = vars(kept).copy()

    def reads(of, trajectory):
        with counted(of) as rows:
            sample(zstar(of, trajectory, cache="cpu", **FREE))
        return rows.count(1)

    assert [reads(m, kept) for m in (model, model, other, model)] == [3, 0, 3, 3]
    assert vars(kept) == before
    assert features_alive()
    del kept, before
    assert not features_alive()


@BOTH
def test_nothing_is_left_after_a_run_or_a_cancelled_one(kind):
    model, alive = make(kind), []
    node = zstar(model, trajectory(model), **FREE)

    def cancelled(denoise, x, sigmas):
        denoise(x, sigmas[0])
        alive.append({f.layer.number for f in features_alive()})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(node, function=cancelled)
    assert alive == [{10, 11, 12, 13, 14, 15}]
    assert not features_alive()
    sample(node)
    assert not features_alive()


@BOTH
def test_a_long_clip_s_content_does_not_pile_up_on_the_device(kind):
    """StyleID's content queries in calls of two: each frame read once per step, four frames kept at most."""
    model, held = make(kind), []
    content, style = trajectory(model, frames=10, seed=20), trajectory(model)
    node = reference(model, style, "style-id", layers="10-15", content=content)

    def watch(call):
        held.append(sum(len(f.q) for f in features_alive() if f.layer.number == 15 and f.q is not None))
        return call.run()

    unet.attach(node, "watch", watch, rank=1)
    (split,) = FramesPerCall().patch(node, 2)
    with counted(model) as rows:
        sample(split, frames=10, cfg=3.0)
    assert max(held) == 4
    # the style with either text, then the content of each call and the call
    assert rows == ([1, 1, 2, 4] + [2, 4] * 4) * 3
