"""Attention distillation: a style's attention features as a loss on a latent."""
