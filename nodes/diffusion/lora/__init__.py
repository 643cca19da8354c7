"""Style LoRAs: files, names of their weights, training."""
