"""The sample: a clip with known optical flow and sound, and style pictures, all drawn by code."""
