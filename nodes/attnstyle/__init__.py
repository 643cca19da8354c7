"""AttnStyle: a text prompt becomes a style, learned on the clip itself."""
