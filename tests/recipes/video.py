"""How to run the video nodes in the every-node test."""

import torch
from every_node import Recipe, clip, picture

from reelbrush.nodes.video.lazy_video import LazyVideo


class Vae:
    """Stands in for ComfyUI's VAE: eight times smaller, four channels."""

    def encode(self, images):
        small = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 8, ceil_mode=True)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8).permute(0, 2, 3, 1)

    def get_sd(self):
        return {"weight": torch.zeros(1)}


def latent(frames, size):
    return {"samples": Vae().encode(picture(frames, size))}


RECIPES = {
    "ReelBrushSaveVideo": Recipe(
        lambda n, size: dict(
            video=clip(n, size), filename_prefix="a/b", format="mkv", codec="auto", quality=20, resume=True
        ),
        wrong=[
            (dict(video="not a video"), "VIDEO is needed"),
            (dict(filename_prefix="../b"), "leaves the output folder"),
            (dict(filename_prefix="/etc/b"), "leaves the output folder"),
            (dict(format="gif", codec="h264"), "gif"),
        ],
        changes=("path",),
    ),
    "ReelBrushTrimVideo": Recipe(
        lambda n, size: dict(video=clip(n, size), start=0, frames=0, every_nth=1, max_side=0),
        frames=0,
        off=({}, "video", 0),
        wrong=[(dict(video=clip(3, (16, 16)), start=5), "cannot start at frame 5")],
    ),
    "ReelBrushPreviewVideo": Recipe(
        lambda n, size: dict(video=clip(n, size), frames=4),
        wrong=[(dict(video="x"), "VIDEO is needed"), (dict(video=None), "connect a node that gives VIDEO")],
    ),
    "ReelBrushEncodeVideo": Recipe(
        lambda n, size: dict(video=clip(n, size), vae=Vae(), max_side=0),
        frames=0,
        wrong=[(dict(video=7), "VIDEO is needed")],
    ),
    "ReelBrushDecodeVideo": Recipe(
        lambda n, size: dict(latent=latent(n, size), vae=Vae(), fps=12.0, like=LazyVideo.of(clip(n, size))),
        frames=0,
        wrong=[(dict(latent={"samples": torch.zeros(1, 4, 2, 8, 8)}), "latents of frames are")],
    ),
}
