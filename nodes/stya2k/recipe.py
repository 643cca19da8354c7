"""What decides the outcome of a StyA2K training, and the paper's preset."""

from dataclasses import dataclass, fields


@dataclass
class Recipe:
    """All that decides the outcome of a run."""

    size: str = "small"
    attention: str = "all-to-key"
    steps: int = 20000
    batch: int = 4
    load_size: int = 256
    crop: int = 160
    learning_rate: float = 5e-4
    style_weight: float = 10.0
    match_weight: float = 1.25
    gram_weight: float = 4.0
    content_weight: float = 1.0
    variation_weight: float = 0.3
    temporal_weight: float = 0.0
    color_share: float = 0.2
    photo_share: float = (
        0.0  # of the styles are contents: a hundred paintings are few to learn attention from
    )
    average: float = 0.998
    seed: int = 0
    held_styles: int = 15
    held_contents: int = 50
    schedule: str = "linear"
    half: bool = False  # autocast to bfloat16

    def rate(self, step: int) -> float:
        """The learning rate's factor: the schedule, ours after a short warm-up."""
        done = min(1.0, step / max(1, self.steps))
        if self.schedule == "paper":  # flat for two of five epochs, then down to 0
            return min(1.0, (1 - done) / 0.6)
        warm = min(1.0, (step + 1) / 100)
        return warm if self.schedule == "constant" else warm * (1 - done)

    @property
    def literal(self) -> bool:
        """The official sums, crops and steps, without what we add."""
        return self.schedule == "paper"


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
    "schedule": "paper",
}


def recipe_of(values: dict) -> Recipe:
    """A recipe from a dict that may hold more."""
    known = {f.name for f in fields(Recipe)}
    return Recipe(**{k: v for k, v in values.items() if k in known})
