"""DDIM inversion and what is made from it."""
