"""The diffusion wing's nodes, gathered: each room declares its own."""

from . import clip_nodes, inject_nodes, lora_nodes, style_nodes, trajectory_nodes

NODES = {
    **trajectory_nodes.NODES,
    **style_nodes.NODES,
    **lora_nodes.NODES,
    **inject_nodes.NODES,
    **clip_nodes.NODES,
}
