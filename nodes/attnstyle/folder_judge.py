"""A CLIP from a local Hugging Face folder, through transformers (the extra `judge`)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import host
from .judge import EmbeddingJudge

KIND = "style_judge"


class FolderJudge(EmbeddingJudge):
    """Both towers of one CLIP checkpoint: config.json, model.safetensors, tokenizer files."""

    def __init__(self, folder: Path):
        clip, tokenizer_class = _transformers()
        check_folder(folder)
        # weights that are loaded in inference mode cannot be used with autograd
        with torch.inference_mode(False):
            try:
                model = clip.from_pretrained(folder, local_files_only=True, use_safetensors=True)
                self.tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
            except Exception as error:  # each kind of broken file raises another exception
                why = " ".join(str(error).split())[:160]
                raise ValueError(
                    f"the folder {folder.name!r} contains no CLIP that transformers can load ({why}): "
                    f"models/{KIND}/<name>/ needs config.json, model.safetensors and the tokenizer files"
                ) from error
            self.model = model.float().requires_grad_(False).train(False)
        self.size = self.model.config.vision_config.image_size
        self.length = self.model.config.text_config.max_position_embeddings
        self.scale = float(self.model.logit_scale.exp())
        preprocess = folder / "preprocessor_config.json"
        if preprocess.is_file():
            numbers = read_json(preprocess)
            self.mean = tuple(numbers.get("image_mean", self.mean))
            self.std = tuple(numbers.get("image_std", self.std))
        self._held = False

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Keep the model on the computing device for the block. Afterwards its memory is free again."""
        if self._held:
            yield
            return
        host.make_room(sum(p.numel() * p.element_size() for p in self.model.parameters()))
        self._held = True
        try:
            with torch.inference_mode(False):
                self.model.to(host.device())
            yield
        finally:
            self._held = False
            with torch.inference_mode(False):
                self.model.to(host.offload_device())

    def text(self, texts: list[str]) -> Tensor:
        # truncate to the positions of the text tower: some tokenizer files do not give a length
        cut = {"padding": True, "truncation": True, "max_length": self.length}
        tokens = self.tokenizer(texts, return_tensors="pt", **cut).to(host.device())
        with self.ready(), torch.inference_mode(False), torch.no_grad():
            pooled = self.model.text_model(**tokens).pooler_output
            return normalize(self.model.text_projection(pooled), dim=-1)

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with self.ready():
            hidden = self.model.vision_model(pixel_values=pixels.to(host.device())).last_hidden_state
            every = self.model.visual_projection(self.model.vision_model.post_layernorm(hidden))
            return every[:, 0], every[:, 1:]


def check_folder(folder: Path) -> None:
    """Reject a folder that contains no CLIP, before transformers reports a missing file."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"the folder {folder.name!r} has no config.json: choose a Hugging Face CLIP folder")
    kind = read_json(config).get("model_type")
    if kind != "clip":
        raise ValueError(
            f"the folder {folder.name!r} contains a model of type {kind!r}: "
            "a style judge needs a CLIP with both towers"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"the folder {folder.name!r} has no .safetensors weights: pickled weights are not loaded, "
            "save the model again as safetensors"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The content of a configuration file. A broken file is rejected."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} in the folder {path.parent.name!r} is not valid JSON: copy it again")
    return config


def folders() -> list[str]:
    """Folders in models/style_judge that have a config.json."""
    names = host.model_names(KIND, (), folders=True)
    return [n for n in names if (host.model_path(KIND, n) / "config.json").is_file()]


def _transformers() -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise RuntimeError(
            f"a Hugging Face style judge needs transformers, and importing it failed ({error}): "
            "install reelbrush[judge], or use Style Judge (CLIP)"
        ) from error
    return CLIPModel, AutoTokenizer
