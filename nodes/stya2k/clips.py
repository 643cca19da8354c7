"""Frame pairs of real clips with their motion, for the temporal loss. They are computed once per run."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ..common.contact_sheet import spread
from ..common.files import fingerprint, replacing
from ..flow.estimate import estimate
from ..video.lazy_video import LazyVideo

log = logging.getLogger("reelbrush")
ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
PAIRS_PER_CLIP = 16


@dataclass(frozen=True)
class FramePair:
    """Two frames [3, H, W]; `flow` [2, H, W] leads from the second to the first where `valid` [H, W]."""

    first: Tensor
    second: Tensor
    flow: Tensor
    valid: Tensor


class ClipPairs:
    """The frame pairs of all clips of a folder, with a short side of `side`."""

    def __init__(self, folder: Path, cache: Path, side: int):
        clips = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in ENDINGS)
        if not clips:
            raise ValueError(f"the folder {Path(folder).name!r} has no clips ({', '.join(ENDINGS)})")
        stamp = f"{side}:{fingerprint(*clips)}"
        file = cache / f"{Path(folder).name}-clips-{side}.safetensors"
        if not file.is_file() or self._stamp(file) != stamp:
            self._pack(clips, file, side, stamp)
        self._open = safe_open(file, "pt")
        self.count = sum(key.endswith(".flow") for key in self._open.keys())  # noqa: SIM118

    @staticmethod
    def _stamp(file: Path) -> str:
        try:
            with safe_open(file, "pt") as f:
                return (f.metadata() or {}).get("stamp", "")
        except SafetensorError:  # damaged: it is packed again
            return ""

    @staticmethod
    def _pack(clips: list[Path], file: Path, side: int, stamp: str) -> None:
        tensors: dict[str, Tensor] = {}
        for clip in clips:
            try:
                pairs = list(ClipPairs._pairs(clip, side))
            except (ValueError, OSError) as error:
                log.warning("training clip %s cannot be read: skipped (%s)", clip.name, error)
                continue
            for frames in pairs:
                flow = estimate(frames, "dis-medium")
                name = f"{len(tensors) // 4:05}"
                tensors[f"{name}.first"], tensors[f"{name}.second"] = (frames * 255).round().byte()
                tensors[f"{name}.flow"] = flow.backward[0].half().contiguous()
                tensors[f"{name}.valid"] = flow.backward_valid[0].contiguous()
        if not tensors:
            raise ValueError(f"none of the {len(clips)} clips can be read or has two frames")
        with replacing(file) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"stamp": stamp})

    @staticmethod
    def _pairs(clip: Path, side: int) -> Iterator[Tensor]:
        """Pairs of neighbouring frames, spread over a clip."""
        video = LazyVideo.from_file(clip)
        scale = side / min(video.width, video.height)
        small = video.resize(round(video.width * scale), round(video.height * scale))
        for at in spread(max(1, video.frame_count - 1), PAIRS_PER_CLIP):
            frames = torch.cat(list(small.trim(at, 2).chunks(2)))
            if len(frames) == 2:
                yield frames

    def draw(self, size: int, rng: torch.Generator) -> FramePair:
        """A random crop of a random pair."""
        name = f"{int(torch.randint(self.count, (1,), generator=rng)):05}"
        first, second, flow, valid = (
            self._open.get_tensor(f"{name}.{part}") for part in ("first", "second", "flow", "valid")
        )
        maps = [first.permute(2, 0, 1).float() / 255, second.permute(2, 0, 1).float() / 255]
        maps += [flow.float(), valid[None].float()]
        h, w = maps[0].shape[-2:]
        if min(h, w) < size:
            maps = [functional.interpolate(m[None], scale_factor=size / min(h, w))[0] for m in maps]
            maps[2] = maps[2] * (size / min(h, w))
            h, w = maps[0].shape[-2:]
        u, v = torch.rand(2, generator=rng).tolist()
        y, x = round(u * (h - size)), round(v * (w - size))
        first, second, flow, valid = (m[:, y : y + size, x : x + size] for m in maps)
        return FramePair(first, second, flow, valid[0])
