"""Small scenes whose motion is known, for the flow tests."""

from functools import cache

import numpy as np
import torch

from reelbrush.lab.sample import scene as sample
from reelbrush.nodes.flow.estimate import Flow


def texture(height, width, seed=0, soft=2):
    """Smooth random colours [H, W, 3]."""
    noise = torch.rand(
        1, 3, height + 8 * soft, width + 8 * soft, generator=torch.Generator().manual_seed(seed)
    )
    for _ in range(3):
        noise = torch.nn.functional.avg_pool2d(noise, 2 * soft + 1, 1, soft)
    picture = noise[0, :, 4 * soft : 4 * soft + height, 4 * soft : 4 * soft + width].permute(1, 2, 0)
    return ((picture - picture.mean()) / picture.std() * 0.18 + 0.5).clamp(0, 1)


def sliding(frames, height, width, dx=2, dy=1, seed=0):
    """A texture that slides by whole pixels, frames [N, H, W, 3], and its exact flow."""
    wide = texture(height + abs(dy) * frames, width + abs(dx) * frames, seed)
    x0, y0 = (dx > 0) * dx * (frames - 1), (dy > 0) * dy * (frames - 1)
    clip = torch.stack(
        [wide[y0 - dy * t : y0 - dy * t + height, x0 - dx * t : x0 - dx * t + width] for t in range(frames)]
    )
    return clip, uniform(frames, height, width, dx, dy)


def uniform(frames, height, width, dx, dy, stride=1):
    """The exact flow of a picture that moves by (dx, dy) per frame."""
    pairs = frames - stride
    motion = torch.tensor([dx * stride, dy * stride], dtype=torch.float32).view(1, 2, 1, 1)
    forward = motion.expand(pairs, 2, height, width).contiguous()
    return Flow.of(forward, -forward, stride=stride, method="exact")


def occluder(frames, height, width, size=16, step=3):
    """A square that crosses a resting background; frames, the square's masks [N, H, W], the exact flow."""
    back, front = texture(height, width, 1), texture(size, size, 2).flip(-1) * 0.6
    clip, masks = [], torch.zeros(frames, height, width, dtype=torch.bool)
    top = (height - size) // 2
    for t in range(frames):
        frame, left = back.clone(), 4 + step * t
        frame[top : top + size, left : left + size] = front
        masks[t, top : top + size, left : left + size] = True
        clip.append(frame)
    forward = torch.zeros(frames - 1, 2, height, width)
    backward = torch.zeros(frames - 1, 2, height, width)
    forward[:, 0][masks[:-1]] = step
    backward[:, 0][masks[1:]] = -step
    return torch.stack(clip), masks, Flow.of(forward, backward, method="exact")


@cache
def sample_scene(frames, variant="main"):
    """The first frames of the shipped sample, with exact flow."""
    return sample.scene(frames, variant=variant)


def exact(scene, cuts=()):
    """The sample's exact flow and occlusion as a Flow."""
    ways = (way.permute(0, 3, 1, 2).contiguous() for way in (scene.forward, scene.backward))
    return Flow(*ways, ~scene.occluded_forward, ~scene.occluded_backward, 1, "exact", cuts=cuts)


def write_flo(path, flow):
    """A flow [2, H, W] as a Middlebury .flo file."""
    vectors = flow.permute(1, 2, 0).numpy().astype("<f4")
    height, width, _ = vectors.shape
    path.write_bytes(b"PIEH" + np.array([width, height], "<i4").tobytes() + vectors.tobytes())


def flickering(frames, amount=0.06, seed=0):
    """Every frame brighter or darker, and blotched, by chance."""
    g = torch.Generator().manual_seed(seed)
    n, h, w = frames.shape[:3]
    gain = 1 + amount * torch.randn(n, 1, 1, 1, generator=g)
    blots = torch.randn(n, 3, max(h // 8, 1), max(w // 8, 1), generator=g) * amount
    blots = torch.nn.functional.interpolate(blots, (h, w), mode="bilinear").permute(0, 2, 3, 1)
    return (frames * gain + blots).clamp(0, 1)
