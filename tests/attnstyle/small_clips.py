"""CLIPs small enough for tests: ComfyUI's two halves, and a Hugging Face folder, with random weights."""

import json
from types import SimpleNamespace

import torch

VISION = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 64,
    "model_type": "clip_vision_model",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 24,
}


def randomised(module, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.7 / (p.shape[-1] if p.ndim else 1) ** 0.5)
    return module


def comfy_vision(folder, **changes):
    import comfy.clip_vision

    path = folder / "vision.json"
    path.write_text(json.dumps({**VISION, **changes}))
    made = comfy.clip_vision.ClipVisionModel(str(path))
    randomised(made.model)
    return made


def comfy_clip(width=24):
    import comfy.sd
    import comfy.sd1_clip

    small = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    target = SimpleNamespace(
        params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer
    )
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": small})
    randomised(clip.cond_stage_model, 1)
    return clip


def save_folder(path):
    """A whole CLIP as transformers saves it, with a tokenizer of a few words."""
    import transformers

    path.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "red", "dog", "photo", "of", "in", "the", "style"]
    vocab = {w: i for i, w in enumerate(words[:2] + [w + "</w>" for w in words[2:]])}
    letters = sorted(set("".join(words[2:])))
    for letter in letters:
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault(letter + "</w>", len(vocab))
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    text = {"vocab_size": len(vocab), "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 40, "eos_token_id": 1, "bos_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3})
    )
    return path
