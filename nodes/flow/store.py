"""Flow files: our safetensors files, and folders of Middlebury .flo files (read only).

A folder holds either forward_1_2.flo and backward_2_1.flo, the names of artistic-videos, or one .flo per
pair in alphabetical order, as in Sintel and fast_blind_video_consistency. The latter are forward flow; the
backward flow is computed from it.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.flow import invert, validity
from .. import host
from ..common.files import replacing
from ..common.weights import check_finite, reading
from .estimate import CONSISTENCY, Flow

FOLDER = "flows"
SUFFIX = ".flow.safetensors"
_ENDING = "flow.safetensors"  # without a dot: version 0.1 wrote reelbrush_sample_flow.safetensors
_NO_FILE = "no flow in the input folder"
_OUTPUT = " [output]"  # as ComfyUI marks a name that is not below input/
TAG = np.float32(202021.25)
UNKNOWN = 1e7  # Middlebury writes 1e9 where the motion is unknown
MASKS = ("forward_valid", "backward_valid")
_NAMED = re.compile(r"(forward|backward)_(\d+)_(\d+)\.flo")


def target(name: str) -> Path:
    """The path under which a flow of this name is saved."""
    name = name.strip().removesuffix(SUFFIX)
    if not name or name.endswith("/"):
        raise ValueError("the flow has no name: give one, such as clip")
    return host.output_path(f"{FOLDER}/{name}{SUFFIX}", "flow")


def names() -> list[str]:
    """The names that can be loaded: flow files and .flo folders below input/, and saved flows."""
    found = host.input_names((_ENDING,))
    base = host.folder("input")
    found += [name for name in host.input_names(folders=True) if any((base / name).glob("*.flo"))]
    saved = host.folder("output") / FOLDER
    if saved.is_dir():
        found += [p.relative_to(saved).as_posix() + _OUTPUT for p in sorted(saved.rglob(f"*{SUFFIX}"))]
    return found or [_NO_FILE]


def find(name: str) -> Path:
    """The file or folder of a name from `names`."""
    if name == _NO_FILE:
        raise ValueError("there is no flow to load: save one with Save Flow, or copy one to the input folder")
    if not name.endswith(_OUTPUT):
        return host.input_path(name, "flow")
    path = host.inside(host.folder("output") / FOLDER, name.removesuffix(_OUTPUT), "flow")
    if not path.exists():
        raise ValueError(f"the flow {name!r} is not in output/{FOLDER}: save it again, or choose another")
    return path


def save(flow: Flow, path: Path) -> Path:
    """Write a flow; the file appears under its name when it is whole."""
    from safetensors.torch import save_file

    tensors = {name: getattr(flow, name).contiguous() for name in ("forward", "backward", *MASKS)}
    about = {"stride": flow.stride, "method": flow.method, "consistency": flow.consistency, "cuts": flow.cuts}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"reelbrush_flow": json.dumps(about)})
    return path


def load(path: Path) -> Flow:
    """Read a flow file or a folder of .flo files."""
    return _load_folder(path) if path.is_dir() else _load_file(path)


def _load_file(path: Path) -> Flow:
    with reading(path, "flow file"):
        return _read_file(path)


def _read_file(path: Path) -> Flow:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        about = json.loads((file.metadata() or {}).get("reelbrush_flow", "{}"))
    check_finite(path, tensors)
    if not {"forward", "backward"} <= tensors.keys():
        raise ValueError(
            f"{path.name} contains no flow: choose a file of Save Flow, or a folder of .flo files"
        )
    forward, backward = (_planes(tensors[name], path.name) for name in ("forward", "backward"))
    if set(MASKS) <= tensors.keys():
        masks = [tensors[name].bool() for name in MASKS]
    elif {"occluded_forward", "occluded_backward"} <= tensors.keys():  # the sample's exact flow
        masks = [~tensors[name].bool() for name in ("occluded_forward", "occluded_backward")]
    else:
        masks = [validity(forward, backward), validity(backward, forward)]
    if any(mask.shape != forward[:, 0].shape for mask in (*masks, backward[:, 0])):
        raise ValueError(f"{path.name} is damaged: its parts have different sizes; save it again")
    return Flow(
        forward,
        backward,
        *masks,
        int(about.get("stride", 1)),
        str(about.get("method", path.name)),
        tuple(about.get("consistency", CONSISTENCY)),
        tuple(about.get("cuts", ())),
    )


def _planes(flow: Tensor, name: str) -> Tensor:
    """[P, 2, H, W] float32, from either order of the axes."""
    if flow.ndim == 4 and flow.shape[-1] == 2 and flow.shape[1] != 2:
        flow = flow.permute(0, 3, 1, 2)
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(
            f"{name} contains a flow of shape {tuple(flow.shape)}: [pairs, 2, height, width] is needed"
        )
    return flow.float().contiguous()


def read_flo(path: Path) -> tuple[Tensor, Tensor]:
    """One Middlebury .flo file: flow [1, 2, H, W], and where it is known [1, H, W]."""
    data = path.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != TAG:
        raise ValueError(f"{path.name} is not a .flo file: it does not begin with the tag PIEH")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if width < 1 or height < 1 or len(data) < 12 + width * height * 8:
        raise ValueError(f"{path.name} is too short for {width}x{height} vectors: write it again")
    vectors = np.frombuffer(data, "<f4", width * height * 2, offset=12).reshape(1, height, width, 2)
    flow = torch.from_numpy(vectors.copy()).permute(0, 3, 1, 2)
    known = (flow.isfinite() & (flow.abs() < UNKNOWN)).all(dim=1)
    return torch.where(known[:, None], flow, 0.0), known


def _load_folder(folder: Path) -> Flow:
    files = sorted(folder.glob("*.flo"))
    if not files:
        raise ValueError(f"the folder {folder.name} contains no .flo files: choose another folder")
    named = {m.groups(): p for p in files if (m := _NAMED.fullmatch(p.name))}
    if named:
        ways, stride = _named_pairs(named, folder)
    else:
        ways, stride = [(path, None) for path in files], 1
    rows = [_pair(*way) for way in ways]
    if len({row[0].shape for row in rows}) > 1:
        raise ValueError(f"the .flo files in {folder.name} have different sizes: keep one clip per folder")
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    return Flow(*columns, stride, f"{folder.name} (.flo)")


def _named_pairs(named: dict[Any, Path], folder: Path) -> tuple[list[tuple[Path | None, Path | None]], int]:
    """The (forward, backward) files of each pair, for the names of artistic-videos, and their stride."""
    ways: dict[tuple[int, int], list[Path | None]] = {}
    for (way, start, end), path in named.items():
        first, last = sorted((int(start), int(end)))
        ways.setdefault((first, last), [None, None])[way == "backward"] = path
    pairs = sorted(ways)
    strides = {last - first for first, last in pairs}
    firsts = [first for first, _ in pairs]
    if len(strides) > 1 or 0 in strides or firsts != list(range(firsts[0], firsts[0] + len(firsts))):
        raise ValueError(
            f"the .flo files in {folder.name} do not follow each other with one stride: "
            "keep forward_1_2, forward_2_3, ... of one stride in a folder"
        )
    return [tuple(ways[pair]) for pair in pairs], strides.pop()


def _pair(forward: Path | None, backward: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions and both masks of one pair. A missing direction is computed from the other."""
    there, back = (read_flo(path) if path else None for path in (forward, backward))
    there = there or invert(back[0])
    back = back or invert(there[0])
    if there[0].shape != back[0].shape:
        raise ValueError(f"{forward.name} and {backward.name} have different sizes: write them again")
    seen = validity(there[0], back[0]) & there[1], validity(back[0], there[0]) & back[1]
    return there[0], back[0], *seen
