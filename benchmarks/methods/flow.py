"""Stabilization of clips."""

from torch import Tensor

from reelbrush.benchmarks.methods.stya2k import stylize
from reelbrush.lab.sample.scene import flickering
from reelbrush.nodes.flow.stabilize import stabilize as run


def stabilize(
    content: Tensor,
    style: Tensor,
    strength: float = 0.8,
    method: str = "dis-medium",
    flicker: float = 0.0,
) -> Tensor:
    """A stylized clip, stabilized (--clip); with `flicker`, the clip with that much artificial flicker."""
    stylized = flickering(content, flicker) if flicker else stylize(content, style)
    return run(stylized, content, strength, method)
