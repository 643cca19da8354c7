"""The sample: clips, style pictures, and two folders of pictures to train on. lab/sample draws them."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from shutil import copyfile

from .. import host
from ..common.files import replacing

FOLDER = Path(__file__).parent / "files"
CLIP = "reelbrush_sample.mp4"
CLIP_CUT = "reelbrush_sample_cut.mp4"
CLIP_STYLIZED = "reelbrush_sample_stylized.mp4"
MASK_FAR, MASK_NEAR = (
    "reelbrush_mask_far.mp4",
    "reelbrush_mask_near.mp4",
)  # sky, water; land, in the sample clip
STYLES = tuple(f"reelbrush_style_{name}.png" for name in ("swirls", "waves", "glass"))
CONTENTS = tuple(f"reelbrush_content_{number}.jpg" for number in range(6))
FILES = (CLIP, CLIP_CUT, CLIP_STYLIZED, MASK_FAR, MASK_NEAR, *STYLES)
FOLDERS = {"reelbrush_contents": CONTENTS, "reelbrush_styles": STYLES}
ALL = (*FILES, *FOLDERS)


def copy_missing(folder: Path, names: Iterable[str] = ALL) -> list[Path]:
    """Copy the sample, or the named files and folders of it, to where they are missing. Gives the copies."""
    missing = [folder / name for name in names if not (folder / name).exists()]
    for path in missing:
        with replacing(path) as temporary:
            if path.name in FOLDERS:
                temporary.mkdir()
                for name in FOLDERS[path.name]:
                    copyfile(FOLDER / name, temporary / name)
            else:
                copyfile(FOLDER / path.name, temporary)
    return missing


@cache
def install() -> None:
    """In a ComfyUI that starts: copy the sample to its input folder, so that the workflows find their files.

    It is done once per input folder, so that a file that the user deletes does not come back.
    """
    if not host.server_running():
        return
    try:
        folder, marker = host.folder("input"), host.folder("user") / "reelbrush_sample.txt"
        done = marker.read_text(encoding="utf-8").splitlines() if marker.exists() else []
        if str(folder) not in done:
            copy_missing(folder)
            with replacing(marker) as temporary:
                temporary.write_text("\n".join([*done, str(folder), ""]), encoding="utf-8")
    except (OSError, ValueError) as error:
        host.log.warning("the sample files could not be copied to the input folder: %s", error)
