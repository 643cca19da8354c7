"""All nodes of nodes/diffusion."""

from . import nodes_clip, nodes_inject, nodes_lora, nodes_style, nodes_trajectory, nodes_video

NODES = {
    **nodes_trajectory.NODES,
    **nodes_style.NODES,
    **nodes_lora.NODES,
    **nodes_inject.NODES,
    **nodes_clip.NODES,
    **nodes_video.NODES,
}
