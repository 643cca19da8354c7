"""ComfyUI's CLIP and CLIP_VISION as one judge.

In ComfyUI the text tower and the vision tower of a CLIP are two files. Many text encoder files do not belong
to a pair: Stable Diffusion's were saved without the projection into the space that both towers share. What
the loader leaves in its place (identity, zeros, or uninitialized memory) is detected and rejected.

The vision tower is computed here from its sub-modules and copies of its weights. ComfyUI's own forward adds
in place, which autograd does not allow, and rounds its input to 8 bits, which has no gradient; and weights
that were loaded in inference mode cannot be used with autograd. The host's module is never changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, normalize

from ...kernels.attention import attend
from .. import host
from .judge import EmbeddingJudge

TEXT_FILE = (
    "load the text encoder of a full CLIP (one saved with its text projection, such as clip_l.safetensors or "
    "clip_g.safetensors) with Load CLIP"
)
PAIRS = "CLIP-L text (768) goes with ViT-L vision, CLIP-H (1024) with ViT-H, CLIP-G (1280) with ViT-bigG"


class ComfyJudge(EmbeddingJudge):
    """A CLIP and a CLIP_VISION of one family."""

    def __init__(self, clip: Any, clip_vision: Any):
        check_vision(clip_vision)
        self.clip, self.clip_vision = clip, clip_vision
        self.size = clip_vision.image_size
        self.mean, self.std = tuple(clip_vision.image_mean), tuple(clip_vision.image_std)
        self.tower = Tower(clip_vision.model)
        width = clip_vision.model.visual_projection.weight.shape[0]
        self.name, self.encoder = text_encoder(clip, width)
        self._weights: dict[str, Tensor] | None = None

    def text(self, texts: list[str]) -> Tensor:
        """Projected embeddings, whatever this CLIP was loaded for (Stable Diffusion's are not projected)."""
        self.clip.load_model()
        rows = []
        with torch.no_grad():
            projection = self.encoder.transformer.text_projection.weight
            self.encoder.set_clip_options({"layer": None, "projected_pooled": False})
            try:
                for text in texts:
                    tokens = self.clip.tokenize(text)[self.name]
                    pooled = self.encoder.encode_token_weights(tokens)[1]
                    rows.append(linear(pooled.to(projection.device, torch.float32), projection.float()))
            finally:
                self.encoder.reset_clip_options()
        return normalize(torch.cat(rows), dim=-1).to(host.device(), copy=True)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Hold float32 copies of the vision tower's weights on the computing device."""
        if self._weights is not None:
            yield
            return
        with torch.inference_mode(False), torch.no_grad():
            state = self.tower.state_dict(keep_vars=True)
            host.make_room(sum(4 * w.numel() for w in state.values()))
            self._weights = {
                k: w.detach().to(host.device(), torch.float32, copy=True) for k, w in state.items()
            }
        try:
            yield
        finally:
            self._weights = None

    def towers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with self.ready():
            return functional_call(self.tower, self._weights, (pixels.to(host.device()),))


class Tower(nn.Module):
    """The vision tower, read from ComfyUI's modules, without in-place additions."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vision = self.model.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), None, _attention)
            x = x + layer.mlp(layer.layer_norm2(x))
        every = self.model.visual_projection(vision.post_layernorm(x))
        return every[:, 0], every[:, 1:]


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
    return attend(*split, mask, backend="torch").transpose(1, 2).flatten(2)


def check_vision(clip_vision: Any) -> None:
    """Reject a CLIP_VISION whose embeddings cannot be compared with a text."""
    model = getattr(clip_vision, "model", None)
    projection = getattr(model, "visual_projection", None)
    vision = getattr(model, "vision_model", None)
    if (
        not isinstance(projection, nn.Module)
        or getattr(vision, "embeddings", None) is None
        or vision.embeddings.class_embedding is None
    ):
        raise ValueError(
            f"this CLIP_VISION ({type(model).__name__}) is not a CLIP vision tower with a projection (SigLIP "
            "and DINO have none): load a CLIP ViT with Load CLIP Vision"
        )
    if problem := wrong_projection(projection.weight):
        raise ValueError(
            f"the CLIP_VISION's projection is {problem}: the file was saved without it; "
            "load a vision file that has visual_projection"
        )


def text_encoder(clip: Any, width: int) -> tuple[str, Any]:
    """The text tower with a projection of the vision tower's width, and its name in the tokens."""
    towers = {
        name.removeprefix("clip_"): child
        for name, child in clip.cond_stage_model.named_children()
        if getattr(getattr(child, "transformer", None), "text_projection", None) is not None
    }
    if not towers:
        raise ValueError(
            f"this CLIP ({type(clip.cond_stage_model).__name__}) has no CLIP text tower: {TEXT_FILE}"
        )
    shapes = {name: child.transformer.text_projection.weight.shape[0] for name, child in towers.items()}
    fitting = {name: child for name, child in towers.items() if shapes[name] == width}
    if not fitting:
        have = ", ".join(f"{name} {size}" for name, size in shapes.items())
        raise ValueError(
            f"the CLIP's text embeddings have {have} numbers, the CLIP_VISION's pictures {width}: "
            f"load two files of one family ({PAIRS})"
        )
    problems = {
        name: wrong_projection(child.transformer.text_projection.weight) for name, child in fitting.items()
    }
    for name, problem in problems.items():
        if not problem:
            return name, fitting[name]
    name, problem = next(iter(problems.items()))
    raise ValueError(
        f"the text projection of this CLIP ({name}) is {problem}: the file was made for Stable Diffusion "
        f"and cannot be compared with pictures; {TEXT_FILE}"
    )


def wrong_projection(weight: Tensor) -> str:
    """Why a projection cannot be a trained one; an empty string if it can."""
    w = weight.detach().float()
    if not torch.isfinite(w).all() or w.abs().max() > 1e3:
        return "uninitialized memory"
    if (w.norm(dim=1) < 1e-6).float().mean() > 0.01:
        return "missing (zeros)"
    if w.shape[0] == w.shape[1] and torch.allclose(w, torch.eye(len(w), device=w.device), atol=1e-3):
        return "the identity"
    return ""
