"""Distill Style (Video): warm starts in a stream, cuts, resuming, and what is read. Without ComfyUI."""

from contextlib import closing

import pytest
import torch
from torch.nn.functional import interpolate

from reelbrush.nodes.distill import features
from reelbrush.nodes.distill import video as module
from reelbrush.nodes.distill.clip import Schedule, stylize
from reelbrush.nodes.distill.nodes_video import ADVideo
from reelbrush.nodes.distill.optimize import DistillRecipe, References
from reelbrush.nodes.distill.run import in_model_space
from reelbrush.nodes.flow.estimate import estimate
from reelbrush.nodes.video.lazy_video import LazyVideo
from reelbrush.nodes.video.run import Run

from ..diffusion.test_sample_video import Vae, moving
from .small import model, null


class InferenceVae(Vae):
    """As in ComfyUI, its weights may be tensors of the inference mode: they take no part in gradients."""

    def encode(self, images):
        assert torch.is_inference_mode_enabled()
        return super().encode(images)

    def decode(self, latents):
        assert torch.is_inference_mode_enabled()
        return super().decode(latents)


def distilled(frames, of=None, **changes):
    of = model() if of is None else of
    g = torch.Generator().manual_seed(8)
    style = interpolate(torch.rand(1, 3, 8, 8, generator=g), (32, 32)).permute(0, 2, 3, 1)
    settings = {"content_weight": 0.25, "steps": 6, "warm_steps": 3, "max_side": 0, "style": style} | changes
    clip = LazyVideo.from_frames(frames, 12)
    return ADVideo().distill(clip, of, InferenceVae(), null(of), **settings)[0]


def rendered(video, start=0, border=0, states=None):
    with closing(Run([video.operation], start, border=border, states=states)) as run:
        return torch.cat([batch.frames for batch in run.outputs[0]])


def test_it_equals_the_node_that_has_the_whole_clip():
    frames, of, vae = moving(4), model(), Vae()
    video = distilled(frames, of)
    style = video.operation.style
    with features.opened(of, null(of)) as (_, reader):
        content = in_model_space(torch.cat([vae.encode(f[None]) for f in frames]), reader)
        flow = estimate(frames, module.METHOD)
        references = References(reader, in_model_space(vae.encode(style), reader), content)
        z = stylize(references, content, DistillRecipe(), schedule=Schedule(6, 3), flow=flow)
        wanted = vae.decode(reader.base.process_latent_out(z)).clamp(0, 1)
    torch.testing.assert_close(rendered(video), wanted, atol=1e-5, rtol=0)


def test_a_shot_does_not_know_the_one_before_and_its_first_frame_takes_all_steps(monkeypatch):
    first, second = moving(5), moving(5, seed=3).flip(1)
    taken = []
    distill = module.distill

    def counted(references, start, timesteps, *args, **options):
        taken.append(len(timesteps))
        return distill(references, start, timesteps, *args, **options)

    monkeypatch.setattr(module, "distill", counted)
    together = rendered(distilled(torch.cat([first, second])))
    assert taken == [6, 3, 3, 3, 3] * 2
    assert torch.equal(together[5:], rendered(distilled(second)))


@pytest.mark.parametrize("border", [3, 8])
def test_a_continued_render_is_bit_equal(border):
    video = distilled(torch.cat([moving(7), moving(5, seed=3).flip(1)]))
    whole = rendered(video)
    with closing(Run([video.operation], border=border)) as run:
        states, at = {}, 0
        for batch in run.outputs[0]:
            at += len(batch)
            if at % border == 0 and at < 12:
                states[at] = run.states_before(at)
    assert states
    for at, state in states.items():
        assert torch.equal(rendered(video, at, border, state), whole[at:]), at


def test_the_style_is_read_once_per_timestep(monkeypatch):
    read, look = [], features.FeatureReader.__call__

    def counted(self, z, timestep, names, **options):
        if names == "kv":
            read.append(timestep)
        return look(self, z, timestep, names, **options)

    monkeypatch.setattr(features.FeatureReader, "__call__", counted)
    rendered(distilled(torch.cat([moving(10), moving(4, seed=3).flip(1)])))
    schedule = Schedule(6, 3)
    assert sorted(read) == sorted({*schedule.timesteps(False), *schedule.timesteps(True)})


def test_short_memory_recomputes_from_the_first_step_on(monkeypatch):
    frames, states, distill = moving(2), [], module.distill

    def noted(references, *args, **options):
        states.append(references.reader.recomputation.on)
        return distill(references, *args, **options)

    monkeypatch.setattr(module, "distill", noted)
    plain = rendered(distilled(frames))
    monkeypatch.setattr(module.host, "free_memory", lambda *_: 1 << 20)
    torch.testing.assert_close(rendered(distilled(frames)), plain, rtol=0, atol=1e-5)
    assert states == [False, False, True, True]
