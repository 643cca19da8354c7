"""Video in and out: decoding, lazy chains, spooling, encoding."""
