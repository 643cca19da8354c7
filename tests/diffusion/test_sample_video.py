"""Sample Video without ComfyUI, on tiny models: windows, cuts, resuming, hints, colours, and its cost."""

from contextlib import closing
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from reelbrush.nodes import host
from reelbrush.nodes.diffusion import sample_video
from reelbrush.nodes.diffusion.inversion import inversion
from reelbrush.nodes.diffusion.inversion.trajectory import WindowTrajectory
from reelbrush.nodes.diffusion.nodes_inject import Inject
from reelbrush.nodes.diffusion.nodes_video import SampleVideo
from reelbrush.nodes.diffusion.patching.layers import pick_layers, sigma_range
from reelbrush.nodes.diffusion.sample_video import windows_at
from reelbrush.nodes.diffusion.temporal import TemporalPatch
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.run import Run

from . import tiny
from .tiny_sampling import euler

SIZE, SIGMAS = (32, 24), torch.tensor([9.0, 1.5, 0.0])


class Vae:
    """Eight times smaller, four channels."""

    downscale_ratio = 8

    def __init__(self):
        self.encoded = []

    def encode(self, images):
        self.encoded.append(images.clone())
        small = avg_pool2d(images.permute(0, 3, 1, 2), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1) * 4 - 2

    def decode(self, latents):
        return interpolate(latents[:, :3] / 8 + 0.5, scale_factor=8).permute(0, 2, 3, 1)


@pytest.fixture(autouse=True)
def without_comfyui(monkeypatch):
    tiny.stand_in(monkeypatch)


def moving(frames, seed=0):
    """A smooth picture that pans slowly, so that no frame is a cut."""
    g = torch.Generator().manual_seed(seed)
    wide = interpolate(torch.rand(1, 3, 6, 8, generator=g), (48, 200), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([wide[:, : SIZE[1], t : t + SIZE[0]] for t in range(frames)]).permute(0, 2, 3, 1)


def sampled(frames, *, model=None, vae=None, **changes):
    """Sample Video's clip on frames [N, H, W, 3]."""
    model = tiny.tiny_model("mini") if model is None else model
    if "positive" not in changes:
        texts = {"positive": tiny.conditioning(model), "negative": tiny.conditioning(model, seed=1)}
        changes = texts | changes
    inputs = {
        "model": model,
        "vae": vae or Vae(),
        "sampler": SimpleNamespace(function=euler),
        "sigmas": SIGMAS,
        "cfg": 1.0,
        "start": "inversion",
        "invert_steps": 2,
        "refine": 0,
        "window": 6,
        "overlap": 2,
        "match_color": "off",
        "max_side": 0,
        "seed": 5,
    }
    return SampleVideo().sample(LazyVideo.from_frames(frames, 12), **inputs | changes)[0]


def rendered(video, start=0, border=0, states=None):
    with closing(Run([video.operation], start, border=border, states=states)) as run:
        return torch.cat([batch.frames for batch in run.outputs[0]])


# -- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (6, 0), (6, 2), (6, 3), (16, 4)])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 10, 11, 37])
def test_windows_cover_a_shot_without_a_superfluous_one(size, overlap, length):
    shown = {t: windows_at(t, 100, 100 + length, size, overlap) for t in range(100, 100 + length)}
    windows = sorted({w for found in shown.values() for w in found}, key=lambda w: w.first)
    assert all(1 <= len(found) <= 2 for found in shown.values())
    assert windows[0].first == 100 and windows[-1].end == 100 + length
    for a, b in pairwise(windows):
        assert b.first == a.first + size - overlap and a.end == a.first + size < b.end
    for t, found in shown.items():
        assert found == [w for w in windows if w.first <= t < w.end]


def test_a_clip_of_one_window_is_what_the_nodes_give_one_after_the_other():
    frames, model, vae = moving(5), tiny.tiny_model("mini"), Vae()
    video = sampled(frames, model=model, vae=vae)
    latents = vae.encode(frames)
    levels = sample_video.invert_levels(model, 2, SIGMAS)
    assert levels[-1] == 9 and (levels[:-1] < 9).all() and len(levels) >= 2
    noise, _ = inversion.invert(model, tiny.conditioning(model), latents, levels)
    out = host.run_sampler(
        model,
        SimpleNamespace(function=euler),
        SIGMAS,
        noise,
        torch.zeros_like(noise),
        tiny.conditioning(model),
        tiny.conditioning(model, seed=1),
        cfg=1.0,
        seed=0,
        report=None,
    )
    torch.testing.assert_close(rendered(video), vae.decode(out).clamp(0, 1), atol=1e-6, rtol=0)


def test_no_window_crosses_a_cut():
    first, second = moving(9), moving(9, seed=3).flip(1)
    vae, other = Vae(), Vae()
    together = rendered(sampled(torch.cat([first, second]), vae=vae))
    alone = rendered(sampled(second, vae=other))
    assert torch.equal(together[9:], alone)
    assert [len(w) for w in vae.encoded] == [6, 5, 6, 5]


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("color", "temporal", "border"), [("off", False, 9), ("previous", True, 9), ("previous", True, 7)]
)
def test_a_continued_render_is_bit_equal(color, temporal, border):
    frames = torch.cat([moving(13), moving(12, seed=3).flip(1)])
    model = tiny.tiny_model("mini")
    if temporal:
        TemporalPatch(pick_layers(model, "all"), sigma_range(model, 0, 1)).attach(model)
    video = sampled(frames, model=model, match_color=color)
    whole = rendered(video)
    with closing(Run([video.operation], border=border)) as run:
        states, at = {}, 0
        for batch in run.outputs[0]:
            at += len(batch)
            if at % border == 0 and at < len(frames):
                states[at] = run.states_before(at)
    assert len(states) >= 2
    for at, state in list(states.items())[:2]:
        assert torch.equal(rendered(video, at, border, state), whole[at:]), at


# -- what reaches the model ------------------------------------------------------------------------


class ControlNet:
    """Remembers the hints that it gets."""

    seen: list = []

    def copy(self):
        return ControlNet()

    def set_cond_hint(self, hint, strength, timestep_percent_range, vae=None):
        self.seen.append((hint, strength))
        return self

    def set_previous_controlnet(self, before):
        self.before = before


def test_every_frame_gets_its_own_hint(monkeypatch):
    ControlNet.seen.clear()
    frames = torch.cat([moving(9), moving(9, seed=3).flip(1)])
    hints = torch.arange(18).view(-1, 1, 1, 1).expand(18, *SIZE[::-1], 3) / 255
    vae = Vae()
    video = sampled(
        frames,
        vae=vae,
        control_video=LazyVideo.from_frames(hints, 12),
        control_net=ControlNet(),
        control_strength=0.7,
    )
    rendered(video)
    got = [(h[:, 0, 0, 0] * 255).round().int().tolist() for h, _ in ControlNet.seen]
    assert got == [list(range(0, 6)), list(range(4, 9)), list(range(9, 15)), list(range(13, 18))]
    assert {strength for _, strength in ControlNet.seen} == {0.7}
    for numbers, pictures in zip(got, vae.encoded, strict=True):
        assert torch.equal(frames[numbers], pictures)


def test_temporal_attention_sees_the_first_frame_of_the_shot_in_every_window():
    model, frames = tiny.tiny_model("mini"), moving(12)
    TemporalPatch(pick_layers(model, "all"), sigma_range(model, 0, 1)).attach(model)
    vae = Vae()
    made = rendered(sampled(frames, model=model, vae=vae))
    assert [len(w) for w in vae.encoded] == [6, 7, 5]  # one frame more from the second window on
    assert torch.equal(vae.encoded[1][0], vae.encoded[0][0])
    changed = frames.clone()
    changed[0] = changed[0].flip(0)
    assert not torch.allclose(rendered(sampled(changed, model=model))[8:], made[8:], atol=1e-4)


def test_the_model_is_evaluated_once_per_frame_step_and_window():
    frames, rows = moving(22), []
    model = tiny.tiny_model("mini")
    forward = model.model.diffusion_model.forward

    def counted(x, *args, **kwargs):
        rows.append(len(x))
        return forward(x, *args, **kwargs)

    model.model.diffusion_model.forward = counted
    rendered(sampled(frames, model=model, start="noise"))
    windows = [6, 6, 6, 6, 6]  # 22 frames: 0-5, 4-9, 8-13, 12-17, 16-21
    assert sum(rows) == sum(windows) * 2


def test_inject_features_gets_the_inversion_of_its_window():
    """The same as with a trajectory of the whole clip, in a clip of one window and in two."""
    model, frames = tiny.tiny_model("mini"), moving(9)
    settings = {"feature_end": 1.0, "attention_end": 1.0, "blend": "replace", "outside_end": 0.0}
    latents = Vae().encode(frames)
    levels = sample_video.invert_levels(model, 2, SIGMAS)
    _, content = inversion.invert(model, tiny.conditioning(model), latents, levels)
    blocks = ("last 4", "last 4", True, True)
    known = Inject().patch(model, content, *blocks, **settings)[0]
    live = Inject().patch(model, None, *blocks, **settings)[0]
    text = {"positive": tiny.conditioning(model), "negative": tiny.conditioning(model, seed=1)}
    wanted = rendered(sampled(frames, model=known, invert_model=model, **text))
    made = rendered(sampled(frames, model=live, invert_model=model, **text))
    plain = rendered(sampled(frames, model=model, **text))
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
    assert (plain - wanted).abs().mean() > 1e-3
    with pytest.raises(ValueError, match="set start to inversion"):
        sampled(frames, model=live, start="noise", **text)
    with pytest.raises(ValueError, match="connect the model before Inject Features"):
        rendered(sampled(frames, model=live, **text))


# -- borders and colours ---------------------------------------------------------------------------


def steps_of(frames):
    """The change from each frame to the next."""
    return (frames[1:] - frames[:-1]).square().mean((1, 2, 3)).sqrt()


def test_windows_do_not_show_at_their_borders(monkeypatch):
    frames = moving(30)
    border = torch.tensor([(t + 1) % 4 < 2 and t > 2 for t in range(29)])  # steps in and into an overlap
    steps = steps_of(rendered(sampled(frames, start="noise")))
    assert steps[border].mean() <= 1.1 * steps[~border].median()

    calls = iter(range(100))
    same = sample_video._same_noise
    monkeypatch.setattr(sample_video, "_same_noise", lambda latents, seed: same(latents, next(calls)))
    hard = steps_of(rendered(sampled(frames, start="noise", overlap=0)))
    at = torch.tensor([(t + 1) % 6 == 0 for t in range(29)])
    assert hard[at].mean() > 1.1 * hard[~at].median()


def test_matched_colours_do_not_drift(monkeypatch):
    """Twenty windows of a still clip; every window is a little redder than the one before it."""
    still = moving(1).expand(82, -1, -1, -1)
    windows = iter(range(1000))

    def redder(self, pictures, numbers, hints):
        return pictures * 0.8 + torch.tensor([0.002, 0, -0.001]) * next(windows)

    monkeypatch.setattr(sample_video.WindowSampler, "_pictures", redder)

    def drift(color):
        nonlocal windows
        windows = iter(range(1000))
        made = rendered(sampled(still, match_color=color)).mean((1, 2))
        return float((made - made[0]).abs().max())

    assert drift("off") > 5 / 255
    assert drift("previous") < 1 / 255 and drift("source") < 1 / 255


def test_both_starts_from_the_clip_with_equal_shares_of_two_noises():
    """At a low level: the mean over many noises is between the inversion and the clip."""
    model, frames, starts = tiny.tiny_model("mini"), moving(1), []
    sampler = SimpleNamespace(function=lambda denoise, x, sigmas: (starts.append(x.clone()), x)[1])
    settings = {"model": model, "sampler": sampler, "sigmas": torch.tensor([0.5, 0.0])}
    rendered(sampled(frames, start="inversion", **settings))
    clip = model.model.process_latent_in(Vae().encode(frames))
    wanted = clip + (starts[0] - clip) / 2**0.5
    for seed in range(200):
        rendered(sampled(frames, start="both", seed=seed, **settings))
    mean = torch.stack(starts[1:]).mean(0)
    spread = torch.stack(starts[1:]).std(0).mean()
    torch.testing.assert_close(mean, wanted, atol=0.15, rtol=0)
    assert abs(float(spread) - 0.5 / 2**0.5) < 0.05


def test_a_cancelled_window_leaves_no_content_behind():
    model = tiny.tiny_model("mini")
    settings = {"feature_end": 1.0, "attention_end": 1.0, "blend": "replace"}
    live = Inject().patch(model, None, "last 4", "last 4", True, True, **settings)[0]

    def cancelled(denoise, x, sigmas):
        raise RuntimeError("cancelled")

    text = {"positive": tiny.conditioning(model), "negative": tiny.conditioning(model, seed=1)}
    video = sampled(
        moving(3), model=live, invert_model=model, sampler=SimpleNamespace(function=cancelled), **text
    )
    with pytest.raises(RuntimeError, match="cancelled"):
        rendered(video)
    (content,) = WindowTrajectory.of(live)
    with pytest.raises(ValueError, match="has no content here"):
        content.latents  # noqa: B018


# -- messages --------------------------------------------------------------------------------------


def test_wrong_settings_are_explained():
    frames = moving(3)
    for changes, sentence in [
        ({"overlap": 4}, "overlap is 4 and the window 6 frames"),
        ({"control_net": ControlNet()}, "connect control_video"),
        ({"control_video": LazyVideo.from_frames(frames, 12)}, "connect control_net"),
        ({"sigmas": torch.tensor([1.0])}, "sigmas has no step"),
        ({"match_color": "previous", "overlap": 0}, "set overlap to 1 or more"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            sampled(frames, **changes)


def test_a_video_models_groups_of_frames_are_filled_up():
    vae = SimpleNamespace(temporal_compression_decode=lambda: 4)
    for count, length in [(1, 1), (2, 5), (5, 5), (6, 9), (16, 17)]:
        assert len(sample_video._whole_groups(moving(count), vae)) == length
