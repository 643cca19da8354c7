"""Video: decoding, lazy clips, the frame cache, encoding."""
