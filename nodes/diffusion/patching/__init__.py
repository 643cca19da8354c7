"""ComfyUI's UNet: its layers by number, patches around its evaluation, and its features."""
