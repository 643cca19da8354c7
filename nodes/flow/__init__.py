"""Optical flow, the optical-flow error, and stabilisation."""
