"""The settings that determine the outcome of a StyA2K training, and the paper's preset."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..common.weights import reading


def _value(default: object, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


SIZES = ("modulated", "small", "paper")
EQUATIONS = ("relative", "official", "paper")  # forms of eqs. 16 and 17, see losses.py
AUTOMATIC = "automatic"  # in the node: the preset's form


@dataclass
class Recipe:
    """All settings that determine the outcome of a run."""

    size: str = _value("small", "the CPU network, modulated for its next layout, or the paper's with VGG-19")
    attention: str = _value("all-to-key", "the method, or one of the paper's comparisons")
    halving: str = _value("soft", "of the small network's maps: soft filters them first, plain does not")
    steps: int = _value(20000, "optimisation steps in all")
    batch: int = _value(4, "pairs per step")
    load_size: int = _value(256, "short side that pictures get")
    crop: int = _value(160, "side of the training crops")
    learning_rate: float = _value(5e-4, "of Adam")
    style_weight: float = _value(10.0, "weight of eq. 16: means and deviations of the judge's features")
    match_weight: float = _value(
        1.25, "weight of eq. 17: distance to the result of attention without weights"
    )
    gram_weight: float = _value(4.0, "weight of Gram matrices: textures")
    content_weight: float = _value(1.0, "weight of the content's normalised features")
    sliced_weight: float = _value(0.0, "weight of the distances of features sorted along random directions")
    palette_weight: float = _value(0.0, "weight of the distribution of colours")
    edge_weight: float = _value(0.0, "weight of the content's edges: silhouettes without halos")
    identity_weight: float = _value(0.0, "weight of the change to a content in its own style")
    bounded: bool = _value(False, "style terms relative to both pictures: dark styles do not outweigh others")
    every_pair: bool = _value(False, "every content of a step in every style of it")
    variation_weight: float = _value(0.3, "weight of the total variation")
    temporal_weight: float = _value(
        0.0, "weight of the temporal loss: a stylized frame against the stylized moved frame"
    )
    color_share: float = _value(0.2, "share of the styles whose channels are permuted")
    photo_share: float = _value(0.0, "share of the styles that are contents: for few style pictures")
    average: float = _value(0.998, "decay of the averaged weights, which are the ones saved")
    seed: int = _value(0, "decides first weights, data order and held-out pictures")
    data_seed: int = _value(-1, "seed of the data order, for a later training stage; -1: use `seed`")
    held_styles: int = _value(15, "styles kept out of training")
    held_contents: int = _value(50, "contents kept out of training")
    schedule: str = _value("linear", "of the learning rate: linear, constant, or paper")
    equations: str = _value(
        "relative",
        "form of eqs. 16 and 17: ours, or without all our additions the official code's or the paper's",
    )
    half: bool = _value(False, "autocast to bfloat16")

    def __post_init__(self) -> None:
        for name in ("color_share", "photo_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1: {getattr(self, name):g} is none")
        if self.equations not in EQUATIONS:
            raise ValueError(f"equations {self.equations!r} is not known: {', '.join(EQUATIONS)}")

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step. Only the paper's schedule has no warm-up."""
        done = min(1.0, step / max(1, self.steps))
        if self.schedule == "paper":  # flat for two of five epochs, then down to 0
            return min(1.0, (1 - done) / 0.6)
        warm = min(1.0, (step + 1) / 100)
        return warm if self.schedule == "constant" else warm * (1 - done)

    @property
    def order(self) -> int:
        """The seed that determines which pictures a step uses."""
        return self.seed if self.data_seed < 0 else self.data_seed

    @property
    def literal(self) -> bool:
        """Whether losses, crops and steps are those of a source, without our additions."""
        return self.equations != "relative"


PAPER = {
    "size": "paper",
    "steps": 400_000,
    "batch": 8,
    "load_size": 512,
    "crop": 256,
    "learning_rate": 2e-4,
    "gram_weight": 0.0,
    "content_weight": 0.0,
    "variation_weight": 0.0,
    "color_share": 0.0,
    "average": 0.0,
    "schedule": "paper",
    "equations": "official",
}


def kept(folder: Path) -> dict:
    """The settings of the run in a folder; empty if there is none."""
    file = folder / "recipe.json"
    if not file.is_file():
        return {}
    with reading(file, "settings of a training"):
        values = json.loads(file.read_text())
        # Values for run folders that were written before the setting existed.
        equations = "of version 0.1, which cannot be continued," if values["size"] == "paper" else "relative"
        return {"halving": "plain", "equations": equations} | values


def recipe_in(folder: Path, given: dict, paper: bool = False) -> Recipe:
    """Settings from the given values, then from the folder's run, then from the paper's preset or ours."""
    return recipe_of((PAPER if paper else {}) | kept(folder) | given)


def recipe_of(values: dict) -> Recipe:
    """A recipe from a dict, which may have other keys."""
    known = {f.name for f in fields(Recipe)}
    return Recipe(**{k: v for k, v in values.items() if k in known})
