"""LoRA files: every format gives the same low-rank changes; other files and other bases raise errors."""

import json
import re
from copy import deepcopy
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reelbrush.nodes.diffusion.lora.file import LowRank, StyleLoRA, load, save
from reelbrush.nodes.diffusion.lora.names import kohya_name, naming, path_of
from reelbrush.nodes.diffusion.lora.train import projections

from .. import tiny
from ..lora_tools import change_of


@cache
def unet(layout):
    return tiny.tiny_model(layout)


def lora_for(model, words="q,k,v,out", rank=3, scale=0.5, seed=0):
    """A LoRA with random parts for every projection that `words` name."""
    g, net = torch.Generator().manual_seed(seed), model.model.diffusion_model
    parts = {}
    for path in projections(model, words):
        out, into = net.get_submodule(path).weight.shape
        parts[path] = LowRank(
            torch.randn(rank, into, generator=g), torch.randn(out, rank, generator=g), scale
        )
    return StyleLoRA("test", parts)


def diffusers_names(layout):
    """ComfyUI's path -> diffusers' name of every attention projection: counted block by block, as diffusers
    builds its UNet, independent of the reader's arithmetic."""
    config, found = tiny.LAYOUTS[layout], {}
    levels = len(config["channel_mult"])
    depths = iter(config["transformer_depth"])
    place = 1

    def add(theirs, ours, depth):
        for t in range(depth):
            for attn in ("attn1", "attn2"):
                for p in ("to_q", "to_k", "to_v", "to_out.0"):
                    end = f"transformer_blocks.{t}.{attn}.{p}"
                    found[f"{ours}.1.{end}"] = f"{theirs}.{end}"

    for level in range(levels):
        for i in range(config["num_res_blocks"][level]):
            add(f"down_blocks.{level}.attentions.{i}", f"input_blocks.{place}", next(depths))
            place += 1
        place += 1  # the downsampler is a block of its own
    add("mid_block.attentions.0", "middle_block", config["transformer_depth_middle"])
    depths, place = list(config["transformer_depth_output"]), 0
    for level in range(levels):
        for i in range(config["num_res_blocks"][levels - 1 - level] + 1):
            add(f"up_blocks.{level}.attentions.{i}", f"output_blocks.{place}", depths.pop())
            place += 1
    return found


def spelled(lora, layout, style):
    """The tensors of a file in one of the formats, and the scale that the file can tell."""
    names, tensors = diffusers_names(layout), {}
    for path, part in lora.weights.items():
        name, sgm = names[path], path.replace(".", "_")
        alpha = torch.tensor(part.scale * len(part.down))
        pairs = {
            "kohya": (f"lora_unet_{name}".replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
            "kohya sgm": (f"lora_unet_{sgm}", ".lora_down.weight", ".lora_up.weight"),
            "comfyui": (f"diffusion_model.{path}", ".lora_down.weight", ".lora_up.weight"),
            "diffusers": (f"unet.{name}", ".lora_A.weight", ".lora_B.weight"),
            "older diffusers": (f"unet.{name}", ".lora.down.weight", ".lora.up.weight"),
            "peft": (f"base_model.model.{name}", ".lora_A.default.weight", ".lora_B.default.weight"),
            "processors": (
                re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1_lora", name),
                ".down.weight",
                ".up.weight",
            ),
        }
        key, down, up = pairs[style]
        tensors[key + down], tensors[key + up] = part.down, part.up
        if style in ("kohya", "kohya sgm", "comfyui"):
            tensors[f"{key}.alpha"] = alpha
    return {k: v.contiguous() for k, v in tensors.items()}


def assert_same(a, b):
    assert a.weights.keys() == b.weights.keys()
    for path, part in a.weights.items():
        assert torch.equal(change_of(part), change_of(b.weights[path])), path


# -- formats ---------------------------------------------------------------------------------------


STYLES = ["kohya", "kohya sgm", "comfyui", "diffusers", "older diffusers", "peft", "processors"]


@pytest.mark.parametrize("layout", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("style", STYLES)
def test_every_format_is_read(layout, style, tmp_path):
    with_alpha = style in ("kohya", "kohya sgm", "comfyui")
    lora = lora_for(unet(layout), scale=0.5 if with_alpha else 1.0)
    save_file(spelled(lora, layout, style), tmp_path / "style.safetensors")
    found = load(tmp_path / "style.safetensors")
    assert_same(found, lora)
    found.check(unet(layout))
    assert found.name == "style"


def test_a_processor_checkpoint_in_a_bin_file(tmp_path):
    lora = lora_for(unet("sd15"), scale=1.0)
    torch.save(spelled(lora, "sd15", "processors"), tmp_path / "pytorch_lora_weights.bin")
    assert_same(load(tmp_path / "pytorch_lora_weights.bin"), lora)


def test_half_precision_is_read_as_float32(tmp_path):
    lora = lora_for(unet("mini"))
    tensors = {k: v.half() for k, v in spelled(lora, "mini", "comfyui").items()}
    save_file(tensors, tmp_path / "a.safetensors")
    part = next(iter(load(tmp_path / "a.safetensors").weights.values()))
    assert part.down.dtype == part.up.dtype == torch.float32


def test_one_by_one_convolutions_and_feed_forward_count(tmp_path):
    key = "lora_unet_down_blocks_1_attentions_0_"
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 64, 1, 1, generator=g), torch.randn(64, 2, 1, 1, generator=g)
    inner = f"{key}transformer_blocks_0_ff_net_"
    tensors = {
        f"{key}proj_in.lora_down.weight": down,
        f"{key}proj_in.lora_up.weight": up,
        f"{inner}0_proj.lora_down.weight": torch.randn(2, 64, generator=g),
        f"{inner}0_proj.lora_up.weight": torch.randn(512, 2, generator=g),
        f"{inner}2.lora_down.weight": torch.randn(2, 256, generator=g),
        f"{inner}2.lora_up.weight": torch.randn(64, 2, generator=g),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert set(found.weights) == {
        "input_blocks.4.1.proj_in",
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
        "input_blocks.4.1.transformer_blocks.0.ff.net.2",
    }
    torch.testing.assert_close(
        change_of(found.weights["input_blocks.4.1.proj_in"]), up[..., 0, 0] @ down[..., 0, 0]
    )
    found.check(unet("sd15"))


def test_what_is_no_part_of_a_style_lora_is_left_out_and_said(tmp_path, caplog):
    lora = lora_for(unet("sd15"))
    more = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.zeros(3, 768),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.zeros(768, 3),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.zeros(3, 32, 3, 3),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.zeros(32, 3, 1, 1),
    }
    save_file(spelled(lora, "sd15", "kohya") | more, tmp_path / "a.safetensors")
    with caplog.at_level("INFO", "reelbrush"):
        assert_same(load(tmp_path / "a.safetensors"), lora)
    assert "2 of the text encoder and 2 outside the UNet's transformer blocks" in caplog.text


def test_alphas_of_a_peft_configuration(tmp_path):
    lora = lora_for(unet("sd15"), "q,v", rank=4)
    tensors = spelled(lora, "sd15", "peft")
    save_file(
        {k.replace(".default", ""): v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    config = {"r": 4, "lora_alpha": 2, "alpha_pattern": {"attn2.to_v": 12}, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    scales = {path: part.scale for path, part in load(tmp_path / "adapter_model.safetensors").weights.items()}
    assert {s for path, s in scales.items() if path.endswith("attn2.to_v")} == {3.0}
    assert {s for path, s in scales.items() if not path.endswith("attn2.to_v")} == {0.5}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    part = load(tmp_path / "adapter_model.safetensors").weights
    assert next(p.scale for path, p in part.items() if path.endswith("attn1.to_q")) == 1.0  # 2 / sqrt(4)


@pytest.mark.parametrize(
    "layout, keys", [("sd15", "diffusers"), ("sd21", "diffusers"), ("sdxl", "sgm"), ("mini", "sgm")]
)
def test_what_is_saved_is_kohyas_and_comes_back(layout, keys, tmp_path):
    model = unet(layout)
    lora = lora_for(model, "q,k,v")
    assert naming(model) == keys
    save(
        lora,
        tmp_path / "sub" / "test.safetensors",
        naming(model),
        {"ss_steps": 200, "reelbrush": {"seed": 1}},
    )
    expected = spelled(lora, layout, "kohya" if keys == "diffusers" else "kohya sgm")
    got = load_file(tmp_path / "sub" / "test.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[k], expected[k]) for k in expected)
    assert_same(load(tmp_path / "sub" / "test.safetensors"), lora)
    with safe_open(tmp_path / "sub" / "test.safetensors", "pt") as file:
        about = file.metadata()
    assert (
        about["ss_network_dim"] == "3" and about["ss_network_alpha"] == "1.5" and about["ss_steps"] == "200"
    )
    base = {"sd15": "sd_v1", "sd21": "sd_v2", "sdxl": "sdxl_base_v1-0", "mini": "sd_v1"}[layout]
    assert about["ss_base_model_version"] == base
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["test.safetensors"]


def test_names_by_hand():
    assert path_of("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0") == (
        "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0"
    )
    assert path_of("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out") == (
        "middle_block.1.transformer_blocks.0.attn1.to_out.0"
    )
    assert path_of("lora_unet_down_blocks_2_attentions_1_proj_out") == "input_blocks.8.1.proj_out"
    assert path_of("down_blocks.0.resnets.0.conv1") is None
    assert path_of("transformer.transformer_blocks.3.attn.to_q") is None
    assert (
        kohya_name("output_blocks.5.1.proj_in", "diffusers") == "lora_unet_up_blocks_1_attentions_2_proj_in"
    )


# -- errors ----------------------------------------------------------------------------------------


def refused(tensors, folder, metadata=None):
    save_file(tensors, folder / "file.safetensors", metadata)
    with pytest.raises(ValueError, match=r"file.safetensors") as caught:
        load(folder / "file.safetensors")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "key, words",
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "a LoKr"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "a transformer model"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a transformer model"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text encoder alone"),
        ("control_model.zero_convs.0.0.weight", "a ControlNet"),
        ("emb_params", "a textual inversion"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight", "AnimateDiff"),
        ("decoder.conv_in.weight", "a VAE"),
        ("something.weight", "all its weights are unknown"),
    ],
)
def test_a_file_that_is_not_a_lora_raises_an_error_that_says_what_it_is(key, words, tmp_path):
    assert words in refused({key: torch.zeros(2, 2)}, tmp_path)


def test_a_dora_raises_an_error(tmp_path):
    tensors = spelled(lora_for(unet("sd15")), "sd15", "kohya")
    key = next(iter(tensors)).partition(".")[0]
    assert "a DoRA" in refused(tensors | {f"{key}.dora_scale": torch.ones(32, 1)}, tmp_path)


def test_one_of_our_other_files(tmp_path):
    words = refused({"latents": torch.zeros(1)}, tmp_path, {"format": "reelbrush trajectory 1"})
    assert "a reelbrush trajectory file" in words


def test_damaged_files(tmp_path):
    tensors = spelled(lora_for(unet("mini")), "mini", "comfyui")
    down = next(k for k in tensors if "lora_down" in k)
    assert "the down matrix" in refused({k: v for k, v in tensors.items() if k != down}, tmp_path)
    assert "rank 2" in refused(tensors | {down: torch.zeros(2, tensors[down].shape[1])}, tmp_path)
    for name in ("junk.safetensors", "junk.bin"):
        (tmp_path / name).write_bytes(b"\x00\x01junk" * 40)
        with pytest.raises(ValueError, match="cannot be read"):
            load(tmp_path / name)


def test_another_base_raises_an_error():
    one, two, xl = (unet(k) for k in ("sd15", "sd21", "sdxl"))
    lora = lora_for(one)
    lora.check(one)
    for other, words in ((two, "for sd2"), (xl, "for sdxl")):
        with pytest.raises(ValueError, match="trained for another base") as caught:
            lora.check(other)
        assert "one for sd1" in str(caught.value) and f"load a LoRA {words}" in str(caught.value)
    with pytest.raises(ValueError, match=r"maps \d+ channels to \d+ at .*it looks like one for sdxl"):
        lora_for(xl, "k").check(one)
    with pytest.raises(ValueError, match="not a Stable Diffusion"):
        lora.check(torch.nn.Linear(2, 2))


def test_a_clone_does_not_copy_it():
    lora = lora_for(unet("mini"))
    assert deepcopy({"patch": lora})["patch"] is lora
