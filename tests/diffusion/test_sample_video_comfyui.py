"""Sample Video in a real ComfyUI: its samplers, a ControlNet, a video model, and the key of a graph."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from reelbrush.nodes import host
from reelbrush.nodes.diffusion.nodes_video import SampleVideo
from reelbrush.nodes.diffusion.sample_video import SampleFrames
from reelbrush.nodes.video.lazy_video import LazyVideo

from . import tiny
from .test_sample_video import Vae, moving, rendered, sampled

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not os.environ.get("COMFYUI_PATH"), reason="needs COMFYUI_PATH"),
]


@pytest.fixture
def model():
    return tiny.comfy_model("mini")


def core_sampler(name="euler"):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def core_ksampler(model, latents, seed=3):
    import comfy.sample

    noise = comfy.sample.prepare_noise(latents, seed)
    text = tiny.conditioning(model)
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", text, text, latents, seed=seed)


@pytest.mark.parametrize("start", ["inversion", "noise", "both"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_core_samplers_continue_bit_equal_and_leave_the_model_alone(model, start, name, home):
    before = core_ksampler(model, torch.ones(2, 4, 3, 4))
    video = sampled(moving(14), model=model, sampler=core_sampler(name), start=start)
    whole = rendered(video)
    assert torch.isfinite(whole).all() and float(whole.std()) > 0.01

    class CancellingVae(Vae):
        """Its third window is cancelled, once."""

        def encode(self, images):
            if len(self.encoded) == 2:
                self.encoded.append(None)
                raise RuntimeError("cancelled")
            return super().encode(images)

    vae = CancellingVae()
    again = sampled(moving(14), model=model, sampler=core_sampler(name), start=start, vae=vae)
    with pytest.raises(RuntimeError, match="cancelled"):
        again.save_to(home / "again.mkv", codec="ffv1")
    again.save_to(home / "again.mkv", codec="ffv1")
    assert len(vae.encoded) == 5  # the first 8 frames were kept: two of the three windows follow
    video.save_to(home / "whole.mkv", codec="ffv1")
    made, wanted = (
        torch.cat(list(LazyVideo.from_file(home / f"{file}.mkv").chunks(32))) for file in ("again", "whole")
    )
    assert torch.equal(made, wanted)
    assert torch.equal(core_ksampler(model, torch.ones(2, 4, 3, 4)), before)


def test_hints_reach_their_frames_through_a_real_control_net(model):
    """The 'network' sends back its hint: what the UNet gets tells which frame's hint it is."""
    import comfy.controlnet

    seen = []

    class Echo(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, *args):
            hint = self.cond_hint_original
            seen.append((len(x_noisy) // batched_number, (hint[:, 0, 0, 0] * 255).round().int().tolist()))
            return None

        def copy(self):
            made = Echo()
            self.copy_to(made)
            return made

    frames = moving(14)
    hints = torch.arange(14).view(-1, 1, 1, 1).expand(14, 24, 32, 3) / 255
    video = sampled(
        frames,
        model=model,
        sampler=core_sampler(),
        start="noise",
        control_video=LazyVideo.from_frames(hints, 12),
        control_net=Echo(),
    )
    rendered(video)
    windows = [list(range(first, first + 6)) for first in (0, 4, 8)]
    assert [hint for _, hint in seen[::2]] == windows and {rows for rows, _ in seen} == {6}


class VideoVae:
    """Stands in for a video model's VAE: 8 times smaller, 4 times shorter after the first frame."""

    latent_dim = 3

    def temporal_compression_decode(self):
        return 4

    def encode(self, images):
        assert (len(images) - 1) % 4 == 0
        groups = [images[:1], *images[1:].split(4)]
        small = torch.stack([g.mean(0) for g in groups], 1 - 1).permute(3, 0, 1, 2)
        small = interpolate(small, scale_factor=1 / 8, mode="area")
        return small.repeat(6, 1, 1, 1)[None, :16]

    def decode(self, latents):
        big = interpolate(latents[0, :3], scale_factor=8).permute(1, 2, 3, 0)
        return torch.cat([big[:1], big[1:].repeat_interleave(4, 0)])[None]


def wan():
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    unet = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": 64,
        "ffn_dim": 64,
        "num_heads": 2,
        "num_layers": 1,
        "freq_dim": 32,
        "text_dim": 32,
        "in_dim": 16,
        "out_dim": 16,
        "dtype": torch.float32,
    }
    base = comfy.supported_models.WAN21_T2V(unet).get_model({}, device="cpu")
    base.diffusion_model = tiny.randomize(base.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def test_a_video_model_samples_windows_of_its_own_length():
    model, vae = wan(), VideoVae()
    text = [[torch.zeros(1, 8, 32), {}]]
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    settings = {"model": model, "vae": vae, "positive": text, "negative": text, "sigmas": sigmas}
    frames = interpolate(moving(14).permute(0, 3, 1, 2), (32, 32)).permute(0, 2, 3, 1)
    video = sampled(frames, **settings, sampler=core_sampler(), start="noise", window=9, overlap=2)
    made = rendered(video)
    assert made.shape == frames.shape and torch.isfinite(made).all() and float(made.std()) > 0.01
    with pytest.raises(ValueError, match="this is a flow model"):
        sampled(frames, **settings, sampler=core_sampler(), start="inversion")


def test_the_key_of_a_graph_changes_with_everything_above(tmp_path, monkeypatch):
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("loras", str(tmp_path))
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"one")
    reads = iter("aab")
    loader = SimpleNamespace(IS_CHANGED=lambda image: image + next(reads, "b"))
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Reads", loader)

    class Model:
        pass

    thing = Model()

    def key(strength=1.0, image="x", other=0, of=thing, links=(("model", 2),)):
        prompt = {
            "1": {"class_type": "Reads", "inputs": {"image": image}},
            "2": {
                "class_type": "LoraLoader",
                "inputs": {"name": "style.safetensors", "s": strength, "m": ["1", 0]},
            },
            "3": {"class_type": "Other", "inputs": {"x": other}},
            "4": {
                "class_type": "SampleVideo",
                "inputs": {**{k: [str(v), 0] for k, v in links}, "video": ["3", 0], "seed": other},
            },
        }
        return host.graph_key(prompt, "4", ("model", "positive", "negative"), of)

    first = key()
    assert first == key(other=1)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Reads", SimpleNamespace())
    plain = key()
    assert plain != first and key() == plain
    assert key(strength=0.5) != plain and key(image="y") != plain
    lora.write_bytes(b"another")
    assert key() != plain
    assert host.graph_key(None, "4", ("model",), thing) != host.graph_key(None, "4", ("model",), thing)
    one, other = (("positive", 1), ("negative", 2)), (("negative", 1), ("positive", 2))
    assert key(links=one) != key(links=other)
    again = Model()  # a node that gets a list of models is called once for each
    assert key() == key() != key(of=again)
    monkeypatch.setitem(
        nodes.NODE_CLASS_MAPPINGS, "Reads", SimpleNamespace(IS_CHANGED=lambda image: float("nan"))
    )
    assert key() != key()


def test_an_equal_graph_has_an_equal_fingerprint(model):
    prompt = {
        "1": {"class_type": "X", "inputs": {"a": 1}},
        "2": {"class_type": "S", "inputs": {"model": ["1", 0]}},
    }

    def fingerprint(seed, vae):
        video = LazyVideo.from_frames(moving(3), 12)
        text = tiny.conditioning(model)
        made = SampleVideo().sample(
            video, model, torch.tensor([1.0, 0.0]), vae, "noise", 0, prompt, "2",
            positive=text, negative=text, sampler=core_sampler(), cfg=1.0, invert_steps=0, refine=0,
            window=4, overlap=1, match_color="off", seed=seed,
        )  # fmt: skip
        assert isinstance(made[0].operation, SampleFrames)
        return made[0].operation.fingerprint

    assert fingerprint(1, Vae()) == fingerprint(1, Vae()) != fingerprint(2, Vae())
