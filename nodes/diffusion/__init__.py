"""Diffusion: everything done to ComfyUI's own MODEL."""
