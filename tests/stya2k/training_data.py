"""The folders of the fixture `folders` as a training reads them."""

from reelbrush.nodes.stya2k.data import Pictures


def sources(folders, side=72):
    """Contents and styles."""
    return (Pictures(folders / kind, folders / "cache", side) for kind in ("content", "style"))
