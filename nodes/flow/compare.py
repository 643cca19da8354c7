"""Two clips for the player of Compare Videos: files that a browser plays, and the error of every frame."""

import math
from typing import Any

from .. import host
from ..video.lazy_video import LazyVideo
from ..video.save import save
from . import measure
from .conventions import convention
from .estimate import METHODS


def playable(video: LazyVideo) -> dict[str, str]:
    """A clip as an mp4 file in ComfyUI's temp folder. The same clip is written once."""
    path = host.folder("temp") / f"reelbrush_{video.operation.fingerprint[:24]}.mp4"
    if not path.is_file():
        save(video.operation, path, codec="h264", quality=18, label="Preparing the player")
    return {"filename": path.name, "subfolder": "", "type": "temp"}


def comparison_player(a: LazyVideo, b: LazyVideo, content: Any, mode: str) -> dict[str, Any]:
    """What the player shows. `curves` has an error per frame; None for the first frame and after a cut."""
    if a.frame_count != b.frame_count:
        counts = f"a has {a.frame_count} frames and b has {b.frame_count}"
        raise ValueError(f"{counts}: Compare Videos needs two clips of one length")
    shown: dict[str, Any] = {"mode": mode, "fps": float(a.fps), "a": playable(a), "b": playable(b)}
    if content is not None and a.frame_count > 1:
        reports = measure.streams({"a": a, "b": b}, content, convention(), METHODS[0])
        shown["curves"] = [[None, *(p.error if p.counts else None for p in r.pairs)] for r in reports]
        shown["means"] = [r.error if math.isfinite(r.error) else None for r in reports]
    return shown
