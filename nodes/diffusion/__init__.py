"""Diffusion methods on ComfyUI's MODEL."""

CATEGORY = "ReelBrush/Diffusion"
