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
        # outside inference mode: what is loaded there cannot enter autograd
        with torch.inference_mode(False):
            try:
                model = clip.from_pretrained(folder, local_files_only=True, use_safetensors=True)
                self.tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
            except Exception as error:  # every kind of broken file has its own
                why = " ".join(str(error).split())[:160]
                raise ValueError(
                    f"the folder {folder.name!r} holds no CLIP that transformers can load ({why}): "
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
        """The model on the computing device; afterwards it makes room again for what the host manages."""
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
        # cut at what the text tower has positions for: not every tokenizer file says how many that are
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
    """One sentence when a folder is no CLIP, before transformers looks for what is not there."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"the folder {folder.name!r} has no config.json: choose a Hugging Face CLIP folder")
    kind = read_json(config).get("model_type")
    if kind != "clip":
        raise ValueError(
            f"the folder {folder.name!r} holds a model of type {kind!r}: "
            "a style judge needs a CLIP with both towers"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"the folder {folder.name!r} has no .safetensors weights: pickled weights are not loaded, "
            "save the model again as safetensors"
        )


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration file says; one sentence when it is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path.name} in the folder {path.parent.name!r} is no configuration (broken JSON): copy it again"
        )
    return found


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
