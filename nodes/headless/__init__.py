"""Running a saved graph without ComfyUI, or on a ComfyUI server; the subcommands of `reelbrush`."""
