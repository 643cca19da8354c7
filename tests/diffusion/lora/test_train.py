"""Training a style LoRA: eq. 3 against its literal form, resuming, determinism, the untouched model."""

import copy
import shutil

import pytest
import torch

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.lora import file as lora
from reelbrush.nodes.diffusion.lora import train as lora_train
from reelbrush.nodes.diffusion.lora.train import (
    LoRARecipe,
    eq3,
    fresh,
    places,
    projections,
    with_branches,
)
from reelbrush.nodes.diffusion.nodes_lora import TrainStyleLoRA

from .. import tiny
from ..training_tools import INSIDE, RECIPE, held_out_loss, make, pictures, same, text, trained, training_of


def plain(prediction="eps"):
    """The same network without any ComfyUI."""
    return tiny.tiny_model("mini", prediction=prediction).model.diffusion_model


def merged(net, branches):
    """The literal theta + dtheta: a copy of the network with the products added to its weights."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for path, branch in branches.items():
            weight = net.get_submodule(path).weight
            weight.data = weight + branch.up @ branch.down
    return net


def filled(model, words="q,k,v", seed=5):
    """Branches that do something."""
    branches = fresh(model.model.diffusion_model, projections(model, words), 3, seed)
    g = torch.Generator().manual_seed(seed)
    for branch in branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=g) * 0.3
    return branches


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_the_loss_is_eq_3(prediction, timestep):
    model, net = make(prediction=prediction), plain(prediction)
    g = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(2))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = float((1 - betas).cumprod(0)[timestep])
    z = abar**0.5 * clean + (1 - abar) ** 0.5 * noise
    branches, words = filled(model), text(model)[0][0]
    said = merged(net, branches)(z, torch.full((2,), float(timestep)), context=words.expand(2, -1, -1))
    wanted = noise if prediction == "eps" else abar**0.5 * noise - (1 - abar) ** 0.5 * clean
    literal = float((wanted - said).square().mean().detach())
    without = net(z, torch.full((2,), float(timestep)), context=words.expand(2, -1, -1))
    sigma = ((1 - abar) / abar) ** 0.5
    with host.loaded(with_branches(model, branches)) as base, host.gradients():
        found = eq3(base, clean, noise, sigma, {"c_crossattn": words})
    assert float(found.loss.detach()) == pytest.approx(literal, rel=1e-4)
    assert abs(literal - float((wanted - without).square().mean())) > 50 * 1e-4 * literal


def test_the_gradients_are_those_of_the_merged_weights():
    """d/d(down, up) through the branch = through W + up @ down, by torch's own functional_call."""
    model, net = make(), plain()
    branches, words = filled(model), text(model)[0][0]
    g = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(1, 4, 8, 8, generator=g) for _ in range(2))
    with host.loaded(with_branches(model, branches)) as base, host.gradients():
        sigma = float(base.model_sampling.sigmas[300])
        eq3(base, clean, noise, sigma, {"c_crossattn": words}).loss.backward()
    leaves = {k: (b.down.detach().clone().requires_grad_(), b.up.detach().clone().requires_grad_())
              for k, b in branches.items()}  # fmt: skip
    weights = {f"{k}.weight": net.get_submodule(k).weight + up @ down for k, (down, up) in leaves.items()}
    abar = 1 / (1 + sigma**2)
    z = abar**0.5 * clean + (1 - abar) ** 0.5 * noise
    said = torch.func.functional_call(net, weights, (z, torch.full((1,), 300.0)), {"context": words})
    (noise - said).square().mean().backward()
    for path, (down, up) in leaves.items():
        for mine, other in ((branches[path].down.grad, down.grad), (branches[path].up.grad, up.grad)):
            assert (mine - other).norm() < 1e-2 * other.norm()  # sums in another order, in single precision
        assert up.grad.abs().max() > 1e-4


def test_steps_are_adamw_on_eq_3(home):
    """The whole loop against a literal one; losses agree (Adam turns last bits into steps elsewhere)."""
    model, net, recipe = make(), plain(), LoRARecipe(rank=4, steps=5, learning_rate=1e-2)
    style, words = pictures(), text(model)[0][0]
    with training_of(model, style, text(model), recipe) as training:
        draws = [training.draw(k) for k in range(recipe.steps)]
        start = {k: (b.down.detach().clone(), b.up.detach().clone()) for k, b in training.branches.items()}
        training.run(lambda *_: None, home / "state.pt")
    leaves = {k: [t.requires_grad_() for t in pair] for k, pair in start.items()}
    adam = torch.optim.AdamW([t for pair in leaves.values() for t in pair], lr=1e-2)
    abars, literal = 1 / (1 + model.model.model_sampling.sigmas.clone() ** 2), []
    for _, timestep, noise in draws:
        a = abars[timestep]
        z = a.sqrt() * style * 0.18215 + (1 - a).sqrt() * noise
        weights = {f"{k}.weight": net.get_submodule(k).weight + up @ down for k, (down, up) in leaves.items()}
        said = torch.func.functional_call(
            net, weights, (z, torch.tensor([float(timestep)])), {"context": words}
        )
        loss = (said - noise).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        literal.append(float(loss.detach()))
    assert training.losses == pytest.approx(literal, rel=1e-4)
    timestep, noise = draws[-1][1:]
    a = abars[timestep]
    said = net(a.sqrt() * style * 0.18215 + (1 - a).sqrt() * noise, torch.tensor([float(timestep)]), words)
    assert abs(float((said - noise).square().mean().detach()) / literal[-1] - 1) > 50 * 1e-4  # it has learned


def test_draws_are_uniform_and_take_every_picture_once_in_turn():
    model = make()
    with training_of(model, pictures(3)) as training:
        draws = [training.draw(k) for k in range(300)]
        again = training.draw(7)
    assert all({p for p, _, _ in draws[k : k + 3]} == {0, 1, 2} for k in range(0, 300, 3))
    assert len({tuple(p for p, _, _ in draws[k : k + 3]) for k in range(0, 300, 3)}) > 3  # shuffled
    times = torch.tensor([t for _, t, _ in draws]).float()
    assert times.min() < 30 and times.max() > 970 and 450 < times.mean() < 550
    assert again[:2] == draws[7][:2] and torch.equal(again[2], draws[7][2])


def test_each_picture_may_have_its_own_text():
    model = make()
    two = [*text(model, 1), *text(model, 2)]
    with training_of(model, pictures(2), two) as training:
        assert [training.text(i) for i in range(2)] == [two[:1], two[1:]]
    with training_of(model, pictures(3), two) as training:
        assert training.text(2) is two


def test_a_lora_of_a_picture_lowers_its_loss_on_held_out_noise():
    model, style = make(), pictures()

    def held_out(branches):
        return held_out_loss(model, branches, style, LoRARecipe(seed=999), 24)

    found = trained(model, style, LoRARecipe(rank=4, steps=40, learning_rate=1e-2))
    branches = {k: lora_train.LoRABranch(p.down, p.up) for k, p in found.weights.items()}
    assert held_out(branches) < 0.97 * held_out({})


# -- a training ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_lora(home):
    model = make()
    first = trained(model)
    shutil.rmtree(home / "temp" / "loras")
    assert same(first, trained(make()))
    other = trained(model, recipe=LoRARecipe(rank=4, steps=6, learning_rate=1e-2, seed=1))
    assert not same(first, other)
    assert all(float(p.up.abs().max()) > 0 for p in first.weights.values())


class Stop(Exception):  # noqa: N818 - a cancel
    pass


def stopped_at(monkeypatch, step):
    def at(self, done, preview=None):
        if done == step:
            raise Stop

    monkeypatch.setattr(host.Progress, "at", at)


def test_a_cancelled_training_continues_bit_for_bit(home, monkeypatch):
    model = make()
    whole = trained(model, save_as="whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stopped_at(patch, 3)
        trained(model, save_as="parts")
    assert not (home / "output" / "loras" / "parts.safetensors").exists()
    steps = []
    monkeypatch.setattr(host.Progress, "at", lambda self, done, preview=None: steps.append(done))
    assert same(trained(model, save_as="parts"), whole)
    assert steps == [4, 5, 6]
    files = [home / "output" / "loras" / f"{name}.safetensors" for name in ("whole", "parts")]
    assert same(*[lora.load(f) for f in files])


def test_a_killed_training_continues_from_its_last_state(home):
    """No exception, no clean-up: only what was on disk two steps before the end."""
    model, file, seen = make(), home / "state.pt", []

    def run(watch):
        with training_of(model, pictures(2)) as training:
            training.run(watch, file, save_every=0.0)
            return training

    def keep(training, _):
        seen.append(training.step)
        if training.step == 5:  # the file is still of step 4
            shutil.copy(file, home / "kept.pt")

    whole = run(keep)
    shutil.copy(home / "kept.pt", file)
    again = run(lambda training, _: seen.append(training.step))
    assert seen == [1, 2, 3, 4, 5, 6, 5, 6]
    assert again.losses == whole.losses
    assert same(again.lora("a"), whole.lora("a"))
    assert not list(home.glob("*.part"))


def test_more_steps_go_on_and_fewer_begin_start_again(home):
    model = make()
    long = LoRARecipe(rank=4, steps=9, learning_rate=1e-2)
    straight = trained(model, recipe=long, save_as="straight")
    short = trained(model, save_as="grown")
    assert same(trained(model, recipe=long, save_as="grown"), straight)
    assert same(trained(model, save_as="grown"), short)


@pytest.mark.parametrize("what", ["picture", "text", "weights", "patch", "rate", "damage"])
def test_a_state_of_another_training_is_not_used(home, what, caplog):
    model, style, words, recipe = make(), pictures(), text(make()), RECIPE
    trained(model, save_as="mine")
    if what == "picture":
        style = pictures(seed=4)
    if what == "text":
        words = text(model, seed=9)
    if what == "weights":
        model = make(seed=1)
    if what == "patch":  # as a LoRA of core's does where weights are patched at the call
        model = model.clone()
        name = next(k for k in model.model.diffusion_model.state_dict() if k.endswith("to_q.weight"))
        model.add_weight_wrapper(f"diffusion_model.{name}", lambda weight: weight.mul_(1.1))  # in place
    if what == "rate":
        recipe = LoRARecipe(rank=4, steps=6, learning_rate=2e-2)
    if what == "damage":
        (home / "output" / "loras" / ".mine" / "training.state").write_bytes(b"half a file")
    fresh_one = trained(model, style, recipe, words, "other")
    with caplog.at_level("INFO", "reelbrush"):
        assert same(trained(model, style, recipe, words, "mine"), fresh_one)
    assert "starting from the beginning" in caplog.text


# what ComfyUI sets on modules again whenever a clone is loaded
LEFT = ("_buffers", "forward", "weight_function", "bias_function") if INSIDE else ("_buffers",)


def state_of(model):
    """Weights, and the attributes of the modules."""
    net = model.model.diffusion_model
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    return weights, {
        n: {k: id(v) for k, v in vars(m).items() if k not in LEFT} for n, m in net.named_modules()
    }


@pytest.mark.parametrize("ends", ["well", "cancelled"])
def test_the_model_is_as_it_was(home, monkeypatch, ends):
    model = make()
    with host.loaded(model):
        pass  # a first loading settles what ComfyUI keeps on modules
    weights, modules = state_of(model)
    if ends == "cancelled":
        stopped_at(monkeypatch, 3)
        with pytest.raises(Stop):
            trained(model)
    else:
        trained(model)
    with host.loaded(model):
        pass  # ComfyUI removes a clone's patches when another clone is loaded
    after, now = state_of(model)
    assert all(torch.equal(after[k], v) for k, v in weights.items())
    assert now == modules
    assert all(p.grad is None and not p.requires_grad for p in model.model.diffusion_model.parameters())
    assert not model.patches and not model.object_patches and not model.weight_wrapper_patches


# -- where it goes ---------------------------------------------------------------------------------


def test_places(home):
    loras = home / "output" / "loras"
    assert places("a/monet.safetensors") == (
        loras / "a" / "monet.safetensors",
        loras / "a" / ".monet" / "training.state",
    )
    assert places(" ") == (None, home / "temp" / "loras" / "unsaved.state")
    for name, words in (("../monet", "leaves the loras folder"), (".monet", "begin with a dot")):
        with pytest.raises(ValueError, match=words):
            places(name)


def test_the_node_saves_what_it_gives(home):
    model = make()
    with torch.inference_mode():
        found, plot = TrainStyleLoRA().train(
            model, {"samples": pictures()}, text(model), 4, 2, 1e-3, "q,k,v,out", 0, "sub/monet"
        )
    file = home / "output" / "loras" / "sub" / "monet.safetensors"
    assert same(lora.load(file), found)
    assert found.name == "monet" and any(path.endswith("to_out.0") for path in found.weights)
    assert plot.shape[0] == 1 and plot.shape[-1] == 3
    assert "sub/monet.safetensors" in host.model_names(lora.KIND)


def test_a_model_of_another_kind_raises_an_error(home):
    model = make()
    model.model.model_sampling.calculate_denoised = lambda sigma, output, x: output
    with pytest.raises(ValueError, match="predicts neither noise nor velocity"):
        trained(model)
