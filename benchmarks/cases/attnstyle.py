"""AttnStyle: the time of training."""

from collections.abc import Callable
from functools import partial

import torch

from reelbrush.lab.attnstyle_texture import TextureJudge
from reelbrush.nodes.attnstyle.curriculum import Weights
from reelbrush.nodes.attnstyle.train import Settings, train
from reelbrush.tests.stya2k.conftest import picture

LOSSES = {
    "defaults": {},
    "with temporal loss": {"temporal": 10.0},
    "without patches": {"patches": 0.0},
    "without layout": {"layout": 0.0},
}


def training(size: int = 256, key_frames: int = 4, epochs: int = 4, patches: int = 64) -> dict[str, Callable]:
    """Training steps with and without some of the losses; no content loss, which needs weights."""

    return {
        name: partial(_training, changes, size, key_frames, epochs, patches)
        for name, changes in LOSSES.items()
    }


@torch.inference_mode()
def _training(
    changes: dict[str, float], size: int, key_frames: int, epochs: int, patches: int
) -> Callable[[], dict]:
    weights = Weights(**{"content": 0.0, **changes})
    settings = Settings(epochs=epochs, weights=weights, patches=patches, early_stop=False)
    pictures = picture(key_frames, size, size)

    def run() -> dict:
        result = train(TextureJudge(), pictures, "striped", "a photo", settings)
        return {"frames": epochs, **{name: loss[-1] for name, loss in result.losses.items()}}

    return run
