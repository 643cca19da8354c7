"""Training a style LoRA within memory and in half precision: recomputing, overflows, a NaN."""

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora.train import LoRARecipe, LoRATraining

from .. import tiny
from ..lora_tools import change_of
from ..training_tools import INSIDE, held_out_loss, make, pictures, trained, training_of


def test_recomputing_gives_the_same_gradients():
    model, found = make("sd15"), []
    for recompute in (False, True):
        with training_of(model, pictures()) as training:
            draw = torch.Generator().manual_seed(5)
            with torch.no_grad():  # up begins as zero: down has no gradient, and Adam blows up rounding
                for p in training.parameters:
                    p.copy_(torch.randn(p.shape, generator=draw) * 0.05)
            training.recomputation.on = recompute
            training.advance()
            found.append([p.grad.clone() for p in training.parameters])
    scale = torch.stack([b.norm() for b in found[0]]).max()
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm() + 1e-5 * scale
    assert min(float(g.abs().max()) for g in found[0]) > 0


def held(model, recompute):
    with training_of(model, pictures(side=32)) as training:
        training.recomputation.on = recompute
        return host.graph_bytes(lambda: training.loss(*training.draw(0)))


def test_recomputing_holds_less_and_free_memory_decides(monkeypatch):
    model = make("sd15")
    plain, less = held(model, False), held(model, True)
    assert less < 0.4 * plain
    for free, recompute in ((1.2 * plain, True), (2 * plain, False)):
        monkeypatch.setattr(host, "free_memory", lambda where, free=free: free)
        with training_of(model, pictures(side=32)) as training:
            training.plan()
            assert training.recomputation.on is recompute


def test_out_of_memory_continues_with_recomputing(home, monkeypatch):
    model, real, failed = make(), LoRATraining.advance, []
    whole = trained(model, save_as="whole")

    def advance(self):
        if self.step == 2 and not self.recomputation.on:
            failed.append(self.step)
            raise torch.OutOfMemoryError("no room")
        return real(self)

    monkeypatch.setattr(LoRATraining, "advance", advance)
    other = trained(model, save_as="tight")
    assert failed == [2]
    for path, part in whole.weights.items():
        torch.testing.assert_close(change_of(part), change_of(other.weights[path]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.skipif(INSIDE, reason="ComfyUI decides the precision at loading")
def test_mixed_precision(home, dtype):
    """Half-precision weights, float32 branches: the LoRA also lowers the loss in float32; overflows are
    met."""
    recipe = LoRARecipe(rank=4, steps=20, learning_rate=3e-2)

    def learned(dtype):
        model = tiny.tiny_model("mini")
        model.model.diffusion_model.to(dtype)
        with training_of(model, pictures(), recipe=recipe) as training:
            if dtype == torch.float16:
                training.scale = 2.0**40  # overflows at first
            training.run(lambda *_: None, home / f"{dtype}.pt")
        return training

    def loss(branches):
        return held_out_loss(tiny.tiny_model("mini"), branches, pictures(), recipe, 20)

    full, half = learned(torch.float32), learned(dtype)
    assert half.scale < 2.0**40
    assert {p.dtype for p in half.parameters} == {torch.float32}
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.01)
    before = loss({})
    assert before - loss(half.branches) > 0.5 * (before - loss(full.branches)) > 0.01 * before


def test_a_nan_raises_an_error(home):
    with pytest.raises(RuntimeError, match="met a NaN at step 1: lower learning_rate"):
        trained(make(), pictures() * float("inf"))
