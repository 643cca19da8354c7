"""Flow applied to IMAGE batches. Frames without a neighbour are kept, so N frames give N frames."""

import torch
from torch import Tensor

from ...kernels.flow import resize_flow, resize_weights, warp
from .. import host
from .charts import colour_wheel
from .estimate import Flow

DIRECTIONS = ("previous to next", "next to previous")


def looking_back(flow: Flow) -> tuple[Tensor, Tensor]:
    """A mask [N, H, W] of the pixels that also exist `stride` frames earlier, and the motion as pictures."""
    stride = flow.frames - flow.pairs
    valid = torch.zeros(flow.frames, flow.height, flow.width)
    picture = torch.ones(flow.frames, flow.height, flow.width, 3)
    valid[stride:] = flow.backward_valid.float()
    picture[stride:] = colour_wheel(-flow.backward)
    return valid, picture


def warp_clip(images: Tensor, flow: Flow, direction: str) -> tuple[Tensor, Tensor]:
    """Each frame as its warped neighbour, and where that is valid."""
    if direction not in DIRECTIONS:
        raise ValueError(f"the direction {direction!r} is unknown: choose one of {', '.join(DIRECTIONS)}")
    flow.check_frames(len(images))
    h, w = images.shape[1:3]
    out, valid = images.clone(), torch.zeros(len(images), h, w)
    back = direction == DIRECTIONS[0]
    with host.progress(flow.pairs, "Warping") as bar:
        for i in range(flow.pairs):
            one, later = flow.pair(i), i + flow.stride
            source, target = (i, later) if back else (later, i)
            along, mask = (one.backward, one.backward_valid) if back else (one.forward, one.forward_valid)
            planes = images[source][None].permute(0, 3, 1, 2)
            out[target] = warp(planes, resize_flow(along, h, w))[0].permute(1, 2, 0)
            valid[target] = resize_weights(mask, h, w)[0].float()
            bar.step(preview=out[target])
    return out, valid
