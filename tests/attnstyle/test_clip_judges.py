"""CLIP judges in a real ComfyUI and from a Hugging Face folder, with small random weights."""

import os
from pathlib import Path

import pytest
import torch

from reelbrush.nodes.attnstyle.comfy_judge import ComfyJudge
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.folder_judge import FolderJudge
from reelbrush.nodes.attnstyle.train import Settings, train

from .small_clips import comfy_clip, comfy_vision, save_folder

SETTINGS = Settings(epochs=3, patches=4, threshold=0.0, weights=Weights(content=0.0))


@pytest.fixture
def pair(tmp_path):
    with torch.inference_mode():  # as core loaders make them
        return comfy_clip(), comfy_vision(tmp_path)


@pytest.mark.comfyui
def test_embeddings_are_those_of_the_two_towers(pair):
    clip, vision = pair
    judge = ComfyJudge(clip, vision)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)) / 255
    with torch.inference_mode():  # ComfyUI's own forward, where ComfyUI runs it
        own = vision.encode_image(pixels)["image_embeds"].clone()
    torch.testing.assert_close(
        judge.see(pixels.movedim(-1, 1))[0], torch.nn.functional.normalize(own, dim=-1), atol=1e-5, rtol=1e-4
    )
    with torch.no_grad():
        pooled = clip.encode_from_tokens(clip.tokenize("a red dog"), return_pooled="unprojected")[1]
        weight = clip.cond_stage_model.clip_l.transformer.text_projection.weight
        projected = pooled.float() @ weight.float().T
    expected = torch.nn.functional.normalize(projected, dim=-1)
    torch.testing.assert_close(judge.text(["a red dog"]), expected, atol=1e-5, rtol=1e-4)
    assert (judge.text(["a red dog"]) @ judge.text(["two ships"]).T).item() < 0.999
    tokens = judge.see(pixels.movedim(-1, 1))[1]
    assert tokens.shape == (2, 16, 24)


@pytest.mark.comfyui
def test_the_gradient_is_that_of_a_small_step(pair):
    judge = ComfyJudge(*pair)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    goal = judge.text(["a red dog"]).clone()
    with torch.inference_mode(False), torch.enable_grad(), judge.ready():
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((judge.see(x)[0] * goal).sum(), x)
        way = slope / slope.norm()
        with torch.no_grad():
            near = [(judge.see(x + s * 0.02 * way)[0] * goal).sum() for s in (1, -1)]
    assert (near[0] - near[1]).item() / 0.04 == pytest.approx(slope.norm().item(), rel=0.02)


@pytest.mark.comfyui
def test_a_training_in_inference_mode_leaves_the_towers_as_they_were(pair, pictures):
    judge = ComfyJudge(*pair)
    models = (pair[0].cond_stage_model, pair[1].model)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    with torch.inference_mode():
        result = train(judge, pictures(2, 24, 24), "a red dog", "a photo", SETTINGS)
        again = train(judge, pictures(2, 24, 24), "a red dog", "a photo", SETTINGS)
    assert result.losses == again.losses
    assert result.losses["patches"][-1] != result.losses["patches"][0]
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert judge._weights is None


@pytest.mark.comfyui
def test_a_prompt_does_not_depend_on_what_the_clip_was_used_for_before(pair):
    clip, vision = pair
    judge = ComfyJudge(clip, vision)
    first = judge.text(["a red dog"])
    skipping = clip.clone()
    skipping.clip_layer(-2)
    with torch.no_grad():
        skipping.encode_from_tokens(skipping.tokenize("something"), return_pooled=True)
    torch.testing.assert_close(judge.text(["a red dog"]), first)
    state = clip.cond_stage_model.clip_l
    assert (state.layer, state.layer_idx, state.return_projected_pooled) == state.options_default


@pytest.mark.comfyui
def test_wrong_pairs_are_refused_in_words(pair, tmp_path):
    clip, vision = pair
    projection = clip.cond_stage_model.clip_l.transformer.text_projection
    with pytest.raises(ValueError, match="have l 16 numbers, the CLIP_VISION's pictures 24"):
        ComfyJudge(comfy_clip(16), vision)
    for weight, said in ((torch.eye(24), "is the identity"), (torch.zeros(24, 24), "is missing")):
        with torch.inference_mode():
            projection.weight.copy_(weight)
        with pytest.raises(ValueError, match=said) as caught:
            ComfyJudge(clip, vision)
        assert "Load CLIP" in str(caught.value) and "\n" not in str(caught.value)
    siglip = comfy_vision(tmp_path, model_type="siglip_vision_model")
    with pytest.raises(ValueError, match="is not a CLIP vision tower"):
        ComfyJudge(clip, siglip)
    with torch.inference_mode():
        vision.model.visual_projection.weight.zero_()
    with pytest.raises(ValueError, match="the CLIP_VISION's projection is missing"):
        ComfyJudge(clip, vision)


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("transformers")
    return save_folder(tmp_path / "clip")


def test_a_folder_judge_agrees_with_transformers(folder):
    import transformers

    with torch.inference_mode():
        judge = FolderJudge(folder)
    model = transformers.CLIPModel.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        ["a red dog", "a photo"], padding=True, return_tensors="pt"
    )
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = model(**tokens, pixel_values=(x - 0.4) / 0.3)
    torch.testing.assert_close(judge.text(["a red dog", "a photo"]), out.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.see(x)[0], out.image_embeds, atol=1e-5, rtol=1e-4)
    mine = judge.scale * judge.see(x)[0] @ judge.text(["a red dog", "a photo"]).T
    torch.testing.assert_close(mine, out.logits_per_image, atol=1e-3, rtol=1e-4)


def test_a_folder_judge_trains_in_inference_mode(folder, pictures):
    with torch.inference_mode():
        result = train(FolderJudge(folder), pictures(1, 24, 24), "a red dog", "a photo", SETTINGS)
    assert len(result.losses["patches"]) == 3


def test_a_folder_that_cannot_be_loaded_is_said_in_one_sentence(folder):
    pytest.importorskip("transformers")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="contains no CLIP that transformers can load") as caught:
        FolderJudge(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_long_text_is_cut_at_what_the_text_tower_can_read(folder):
    judge = FolderJudge(folder)
    long, longer = (judge.text([" ".join(["red dog"] * n)]) for n in (60, 90))
    assert torch.isfinite(long).all()
    torch.testing.assert_close(long, longer)


def test_a_folder_judge_stands_on_the_device_only_while_it_is_needed(folder, pictures, monkeypatch):
    judge, seen = FolderJudge(folder), []
    move = judge.model.to
    monkeypatch.setattr(judge.model, "to", lambda where: seen.append(str(where)) or move(where))
    with monkeypatch.context() as patch:
        patch.setattr("reelbrush.nodes.host.offload_device", lambda: torch.device("cpu:0"))
        train(judge, pictures(1, 24, 24), "a red dog", "a photo", SETTINGS)
    assert seen == ["cpu", "cpu:0"]  # once there, once back


def test_a_broken_configuration_is_said_in_one_sentence(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json in the folder 'clip' is no configuration"
    ):
        FolderJudge(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json in the folder 'clip' is no configuration"):
        FolderJudge(folder)


@pytest.mark.comfyui
def test_the_vision_module_still_has_the_parts_that_the_tower_uses():
    """Newer ComfyUIs may rename them: then ComfyJudge must follow."""
    source = (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "clip_model.py").read_text()
    for name in ("pre_layrnorm", "post_layernorm", "layer_norm1", "layer_norm2", "self_attn", "mlp"):
        assert f"self.{name} =" in source
