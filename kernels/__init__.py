"""Arithmetic on tensors: torch only. No ComfyUI, no files, no progress bars."""
