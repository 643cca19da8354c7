"""Reading files of weights. They are not trusted: a damaged one gives an error message of one sentence."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

_LARGEST = 1e6


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert what a damaged file does to the code in this block; `what` is the kind of file."""
    try:
        yield
    except Exception as error:
        if type(error) in (ValueError, PermissionError, MemoryError):
            raise
        raise ValueError(f"{path.name} is damaged or no {what}: download or save it again") from error


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """An error for weights that are no numbers (NaN) or too large: a training that failed wrote them."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.abs().max() <= _LARGEST:
            raise ValueError(
                f"{path.name} has values that are not numbers (NaN), infinite or above {_LARGEST:g} in "
                f"{name}: use an earlier file, or make it again"
            )
